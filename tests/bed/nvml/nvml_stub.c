/* libnvidia-ml.so.1 without a GPU: answers unmodified pynvml from a control file that is read again on every call.
 *
 * PREWARM_NVML_STUB names the file; without one the driver is "not loaded". Written by Control in __init__.py, one
 * directive a line, the first match wins, gpu=N narrows it to one GPU:
 *
 *   gpus n=8                              how many there are
 *   driver name=580.95.05                 nvmlSystemGetDriverVersion
 *   call fn=<C symbol> err=15 [gpu=N]     that function returns the code
 *   call fn=<C symbol> hang=1 [gpu=N]     it does not return until the line goes
 *   call fn=<C symbol> crash=1 [gpu=N]    it aborts the process
 *   lost gpu=N                            every call that addresses the GPU returns GPU_IS_LOST
 *   field id=230 value=2 ret=0 [gpu=N]    one value of nvmlDeviceGetFieldValues
 *   remap cor=0 unc=0 pending=1 failure=0 [gpu=N]
 *   ecc volatile=0 aggregate=0 [gpu=N]    uncorrected errors
 *   types mask=0xb008 [gpu=N]             nvmlDeviceGetSupportedEventTypes
 *   event seq=7 gpu=N type=8 data=79      delivered once to each event set that registered GPU N before it was written
 *
 * Only symbols that every glibc since 2.17 has, so that the library also loads in containers of another base.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25 };
enum { MAX_GPUS = 64, NO_GPU = -1 };

typedef unsigned int u32;
typedef unsigned long long u64;
typedef struct { int index; } *device;
typedef struct { char legacy[16]; u32 domain, bus, device, device_id, subsystem_id; char id[32]; } pci_info;
typedef struct { u32 id, scope; long long timestamp, latency; int type, ret; u64 value; } field_value;
typedef struct { u32 version; u64 total, reserved, free, used; } memory_v2;
typedef struct { device gpu; u64 type, data; u32 gpu_instance, compute_instance; } event_data;
typedef struct { u64 mask[MAX_GPUS], seen[MAX_GPUS]; } event_set;

static struct { int index; } gpus[MAX_GPUS];

/* -- the control file ------------------------------------------------------------------------------------------- */

typedef struct { char text[65536]; } control;

static int load(control *c) {
    const char *path = getenv("PREWARM_NVML_STUB");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return 0;
    ssize_t got, size = 0;
    while ((got = read(fd, c->text + size, sizeof c->text - 1 - size)) > 0) size += got;
    c->text[size] = 0;
    close(fd);
    return 1;
}

/* The text after `key=` on this line, or NULL. */
static const char *value_of(const char *line, const char *key) {
    size_t length = strlen(key);
    for (const char *at = strchr(line, ' '); at; at = strpbrk(at + 1, " \n")) {
        if (*at == '\n') return NULL;
        if (!strncmp(at + 1, key, length) && at[1 + length] == '=') return at + length + 2;
    }
    return NULL;
}

static u64 number(const char *line, const char *key, u64 otherwise) {
    const char *text = line ? value_of(line, key) : NULL;
    return text ? strtoull(text, NULL, 0) : otherwise;
}

static int is_word(const char *text, const char *word) {
    size_t length = strlen(word);
    return text && !strncmp(text, word, length) && strchr(" \n", text[length]);
}

static const char *next_line(const char *line) {
    const char *end = strchr(line, '\n');
    return end && end[1] ? end + 1 : NULL;
}

/* First line that starts with `word` and does not name another GPU. */
static const char *directive(const char *line, const char *word, int gpu) {
    for (; line; line = next_line(line))
        if (is_word(line, word) && (!value_of(line, "gpu") || (int)number(line, "gpu", 0) == gpu)) return line;
    return NULL;
}

static const char *after(const char *line, const char *word, int gpu) {
    return next_line(line) ? directive(next_line(line), word, gpu) : NULL;
}

static int count(const control *c) {
    u64 n = number(directive(c->text, "gpus", NO_GPU), "n", 0);
    return n < MAX_GPUS ? (int)n : MAX_GPUS;
}

static void nap(void) { nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL); }

/* What every entry point does first: reads the file, then fails, hangs or crashes as it says. */
static int enter(control *c, const char *fn, int gpu) {
again:
    if (!load(c)) return DRIVER_NOT_LOADED;
    for (const char *line = directive(c->text, "call", gpu); line; line = after(line, "call", gpu)) {
        if (!is_word(value_of(line, "fn"), fn)) continue;
        if (number(line, "crash", 0)) abort();
        if (number(line, "hang", 0)) { nap(); goto again; }
        return (int)number(line, "err", SUCCESS);
    }
    return gpu != NO_GPU && directive(c->text, "lost", gpu) ? GPU_IS_LOST : SUCCESS;
}

#define ENTER(gpu) \
    control c; \
    int failed = enter(&c, __func__, gpu); \
    if (failed) return failed

static int put(char *to, u32 size, const char *text) {
    return (u32)snprintf(to, size, "%s", text) < size ? SUCCESS : INSUFFICIENT_SIZE;
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
    const char *line = directive(c.text, "driver", NO_GPU), *name = line ? value_of(line, "name") : NULL;
    char version[80] = "580.95.05";
    if (name) snprintf(version, sizeof version, "%.*s", (int)strcspn(name, " \n"), name);
    return put(to, size, version);
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
int nvmlDeviceGetName(device gpu, char *to, u32 size) { ENTER(gpu->index); return put(to, size, "NVIDIA Stub 80GB"); }

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

int nvmlDeviceGetMemoryInfo(device gpu, u64 *total_free_used) {
    ENTER(gpu->index);
    total_free_used[0] = total_free_used[1] = 80ull << 30;
    total_free_used[2] = 0;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(device gpu, memory_v2 *to) {
    ENTER(gpu->index);
    if (to->version != (sizeof *to | 2u << 24)) return VERSION_MISMATCH;
    to->total = 80ull << 30;
    to->reserved = 512ull << 20;
    to->free = to->total - to->reserved;
    to->used = 0;
    return SUCCESS;
}

/* -- health ----------------------------------------------------------------------------------------------------- */

int nvmlDeviceGetRemappedRows(device gpu, u32 *cor, u32 *unc, u32 *pending, u32 *failure) {
    ENTER(gpu->index);
    const char *line = directive(c.text, "remap", gpu->index);
    *cor = (u32)number(line, "cor", 0);
    *unc = (u32)number(line, "unc", 0);
    *pending = (u32)number(line, "pending", 0);
    *failure = (u32)number(line, "failure", 0);
    return SUCCESS;
}

/* error type 0 corrected, 1 uncorrected; counter 0 volatile, 1 aggregate */
int nvmlDeviceGetTotalEccErrors(device gpu, int type, int counter, u64 *errors) {
    ENTER(gpu->index);
    const char *line = directive(c.text, "ecc", gpu->index);
    *errors = type == 1 ? number(line, counter ? "aggregate" : "volatile", 0) : 0;
    return SUCCESS;
}

/* Without a line of its own field 230 (recovery action) says "none"; any other field is not supported. */
int nvmlDeviceGetFieldValues(device gpu, int n, field_value *values) {
    ENTER(gpu->index);
    for (int i = 0; i < n; i++) {
        const char *line = directive(c.text, "field", gpu->index);
        while (line && number(line, "id", 0) != values[i].id) line = after(line, "field", gpu->index);
        values[i].ret = (int)number(line, "ret", line || values[i].id == 230 ? SUCCESS : NOT_SUPPORTED);
        values[i].value = number(line, "value", 0);
        values[i].type = values[i].id == 230 ? 1 : 3; /* unsigned int : unsigned long long */
        values[i].timestamp = values[i].latency = 0;
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
