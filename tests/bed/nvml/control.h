/* What both stubs share: the control file, read again on every call, and what every entry point does first.
 *
 * PREWARM_NVML_STUB names the file. One directive a line, the first match wins, gpu=N narrows it to one GPU:
 *
 *   call fn=<C symbol> err=15 [gpu=N]     that function returns the code
 *   call fn=<C symbol> hang=1 [gpu=N]     it does not return until the line goes
 *   call fn=<C symbol> crash=1 [gpu=N]    it aborts the process
 *   lost gpu=N                            every call that addresses the GPU returns GPU_IS_LOST
 *
 * Only symbols that every glibc since 2.17 has, so that the libraries also load in containers of another base.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
enum { MAX_GPUS = 64, NO_GPU = -1 };

typedef unsigned int u32;
typedef unsigned long long u64;

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
