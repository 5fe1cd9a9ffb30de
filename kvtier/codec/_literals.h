/* The literals of a zstd frame (RFC 8878) without zstd: frame -> its bytes, block by block.
 *
 * Only the frames that kvtier writes: one-segment or not, no dictionary, no checksum, blocks that are raw, of one byte,
 * or literals in four Huffman streams with no sequence behind them. Whatever else there is, damage above all, is left to
 * zstd. Any input is safe: nothing is read outside the source or written outside the room given. */
#ifndef KVTIER_LITERALS_H
#define KVTIER_LITERALS_H
#include <stddef.h>
#include <stdint.h>

enum { LITERALS_WINDOW = 11 }; /* bits looked up at once; no code of zstd's is longer */

typedef struct {
    const uint8_t *at, *end;
    uint64_t n_declared, window; /* bytes of the whole, and bytes back that its matches might reach */
    int last, has_table;
    /* tables[(1 << b) + i]: the symbols that b bits of value i hold whole; b = LITERALS_WINDOW decodes, the others make
     * it. Byte 0: bits of all symbols; bytes 1 to 5: the symbols; byte 6: bits of the first; byte 7: how many. */
    uint64_t tables[2 << LITERALS_WINDOW];
} literals_t;

/* Whether the frame may be one of ours, which say how long they are. What its header declares is the caller's to check. */
int literals_begin(literals_t *state, const uint8_t *source, size_t n_bytes);

/* Decode the next block to `out`: its bytes, at most `room`; -1 if the frame is to be left to zstd. */
ptrdiff_t literals_next(literals_t *state, uint8_t *out, size_t room);

#endif
