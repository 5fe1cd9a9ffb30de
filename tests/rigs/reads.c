/* In place of kvtier/codec/_reads.c: a kernel that gives up. N_ENDS reads of a thread end; then none can be waited for. */
#define _DEFAULT_SOURCE
#include "_reads.h"
#include <unistd.h>

enum { MOST = 16 };
typedef struct {
    size_t number;
    ssize_t n_read;
} ended_t;

static _Thread_local ended_t ended[MOST];
static _Thread_local unsigned first, last, n_ends;

void reads_open(reads_t *reads, unsigned n)
{
    (void)n;
    reads->context = N_ENDS > 0;
    first = last = n_ends = 0;
}

void reads_close(reads_t *reads) { reads->context = 0; }

int reads_begin(reads_t *reads, int descriptor, void *memory, size_t n_bytes, long long offset, size_t number)
{
    if (!reads->context)
        return 0;
    ended[last++ % MOST] = (ended_t){number, pread(descriptor, memory, n_bytes, (off_t)offset)};
    return 1;
}

int reads_end(reads_t *reads, size_t *number, long long *n_read)
{
    if (!reads->context || first == last || n_ends == N_ENDS) {
        reads->context = 0;
        return 0;
    }
    n_ends++;
    *number = ended[first % MOST].number;
    *n_read = ended[first++ % MOST].n_read;
    return 1;
}
