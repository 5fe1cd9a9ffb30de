/* Reads by the kernel's own asynchronous I/O (io_submit(2)): direct reads then wait for the disk without a thread each.
 * Not io_uring: container runtimes forbid that by default, and these reads are too large to gain by it. */
#define _GNU_SOURCE
#include "_reads.h"
#include <errno.h>
#if defined(__linux__) && defined(__has_include)
#if __has_include(<linux/aio_abi.h>)
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#if defined(SYS_io_setup) && defined(SYS_io_submit) && defined(SYS_io_getevents) && defined(SYS_io_destroy)

void reads_open(reads_t *reads, unsigned n)
{
    aio_context_t context = 0;
    reads->context = syscall(SYS_io_setup, n, &context) ? 0 : (unsigned long)context;
}

void reads_close(reads_t *reads)
{
    if (reads->context)
        syscall(SYS_io_destroy, (aio_context_t)reads->context);
    reads->context = 0;
}

int reads_begin(reads_t *reads, int descriptor, void *memory, size_t n_bytes, long long offset, size_t number)
{
    struct iocb read = {0}, *asked = &read;
    if (!reads->context)
        return 0;
    read.aio_data = number;
    read.aio_lio_opcode = IOCB_CMD_PREAD;
    read.aio_fildes = (uint32_t)descriptor;
    read.aio_buf = (uintptr_t)memory;
    read.aio_nbytes = n_bytes;
    read.aio_offset = offset;
    return syscall(SYS_io_submit, (aio_context_t)reads->context, 1L, &asked) == 1;
}

int reads_end(reads_t *reads, size_t *number, long long *n_read)
{
    struct io_event ended;
    long n;
    if (!reads->context)
        return 0;
    do
        n = syscall(SYS_io_getevents, (aio_context_t)reads->context, 1L, 1L, &ended, NULL);
    while (n < 0 && errno == EINTR);
    if (n != 1) {
        reads_close(reads);
        return 0;
    }
    *number = (size_t)ended.data;
    *n_read = ended.res;
    return 1;
}

#else

void reads_open(reads_t *reads, unsigned n)
{
    (void)n;
    reads->context = 0;
}

void reads_close(reads_t *reads) { (void)reads; }

int reads_begin(reads_t *reads, int descriptor, void *memory, size_t n_bytes, long long offset, size_t number)
{
    (void)reads, (void)descriptor, (void)memory, (void)n_bytes, (void)offset, (void)number;
    return 0;
}

int reads_end(reads_t *reads, size_t *number, long long *n_read)
{
    (void)reads, (void)number, (void)n_read;
    return 0;
}

#endif
