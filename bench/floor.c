/*
 * The floor of this machine for `bench.hydrate`: what a program does that has nothing to do but to move the bytes.
 * Threads send ranged GETs, receive into aligned buffers, write with O_DIRECT into preallocated files. No proof, no
 * journal, no retry: any surprise ends it.
 *
 *     floor both|source|disk ADDRESS PORT THREADS PART_MIB < PLAN
 *
 * PLAN has a line for each object: SIZE FILE REQUEST-TARGET (a presigned path and query). `source` drops what it
 * receives; `disk` receives nothing and writes as many bytes in order, from one thread.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define BLOCK 4096
#define HUGE_PAGE (2UL << 20)
#define HEAD 16384

struct object {
    long size;
    char *file, *target;
    int fd; /* -1: made by the thread that has its one part */
};

struct part {
    struct object *object;
    long offset, length;
};

static enum { BOTH, SOURCE, DISK } mode;
static struct sockaddr_in server;
static const char *host;
static int port;
static long part_bytes;
static struct part *parts;
static long part_count;
static atomic_long next_part;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static long padded(long n)
{
    return (n + BLOCK - 1) / BLOCK * BLOCK;
}

static char *buffer_of(long bytes)
{
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *buffer = aligned_alloc(HUGE_PAGE, bytes);
    if (!buffer)
        die("aligned_alloc");
    madvise(buffer, bytes, MADV_HUGEPAGE);
    return buffer;
}

static int make(struct object *object)
{
    int fd = open(object->file, O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0644);
    if (fd < 0)
        die(object->file);
    if (object->size && (errno = posix_fallocate(fd, 0, padded(object->size))))
        die("fallocate");
    return fd;
}

static void write_all(int fd, const char *buffer, long length, long offset)
{
    for (long done = 0; done < length;) {
        long n = pwrite(fd, buffer + done, length - done, offset + done);
        if (n <= 0)
            die("pwrite");
        done += n;
    }
}

static int dial(void)
{
    int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (s < 0 || connect(s, (struct sockaddr *)&server, sizeof server))
        die("connect");
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return s;
}

static void receive(int s, const struct part *part, char *buffer)
{
    static __thread char head[HEAD + 1];
    int asked = snprintf(head, HEAD, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nRange: bytes=%ld-%ld\r\n\r\n",
                         part->object->target, host, port, part->offset, part->offset + part->length - 1);
    if (asked >= HEAD || send(s, head, asked, 0) != asked)
        die("send");
    long have = 0;
    char *end = NULL;
    while (!end) {
        long n = recv(s, head + have, HEAD - have, 0);
        if (n <= 0)
            die("recv head");
        have += n;
        head[have] = 0;
        end = strstr(head, "\r\n\r\n");
    }
    if (strncmp(head, "HTTP/1.1 206", 12)) {
        fprintf(stderr, "%.200s\n", head);
        exit(1);
    }
    long got = have - (end + 4 - head);
    memcpy(buffer, end + 4, got);
    while (got < part->length) {
        long n = recv(s, buffer + got, part->length - got, MSG_WAITALL);
        if (n <= 0)
            die("recv body");
        got += n;
    }
}

static void *work(void *unused)
{
    char *buffer = buffer_of(part_bytes + BLOCK);
    int s = dial();
    for (long n; (n = atomic_fetch_add(&next_part, 1)) < part_count;) {
        struct part *part = &parts[n];
        receive(s, part, buffer);
        if (mode == SOURCE)
            continue;
        int alone = part->object->fd < 0, fd = alone ? make(part->object) : part->object->fd;
        write_all(fd, buffer, padded(part->length), part->offset);
        if (alone && (ftruncate(fd, part->object->size) || close(fd)))
            die("finish");
    }
    close(s);
    return unused;
}

static void write_in_order(struct object *objects, long count)
{
    char *buffer = buffer_of(part_bytes);
    memset(buffer, 7, part_bytes);
    for (long n = 0; n < count; n++) {
        int fd = make(&objects[n]);
        for (long offset = 0; offset < objects[n].size; offset += part_bytes) {
            long left = objects[n].size - offset;
            write_all(fd, buffer, padded(left < part_bytes ? left : part_bytes), offset);
        }
        if (ftruncate(fd, objects[n].size) || close(fd))
            die("finish");
    }
}

static struct object *read_plan(long *count)
{
    struct object *objects = NULL;
    char file[4096], target[8192];
    for (long size, n = 0; scanf("%ld %4095s %8191s", &size, file, target) == 3; *count = ++n) {
        objects = realloc(objects, (n + 1) * sizeof *objects);
        objects[n] = (struct object){size, strdup(file), strdup(target), -1};
    }
    return objects;
}

static void cut(struct object *objects, long count)
{
    for (long n = 0; n < count; n++)
        part_count += (objects[n].size + part_bytes - 1) / part_bytes;
    parts = calloc(part_count, sizeof *parts);
    struct part *part = parts;
    for (long n = 0; n < count; n++) {
        if (mode == BOTH && objects[n].size > part_bytes)
            objects[n].fd = make(&objects[n]);
        for (long offset = 0; offset < objects[n].size; offset += part_bytes) {
            long left = objects[n].size - offset;
            *part++ = (struct part){&objects[n], offset, left < part_bytes ? left : part_bytes};
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return fprintf(stderr, "usage: floor both|source|disk ADDRESS PORT THREADS PART_MIB < PLAN\n"), 2;
    mode = !strcmp(argv[1], "both") ? BOTH : !strcmp(argv[1], "source") ? SOURCE : DISK;
    host = argv[2], port = atoi(argv[3]);
    long threads = atol(argv[4]), count = 0;
    part_bytes = atol(argv[5]) << 20;
    server.sin_family = AF_INET, server.sin_port = htons(port);
    inet_pton(AF_INET, host, &server.sin_addr);
    struct object *objects = read_plan(&count);
    if (mode == DISK)
        return write_in_order(objects, count), 0;
    cut(objects, count);
    pthread_t *running = calloc(threads, sizeof *running);
    for (long n = 0; n < threads; n++)
        if (pthread_create(&running[n], NULL, work, NULL))
            die("thread");
    for (long n = 0; n < threads; n++)
        pthread_join(running[n], NULL);
    for (long n = 0; n < count; n++)
        if (objects[n].fd >= 0 && (ftruncate(objects[n].fd, objects[n].size) || close(objects[n].fd)))
            die("finish");
    return 0;
}
