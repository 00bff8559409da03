/* libcuda.so.1 without a GPU: the entry points of the active test, in host memory. It cannot run PTX: it knows the test's four
 * kernels by name and does what they would do. Beside the directives of control.h, which hold here too:
 *
 *   cuda wrong=memory|product|copy        one word of it is wrong
 *   cuda free=<bytes>                     what cuMemGetInfo says
 *   cuda slow=<milliseconds>              each copy takes that long
 */
#include <stdint.h>

#include "control.h"

enum { NO_DEVICE = 100, NOT_FOUND = 500 };

static int cuda_is(const control *c, const char *key, const char *word) {
    const char *line = directive(c->text, "cuda", NO_GPU);
    return line && is_word(value_of(line, key), word);
}

static u64 cuda_number(const control *c, const char *key, u64 otherwise) {
    return number(directive(c->text, "cuda", NO_GPU), key, otherwise);
}

int cuInit(u32 flags) { (void)flags; ENTER(NO_GPU); return SUCCESS; }
int cuDeviceGet(int *to, int index) { ENTER(NO_GPU); *to = 0; return index ? NO_DEVICE : SUCCESS; }
int cuDevicePrimaryCtxRetain(void **to, int gpu) { (void)gpu; ENTER(NO_GPU); *to = to; return SUCCESS; }
int cuCtxSetCurrent(void *context) { (void)context; ENTER(NO_GPU); return SUCCESS; }
int cuCtxSynchronize(void) { ENTER(NO_GPU); return SUCCESS; }
int cuModuleLoadData(void **to, const char *ptx) { ENTER(NO_GPU); *to = to; return strstr(ptx, ".entry product") ? SUCCESS : 218; }

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    ENTER(NO_GPU);
    *free_bytes = cuda_number(&c, "free", 79ull << 30);
    *total = 80ull << 30;
    return SUCCESS;
}

int cuMemAlloc_v2(u64 *to, size_t size) { ENTER(NO_GPU); *to = (u64)(uintptr_t)malloc(size); return SUCCESS; }
int cuMemAllocHost_v2(void **to, size_t size) { ENTER(NO_GPU); *to = malloc(size); return SUCCESS; }
int cuMemFree_v2(u64 p) { ENTER(NO_GPU); free((void *)(uintptr_t)p); return SUCCESS; }

int cuMemsetD32_v2(u64 p, u32 value, size_t n) {
    ENTER(NO_GPU);
    for (size_t i = 0; i < n; i++) ((u32 *)(uintptr_t)p)[i] = value;
    return SUCCESS;
}

int cuMemcpyDtoH_v2(void *to, u64 from, size_t size) { ENTER(NO_GPU); memcpy(to, (void *)(uintptr_t)from, size); return SUCCESS; }

static void copy(const control *c, void *to, const void *from, size_t size) {
    u64 slow = cuda_number(c, "slow", 0);
    nanosleep(&(struct timespec){.tv_sec = (time_t)(slow / 1000), .tv_nsec = (long)(slow % 1000) * 1000000}, NULL);
    memcpy(to, from, size);
}

int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t size, void *stream) {
    (void)stream; ENTER(NO_GPU); copy(&c, (void *)(uintptr_t)to, from, size); return SUCCESS;
}

int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t size, void *stream) {
    (void)stream; ENTER(NO_GPU);
    copy(&c, to, (const void *)(uintptr_t)from, size);
    if (cuda_is(&c, "wrong", "copy")) ((char *)to)[size / 2] ^= 1;
    return SUCCESS;
}

int cuModuleGetFunction(const char **to, void *module, const char *name) {
    static const char *const KERNELS[] = {"fill", "check", "matrices", "product"};
    (void)module;
    ENTER(NO_GPU);
    for (u32 k = 0; k < sizeof KERNELS / sizeof *KERNELS; k++)
        if (!strcmp(*to = KERNELS[k], name)) return SUCCESS;
    return NOT_FOUND;
}

static void product(u32 *to, const u32 *a, const u32 *b, u32 size) {
    memset(to, 0, 4ull * size * size);
    for (u32 i = 0; i < size; i++)
        for (u32 k = 0; k < size; k++)
            for (u32 j = 0; j < size; j++) to[i * size + j] += a[i * size + k] * b[k * size + j];
}

#define ARGUMENT(n, type) (*(type *)arguments[n])
#define WORDS(n) ((u32 *)(uintptr_t)ARGUMENT(n, u64))

int cuLaunchKernel(const char *kernel, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared, void *stream,
                   void **arguments, void **extra) {
    (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz, (void)shared, (void)stream, (void)extra;
    ENTER(NO_GPU);
    u32 *p = WORDS(0);
    u64 n = ARGUMENT(1, u64);
    if (!strcmp(kernel, "fill")) {
        for (u64 i = 0; i < n; i++) p[i] = ARGUMENT(2, u32) + (u32)i * ARGUMENT(3, u32);
        if (cuda_is(&c, "wrong", "memory")) p[n / 2] ^= 0x100;
    } else if (!strcmp(kernel, "check")) {
        for (u64 i = 0; i < n; i++) *WORDS(4) += p[i] != ARGUMENT(2, u32) + (u32)i * ARGUMENT(3, u32);
    } else if (!strcmp(kernel, "matrices")) {
        u32 size = ARGUMENT(3, u32);
        for (u64 i = 0; i < n; i++) p[i] = (u32)(i / size + i % size), WORDS(2)[i] = (u32)((i / size) * (i % size) + 1);
    } else if (!strcmp(kernel, "product")) {
        product(p, WORDS(2), WORDS(3), ARGUMENT(4, u32));
        if (cuda_is(&c, "wrong", "product")) p[n - 1] ^= 1;
    }
    return SUCCESS;
}
