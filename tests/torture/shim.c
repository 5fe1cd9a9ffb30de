/* Loaded into a process with LD_PRELOAD: makes file I/O below one directory fail or take its time, as a control file says.
 *
 * KVTIER_SHIM_PREFIX is the directory, KVTIER_SHIM_CONTROL a file of 5 native ints that the test maps and changes while the process runs:
 * errno of writes, of reads, of syncs, of opens (0: none fails), and milliseconds by which reads, writes and syncs are delayed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE, READ, SYNC, OPEN, DELAY_MS, N };

static volatile int *control;
static char prefix[PATH_MAX];
static size_t prefix_length;

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("KVTIER_SHIM_CONTROL"), *below = getenv("KVTIER_SHIM_PREFIX");
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    if (!path || !below) return;
    int fd = real_open(path, O_RDONLY);
    if (fd < 0) return;
    void *map = mmap(NULL, N * sizeof(int), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED) return;
    snprintf(prefix, sizeof prefix, "%s/", below);
    prefix_length = strlen(prefix);
    control = map;
}

static int is_ours(int fd) {
    char link[64], target[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, target, sizeof target - 1);
    return n >= (ssize_t)prefix_length && !strncmp(target, prefix, prefix_length);
}

/* -1 and errno set when the call is to fail, else 0, after the delay. */
static int fault(int what, int fd) {
    if (!control || !(control[what] || control[DELAY_MS]) || !is_ours(fd)) return 0;
    /* In short naps, so that a test can end a delay early. */
    for (int waited_ms = 0; waited_ms < control[DELAY_MS]; waited_ms += 10) {
        struct timespec nap = {0, 10 * 1000 * 1000};
        nanosleep(&nap, NULL);
    }
    if (!control[what]) return 0;
    errno = control[what];
    return -1;
}

#define WRAP(type, name, what, parameters, arguments)                       \
    type name parameters {                                                  \
        static type (*real) parameters;                                     \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name);      \
        return fault(what, fd) ? -1 : real arguments;                       \
    }

WRAP(ssize_t, write, WRITE, (int fd, const void *b, size_t n), (fd, b, n))
WRAP(ssize_t, pwrite, WRITE, (int fd, const void *b, size_t n, off_t at), (fd, b, n, at))
WRAP(ssize_t, pwrite64, WRITE, (int fd, const void *b, size_t n, off64_t at), (fd, b, n, at))
WRAP(ssize_t, writev, WRITE, (int fd, const struct iovec *v, int n), (fd, v, n))
WRAP(ssize_t, pwritev, WRITE, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
WRAP(ssize_t, pwritev64, WRITE, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
WRAP(ssize_t, pread, READ, (int fd, void *b, size_t n, off_t at), (fd, b, n, at))
WRAP(ssize_t, pread64, READ, (int fd, void *b, size_t n, off64_t at), (fd, b, n, at))
WRAP(ssize_t, preadv, READ, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
WRAP(ssize_t, preadv64, READ, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
WRAP(ssize_t, preadv2, READ, (int fd, const struct iovec *v, int n, off_t at, int flags), (fd, v, n, at, flags))
WRAP(ssize_t, preadv64v2, READ, (int fd, const struct iovec *v, int n, off64_t at, int flags), (fd, v, n, at, flags))
WRAP(int, fsync, SYNC, (int fd), (fd))
WRAP(int, fdatasync, SYNC, (int fd), (fd))

static int fails_to_open(const char *path) {
    if (!control || !control[OPEN] || strncmp(path, prefix, prefix_length)) return 0;
    errno = control[OPEN];
    return 1;
}

#define WRAP_OPEN(name)                                                     \
    int name(const char *path, int flags, ...) {                            \
        static int (*real)(const char *, int, ...);                         \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = va_arg(rest, mode_t);                                 \
        va_end(rest);                                                       \
        if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        return fails_to_open(path) ? -1 : real(path, flags, mode);          \
    }

WRAP_OPEN(open)
WRAP_OPEN(open64)
