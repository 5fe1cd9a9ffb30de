/* Reads that wait for the disk side by side, asked for and taken by one thread. */
#ifndef KVTIER_READS_H
#define KVTIER_READS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    unsigned long context; /* the kernel's name for them; 0: there is none, and no read is taken */
} reads_t;

/* Room for `n` reads at a time. Where the kernel has none, or a sandbox forbids it, no read will be taken. */
void reads_open(reads_t *reads, unsigned n);

/* Waits for what is under way. */
void reads_close(reads_t *reads);

/* Whether the read was taken. `memory` is the kernel's until `reads_end` names `number`. */
int reads_begin(reads_t *reads, int descriptor, void *memory, size_t n_bytes, long long offset, size_t number);

/* Waits for one that ends: which it was, and how many bytes it gave; below zero, an error. 0 if none can be waited for,
 * and then none is under way any more, and none will be taken. */
int reads_end(reads_t *reads, size_t *number, long long *n_read);

#endif
