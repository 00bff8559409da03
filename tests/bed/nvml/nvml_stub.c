/* libnvidia-ml.so.1 without a GPU: answers unmodified pynvml from the control file (control.h), as a healthy H100 where it
 * says nothing. Without a file the driver is "not loaded". Written by Control in __init__.py. Beside the directives of
 * control.h:
 *
 *   gpus n=8                              how many there are
 *   value fn=<C symbol> is=1,2,3 [gpu=N]  the numbers a function gives
 *   driver name=580.95.05                 nvmlSystemGetDriverVersion
 *   product name=<words with _> [gpu=N]   nvmlDeviceGetName
 *   field id=230 value=2 ret=0 [gpu=N]    one value of nvmlDeviceGetFieldValues, of every link
 *   links n=18 down=0x3 [gpu=N]           how many NVLinks there are, and which are inactive (bits)
 *   processes n=2 [gpu=N]                 compute processes
 *   fabric version=2                      the newest version of nvmlGpuFabricInfoV_t that this driver knows
 *   types mask=0xb008 [gpu=N]             nvmlDeviceGetSupportedEventTypes
 *   event seq=7 gpu=N type=8 data=79      delivered once to each event set that registered GPU N before it was written
 */
#include <libgen.h>
#include <poll.h>
#include <sys/inotify.h>

#include "control.h"

enum { INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, VERSION_MISMATCH = 25 };
enum { UNSIGNED_INT = 1, UNSIGNED_LONG_LONG = 3, SIGNED_INT = 5 };

typedef struct { int index; } *device;
typedef struct { char legacy[16]; u32 domain, bus, device, device_id, subsystem_id; char id[32]; } pci_info;
typedef struct { u32 id, scope; long long timestamp, latency; int type, ret; u64 value; } field_value;
typedef struct { u32 version; u64 total, reserved, free, used; } memory_v2;
typedef struct { u32 pid; u64 used; u32 gpu_instance, compute_instance; } process_info;
typedef struct { u32 version; unsigned char cluster[16]; int status; u32 clique, state, mask; unsigned char summary; } fabric_info;
typedef struct { u32 version; u64 counts[11]; u32 exceeded; } sram_status;
typedef struct { device gpu; u64 type, data; u32 gpu_instance, compute_instance; } event_data;
typedef struct { u64 mask[MAX_GPUS], seen[MAX_GPUS]; } event_set;

static struct { int index; } gpus[MAX_GPUS];

static int count(const control *c) {
    u64 n = number(directive(c->text, "gpus", NO_GPU), "n", 0);
    return n < MAX_GPUS ? (int)n : MAX_GPUS;
}

/* The n-th number that a `value` line gives this function, or what it says without one. */
static u64 given(const control *c, const char *fn, int gpu, int n, u64 otherwise) {
    for (const char *line = directive(c->text, "value", gpu); line; line = after(line, "value", gpu)) {
        if (!is_word(value_of(line, "fn"), fn)) continue;
        const char *text = value_of(line, "is");
        for (; n; n--) text += strcspn(text, ", \n") + 1;
        return strtoull(text, NULL, 0);
    }
    return otherwise;
}

static int put(char *to, u32 size, const char *text) {
    return (u32)snprintf(to, size, "%s", text) < size ? SUCCESS : INSUFFICIENT_SIZE;
}

static int put_name(char *to, u32 size, const char *line, const char *otherwise) {
    const char *name = line ? value_of(line, "name") : NULL;
    char text[96];
    snprintf(text, sizeof text, "%.*s", name ? (int)strcspn(name, " \n") : (int)sizeof text, name ? name : otherwise);
    for (char *at = text; *at; at++) if (*at == '_') *at = ' ';
    return put(to, size, text);
}

static void uuid_of(int gpu, char *to, u32 size) { snprintf(to, size, "GPU-00000000-0000-4000-8000-%012x", gpu); }

static device handle_of(int gpu) {
    gpus[gpu].index = gpu;
    return (device)&gpus[gpu];
}

/* -- the system ------------------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(u32 flags) { (void)flags; ENTER(NO_GPU); return SUCCESS; }
int nvmlInit_v2(void) { ENTER(NO_GPU); return SUCCESS; }
int nvmlShutdown(void) { ENTER(NO_GPU); return SUCCESS; }

const char *nvmlErrorString(int code) { return code ? "stubbed error" : "success"; }

int nvmlSystemGetDriverVersion(char *to, u32 size) {
    ENTER(NO_GPU);
    return put_name(to, size, directive(c.text, "driver", NO_GPU), "580.95.05");
}

int nvmlSystemGetNVMLVersion(char *to, u32 size) { ENTER(NO_GPU); return put(to, size, "13.580.95.05"); }

/* -- devices ---------------------------------------------------------------------------------------------------- */

int nvmlDeviceGetCount_v2(u32 *n) { ENTER(NO_GPU); *n = count(&c); return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(u32 index, device *to) {
    ENTER((int)index);
    if ((int)index >= count(&c)) return INVALID_ARGUMENT;
    *to = handle_of((int)index);
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device *to) {
    ENTER(NO_GPU);
    for (int gpu = 0; gpu < count(&c); gpu++) {
        char own[64];
        uuid_of(gpu, own, sizeof own);
        if (strcmp(own, uuid)) continue;
        *to = handle_of(gpu);
        return directive(c.text, "lost", gpu) ? GPU_IS_LOST : SUCCESS;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetIndex(device gpu, u32 *index) { ENTER(gpu->index); *index = gpu->index; return SUCCESS; }
int nvmlDeviceGetMinorNumber(device gpu, u32 *minor) { ENTER(gpu->index); *minor = gpu->index; return SUCCESS; }

int nvmlDeviceGetName(device gpu, char *to, u32 size) {
    ENTER(gpu->index);
    return put_name(to, size, directive(c.text, "product", gpu->index), "NVIDIA Stub 80GB");
}

int nvmlDeviceGetUUID(device gpu, char *to, u32 size) {
    ENTER(gpu->index);
    char own[64];
    uuid_of(gpu->index, own, sizeof own);
    return put(to, size, own);
}

/* Bus 0x10 + index, device 0: fake_pci() lays out the same addresses. */
int nvmlDeviceGetPciInfo_v3(device gpu, pci_info *to) {
    ENTER(gpu->index);
    memset(to, 0, sizeof *to);
    to->bus = 0x10 + gpu->index;
    to->device_id = 0x233010de;
    snprintf(to->legacy, sizeof to->legacy, "0000:%02X:00.0", to->bus);
    snprintf(to->id, sizeof to->id, "00000000:%02X:00.0", to->bus);
    return SUCCESS;
}

/* -- numbers: a function each, its values by `value` lines, else those of a healthy GPU ---------------------------- */

#define NUMBER(fn, type, healthy) \
    int fn(device gpu, type *to) { ENTER(gpu->index); *to = (type)given(&c, #fn, gpu->index, 0, healthy); return SUCCESS; }

#define NUMBER_OF(fn, type, healthy) \
    int fn(device gpu, int what, type *to) { \
        (void)what; ENTER(gpu->index); *to = (type)given(&c, #fn, gpu->index, 0, healthy); return SUCCESS; }

/* A structure of a version and N numbers. */
#define VERSIONED(fn, n) \
    int fn(device gpu, u32 *to) { \
        ENTER(gpu->index); \
        if (*to != (sizeof(u32) * (1 + (n)) | 1u << 24)) return VERSION_MISMATCH; \
        for (int i = 0; i < (n); i++) to[1 + i] = (u32)given(&c, #fn, gpu->index, i, 0); \
        return SUCCESS; }

/* A single lane of the first generation, so that the active test on a busy machine copies fast enough. */
NUMBER(nvmlDeviceGetCurrPcieLinkWidth, u32, 1)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth, u32, 1)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration, u32, 1)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration, u32, 1)
NUMBER(nvmlDeviceGetComputeMode, u32, 0)
NUMBER(nvmlDeviceGetPersistenceMode, u32, 1)
NUMBER(nvmlDeviceGetPerformanceState, u32, 8)
NUMBER(nvmlDeviceGetCurrentClocksEventReasons, u64, 1)
NUMBER_OF(nvmlDeviceGetTemperature, u32, 40)
NUMBER_OF(nvmlDeviceGetTemperatureThreshold, u32, 90)
VERSIONED(nvmlDeviceGetUnrepairableMemoryFlag_v1, 1)
VERSIONED(nvmlDeviceGetRepairStatus, 2)

int nvmlDeviceGetMarginTemperature(device gpu, u32 *to) {
    ENTER(gpu->index);
    if (to[0] != 0x1000008) return VERSION_MISMATCH;
    to[1] = (u32)given(&c, __func__, gpu->index, 0, 45);
    return SUCCESS;
}

int nvmlDeviceGetMigMode(device gpu, u32 *current, u32 *pending) {
    ENTER(gpu->index);
    *current = (u32)given(&c, __func__, gpu->index, 0, 0);
    *pending = (u32)given(&c, __func__, gpu->index, 1, 0);
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(device gpu, u32 *gpu_and_memory) {
    ENTER(gpu->index);
    for (int i = 0; i < 2; i++) gpu_and_memory[i] = (u32)given(&c, __func__, gpu->index, i, 0);
    return SUCCESS;
}

/* corrected, uncorrected, pending, failure */
int nvmlDeviceGetRemappedRows(device gpu, u32 *cor, u32 *unc, u32 *pending, u32 *failure) {
    ENTER(gpu->index);
    u32 *to[] = {cor, unc, pending, failure};
    for (int i = 0; i < 4; i++) *to[i] = (u32)given(&c, __func__, gpu->index, i, 0);
    return SUCCESS;
}

/* max, high, partial, low, none */
int nvmlDeviceGetRowRemapperHistogram(device gpu, u32 *to) {
    ENTER(gpu->index);
    for (int i = 0; i < 5; i++) to[i] = (u32)given(&c, __func__, gpu->index, i, i ? 0 : 640);
    return SUCCESS;
}

int nvmlDeviceGetSramEccErrorStatus(device gpu, sram_status *to) {
    ENTER(gpu->index);
    if (to->version != (sizeof *to | 1u << 24)) return VERSION_MISMATCH;
    to->exceeded = (u32)given(&c, __func__, gpu->index, 0, 0);
    return SUCCESS;
}

/* state, status, mask, summary; the default is a node without a fabric */
int nvmlDeviceGetGpuFabricInfoV(device gpu, fabric_info *to) {
    ENTER(gpu->index);
    u32 known = (u32)number(directive(c.text, "fabric", gpu->index), "version", 3), asked = to->version >> 24;
    if (asked > known) return VERSION_MISMATCH;
    to->state = (u32)given(&c, __func__, gpu->index, 0, 0);
    to->status = (int)given(&c, __func__, gpu->index, 1, 0);
    to->mask = (u32)given(&c, __func__, gpu->index, 2, 0);
    if (asked >= 3) to->summary = (unsigned char)given(&c, __func__, gpu->index, 3, 0);
    return SUCCESS;
}

int nvmlDeviceGetNvLinkState(device gpu, u32 link, u32 *active) {
    ENTER(gpu->index);
    const char *line = directive(c.text, "links", gpu->index);
    if (link >= number(line, "n", 18)) return NOT_SUPPORTED;
    *active = !(number(line, "down", 0) >> link & 1);
    return SUCCESS;
}

/* used bytes */
int nvmlDeviceGetMemoryInfo_v2(device gpu, memory_v2 *to) {
    ENTER(gpu->index);
    if (to->version != (sizeof *to | 2u << 24)) return VERSION_MISMATCH;
    to->total = 80ull << 30;
    to->reserved = 512ull << 20;
    to->used = given(&c, __func__, gpu->index, 0, 0);
    to->free = to->total - to->reserved - to->used;
    return SUCCESS;
}

static int processes(const char *line, u32 *n, process_info *to) {
    u32 there = (u32)number(line, "n", 0), room = *n;
    *n = there;
    if (there > room || (there && !to)) return INSUFFICIENT_SIZE;
    for (u32 i = 0; i < there; i++) to[i] = (process_info){1000 + i, 1ull << 30, ~0u, ~0u};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device gpu, u32 *n, process_info *to) {
    ENTER(gpu->index);
    return processes(directive(c.text, "processes", gpu->index), n, to);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device gpu, u32 *n, process_info *to) {
    ENTER(gpu->index);
    return processes(NULL, n, to);
}

/* Fields of a healthy GPU; any other is not supported without a line of its own. */
static const struct { u32 id; int type; u64 value; } FIELDS[] = {
    {3, UNSIGNED_LONG_LONG, 0}, {4, UNSIGNED_LONG_LONG, 0}, {5, UNSIGNED_LONG_LONG, 0}, {6, UNSIGNED_LONG_LONG, 0},
    {94, UNSIGNED_INT, 0}, {161, UNSIGNED_LONG_LONG, 0}, {162, UNSIGNED_LONG_LONG, 0}, {180, UNSIGNED_LONG_LONG, 0},
    {193, SIGNED_INT, (u64)-5}, {194, SIGNED_INT, (u64)-2}, {213, UNSIGNED_LONG_LONG, 0}, {214, UNSIGNED_LONG_LONG, 0},
    {230, UNSIGNED_INT, 0}, {270, UNSIGNED_LONG_LONG, 0}, {271, UNSIGNED_LONG_LONG, 0},
};

int nvmlDeviceGetFieldValues(device gpu, int n, field_value *values) {
    ENTER(gpu->index);
    for (int i = 0; i < n; i++) {
        const char *line = directive(c.text, "field", gpu->index);
        while (line && number(line, "id", 0) != values[i].id) line = after(line, "field", gpu->index);
        values[i] = (field_value){values[i].id, values[i].scope, 0, 0, UNSIGNED_LONG_LONG, line ? SUCCESS : NOT_SUPPORTED, 0};
        for (u32 f = 0; f < sizeof FIELDS / sizeof *FIELDS; f++)
            if (FIELDS[f].id == values[i].id)
                values[i].type = FIELDS[f].type, values[i].value = FIELDS[f].value, values[i].ret = SUCCESS;
        values[i].value = number(line, "value", values[i].value);
        values[i].ret = (int)number(line, "ret", values[i].ret);
    }
    return SUCCESS;
}

/* -- events ----------------------------------------------------------------------------------------------------- */

int nvmlDeviceGetSupportedEventTypes(device gpu, u64 *types) {
    ENTER(gpu->index);
    *types = number(directive(c.text, "types", gpu->index), "mask", 0xf008);
    return SUCCESS;
}

int nvmlEventSetCreate(event_set **to) {
    ENTER(NO_GPU);
    *to = calloc(1, sizeof **to);
    return SUCCESS;
}

int nvmlEventSetFree(event_set *set) { ENTER(NO_GPU); free(set); return SUCCESS; }

/* As with the driver, events from before the registration are not delivered. */
int nvmlDeviceRegisterEvents(device gpu, u64 types, event_set *set) {
    ENTER(gpu->index);
    if (types & ~number(directive(c.text, "types", gpu->index), "mask", 0xf008)) return NOT_SUPPORTED;
    set->mask[gpu->index] |= types;
    for (const char *line = directive(c.text, "event", gpu->index); line; line = after(line, "event", gpu->index))
        if (number(line, "seq", 0) > set->seen[gpu->index]) set->seen[gpu->index] = number(line, "seq", 0);
    return SUCCESS;
}

static int take_event(const control *c, event_set *set, event_data *to) {
    for (const char *line = c->text; line; line = next_line(line)) {
        u64 gpu = number(line, "gpu", MAX_GPUS), seq = number(line, "seq", 0), type = number(line, "type", 0);
        if (!is_word(line, "event") || gpu >= MAX_GPUS || seq <= set->seen[gpu] || !(type & set->mask[gpu])) continue;
        set->seen[gpu] = seq;
        *to = (event_data){handle_of((int)gpu), type, number(line, "data", 0), ~0u, ~0u};
        return 1;
    }
    return 0;
}

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

/* Told of changes by inotify, so that a waiting child costs no CPU; looks once a second anyway. */
static int watch(void) {
    char path[4096];
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    snprintf(path, sizeof path, "%s", getenv("PREWARM_NVML_STUB") ? getenv("PREWARM_NVML_STUB") : "");
    if (fd >= 0) inotify_add_watch(fd, dirname(path), IN_MOVED_TO | IN_CLOSE_WRITE);
    return fd;
}

static void await_change(int watcher, long long left_ms) {
    char events[4096];
    poll(&(struct pollfd){.fd = watcher, .events = POLLIN}, 1, left_ms < 1000 ? (int)left_ms : 1000);
    while (read(watcher, events, sizeof events) > 0) {}
}

int nvmlEventSetWait_v2(event_set *set, event_data *to, u32 timeout_ms) {
    control c;
    long long deadline = now_ms() + timeout_ms, left;
    int watcher = watch(), result;
    while ((result = enter(&c, "nvmlEventSetWait_v2", NO_GPU)) == SUCCESS && !take_event(&c, set, to)) {
        if ((left = deadline - now_ms()) <= 0) { result = TIMEOUT; break; }
        await_change(watcher, left);
    }
    if (watcher >= 0) close(watcher);
    return result;
}
