/* Frames on stdin, each behind its length and the room for what it holds (32 bits each) -> the literals of each on
 * stdout behind their length, -1 for what is left to zstd. Buffers are as long as said and no byte longer. */
#include "_literals.h"
#include <stdio.h>
#include <stdlib.h>

static ptrdiff_t decode(const uint8_t *source, size_t n_bytes, uint8_t *out, size_t room)
{
    static literals_t state;
    size_t n_out = 0;
    if (!literals_begin(&state, source, n_bytes))
        return -1;
    do {
        ptrdiff_t n = literals_next(&state, out + n_out, room - n_out);
        if (n < 0)
            return -1;
        n_out += (size_t)n;
    } while (!state.last);
    return state.at == state.end ? (ptrdiff_t)n_out : -1;
}

int main(void)
{
    uint32_t lengths[2];
    while (fread(lengths, sizeof lengths, 1, stdin) == 1) {
        uint8_t *source = malloc(lengths[0]), *out = malloc(lengths[1]);
        int64_t n;
        if (fread(source, 1, lengths[0], stdin) != lengths[0])
            return 1;
        n = decode(source, lengths[0], out, lengths[1]);
        fwrite(&n, sizeof n, 1, stdout);
        if (n > 0)
            fwrite(out, 1, (size_t)n, stdout);
        free(source);
        free(out);
    }
    return 0;
}
