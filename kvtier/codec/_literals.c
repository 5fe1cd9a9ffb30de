/* See _literals.h. Made for the bytes of KV: about 3 bits a symbol, so that a look at 11 bits finds several of them. */
#include "_literals.h"
#include <string.h>

#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__)
#define USABLE (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#else
#define USABLE 0
#endif

enum {
    WINDOW = LITERALS_WINDOW,
    MOST_WEIGHTS = 256,
    MOST_STATES_LOG = 6,
    LEAST_CODE = 2,              /* bits; with shorter ones an entry would have to hold more symbols than it can */
    MOST_SYMBOLS = WINDOW / LEAST_CODE,
    LOOKS = 5,                   /* between two refills: at most 55 bits, and 7 of a byte that was begun before */
    REFILL = 7,                  /* bytes that a refill takes, at most */
    STORE = 8,                   /* bytes that a look stores, of which the first are meant */
    MOST_BLOCK_BYTES = 1 << 17,
    N_STREAMS = 4,
};

static uint64_t load64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static size_t load(const uint8_t *at, int n_bytes)
{
    size_t word = 0;
    while (n_bytes-- > 0)
        word = word << 8 | at[n_bytes];
    return word;
}

static int top_bit(unsigned value) { return 31 - __builtin_clz(value); }

/* ---- bits that are read from the last to the first, as entropy coders leave them ---- */

typedef struct {
    const uint8_t *start;
    ptrdiff_t left; /* bits not read yet; below zero when more were taken than there are */
} backward_t;

/* The highest bit that is set in the last byte marks the end. */
static int backward_begin(backward_t *bits, const uint8_t *start, size_t n_bytes)
{
    if (!n_bytes || !start[n_bytes - 1])
        return 0;
    bits->start = start;
    bits->left = 8 * (ptrdiff_t)(n_bytes - 1) + top_bit(start[n_bytes - 1]);
    return 1;
}

/* The next `n` bits, at most WINDOW; zeros in the place of those that are not there. */
static unsigned backward_peek(const backward_t *bits, int n)
{
    ptrdiff_t from = bits->left - n, byte = (bits->left - 1) >> 3;
    unsigned word = 0;
    if (bits->left <= 0)
        return 0;
    for (; byte >= 0 && 8 * byte > from - 8; byte--)
        word = word << 8 | bits->start[byte];
    byte += 1;
    word = from >= 8 * byte ? word >> (from - 8 * byte) : word << (8 * byte - from);
    return word & ((1u << n) - 1);
}

static unsigned backward_take(backward_t *bits, int n)
{
    unsigned value = backward_peek(bits, n);
    bits->left -= n;
    return value;
}

/* ---- a Huffman code, told by the weight of each symbol ---- */

typedef struct {
    uint8_t symbol, n_bits, base;
} state_t;

/* `n` bits from bit `at` on, zeros behind the end. */
static unsigned forward_peek(const uint8_t *source, size_t n_bytes, size_t at, int n)
{
    unsigned word = 0;
    for (size_t byte = at / 8; byte < n_bytes && byte < at / 8 + 3; byte++)
        word |= (unsigned)source[byte] << 8 * (byte - at / 8);
    return word >> at % 8 & ((1u << n) - 1);
}

/* How probable each weight is, in parts of 1 << log; -1 is the least there is. Bytes read, 0 if this is no such thing. */
static size_t read_probabilities(const uint8_t *source, size_t n_bytes, int of[WINDOW + 1], int *log)
{
    size_t at = 4;
    int n = 0, left;
    *log = 5 + (int)forward_peek(source, n_bytes, 0, 4);
    if (*log > MOST_STATES_LOG)
        return 0;
    for (left = 1 << *log; left > 0;) {
        int n_bits = top_bit((unsigned)left + 1) + 1, half = 1 << (n_bits - 1), n_short = 2 * half - 2 - left;
        int value = (int)forward_peek(source, n_bytes, at, n_bits), low = value & (half - 1);
        if (n > WINDOW)
            return 0;
        at += (size_t)n_bits;
        if (low < n_short) {
            value = low;
            at--;
        } else if (value >= half)
            value -= n_short;
        of[n++] = value - 1;
        left -= value ? value - 1 : 1;
        if (value == 1) { /* never; how many more of these, in threes */
            unsigned more;
            do {
                more = forward_peek(source, n_bytes, at, 2);
                at += 2;
                for (unsigned i = 0; i < more; i++) {
                    if (n > WINDOW)
                        return 0;
                    of[n++] = 0;
                }
            } while (more == 3);
        }
    }
    while (n <= WINDOW)
        of[n++] = 0;
    at = (at + 7) / 8;
    return left < 0 || at > n_bytes ? 0 : at;
}

static void make_states(const int of[WINDOW + 1], int log, state_t *states)
{
    unsigned size = 1u << log, at = 0, high = size, next[WINDOW + 1];
    for (unsigned weight = 0; weight <= WINDOW; weight++) {
        next[weight] = of[weight] < 0 ? 1 : (unsigned)of[weight];
        if (of[weight] < 0)
            states[--high].symbol = (uint8_t)weight;
    }
    for (unsigned weight = 0; weight <= WINDOW; weight++)
        for (int i = 0; i < of[weight]; i++) {
            states[at].symbol = (uint8_t)weight;
            do
                at = (at + (size >> 1) + (size >> 3) + 3) & (size - 1);
            while (at >= high);
        }
    for (unsigned i = 0; i < size; i++) {
        unsigned state = next[states[i].symbol]++;
        states[i].n_bits = (uint8_t)(log - top_bit(state));
        states[i].base = (uint8_t)((state << states[i].n_bits) - size);
    }
}

/* The weights from two states that take turns. How many; 0 if this is no such thing. */
static int read_weights_by_states(const uint8_t *source, size_t n_bytes, uint8_t weights[MOST_WEIGHTS])
{
    int of[WINDOW + 1], log, n = 0;
    size_t n_read = read_probabilities(source, n_bytes, of, &log);
    state_t states[1 << MOST_STATES_LOG];
    unsigned now, other;
    backward_t bits;
    if (!n_read || !backward_begin(&bits, source + n_read, n_bytes - n_read))
        return 0;
    make_states(of, log, states);
    now = backward_take(&bits, log);
    other = backward_take(&bits, log);
    while (bits.left >= 0 && n < MOST_WEIGHTS - 2) {
        unsigned next = states[now].base + backward_take(&bits, states[now].n_bits);
        weights[n++] = states[now].symbol;
        now = other;
        other = next;
    }
    if (bits.left >= 0 || !n)
        return 0;
    weights[n++] = states[now].symbol;
    return n;
}

/* Bytes of the description; 0 if it is none, or one of a code that is left to zstd. */
static size_t read_weights(const uint8_t *source, size_t n_bytes, uint8_t weights[MOST_WEIGHTS], int *n_weights, int *log)
{
    size_t n_read;
    unsigned sum = 0, n_longest = 0, rest;
    int n;
    if (!n_bytes)
        return 0;
    if (source[0] < 128) {
        n_read = 1 + (size_t)source[0];
        n = n_read <= n_bytes ? read_weights_by_states(source + 1, n_read - 1, weights) : 0;
    } else {
        n = source[0] - 127;
        n_read = 1 + ((size_t)n + 1) / 2;
        for (int i = 0; n_read <= n_bytes && i < n; i++)
            weights[i] = i % 2 ? source[1 + i / 2] & 15 : source[1 + i / 2] >> 4;
    }
    if (!n || n_read > n_bytes)
        return 0;
    for (int i = 0; i < n; i++) {
        if (weights[i] > WINDOW)
            return 0;
        sum += 1u << weights[i] >> 1;
    }
    if (!sum)
        return 0;
    *log = top_bit(sum) + 1;
    rest = (1u << *log) - sum; /* the last symbol's share is what the others leave */
    if (*log > WINDOW || rest & (rest - 1))
        return 0;
    weights[n++] = (uint8_t)(top_bit(rest) + 1);
    for (int i = 0; i < n; i++) {
        n_longest += weights[i] == 1;
        if (*log + 1 - weights[i] < LEAST_CODE)
            return 0;
    }
    *n_weights = n;
    return n_longest < 2 ? 0 : n_read;
}

/* tables[1 << b ...] holds, for each value of b bits, the symbols whose codes lie in it whole. It is put together from
 * smaller ones: a symbol, followed by whatever the bits behind its code hold. */
static void make_tables(uint64_t *tables, const uint8_t *weights, int n_weights, int log)
{
    uint8_t symbols[MOST_WEIGHTS], n_bits[MOST_WEIGHTS];
    int n = 0;
    for (int weight = 1; weight <= log; weight++)
        for (int i = 0; i < n_weights; i++)
            if (weights[i] == weight) {
                symbols[n] = (uint8_t)i;
                n_bits[n++] = (uint8_t)(log + 1 - weight);
            }
    tables[1] = 0;
    for (int b = 1; b <= WINDOW; b++) {
        uint64_t *table = tables + (1u << b), *entry = table + (1u << b);
        for (int i = n - 1; i >= 0 && n_bits[i] <= b; i--) {
            size_t n_rest = (size_t)1 << (b - n_bits[i]);
            const uint64_t *rest = tables + n_rest;
            uint64_t head = n_bits[i] | (uint64_t)symbols[i] << 8 | (uint64_t)n_bits[i] << 48 | (uint64_t)1 << 56;
            entry -= n_rest;
            for (size_t j = 0; j < n_rest; j++)
                entry[j] = ((rest[j] & 0xFFFFFFFF00) << 8) + (rest[j] & 0xFF000000000000FF) + head;
        }
        memset(table, 0, (size_t)((uint8_t *)entry - (uint8_t *)table)); /* beginnings of codes that are longer */
    }
}

/* ---- symbols ---- */

typedef struct {
    backward_t bits;
    uint8_t *out, *end;
} stream_t;

/* Decode `n` streams at once as far as that can be done without looking whether each symbol is there. */
static inline __attribute__((always_inline)) void run(stream_t *const *streams, const int n, const uint64_t *table)
{
    const uint8_t *in[N_STREAMS];
    uint64_t bits[N_STREAMS];
    uint8_t *out[N_STREAMS];
    for (int i = 0; i < n; i++) {
        ptrdiff_t byte = (streams[i]->bits.left + 7) / 8 - 8;
        if (byte < 0)
            return;
        in[i] = streams[i]->bits.start + byte;
        bits[i] = (load64(in[i]) | 1) << (8 * byte + 64 - streams[i]->bits.left);
        out[i] = streams[i]->out;
    }
    for (;;) {
        ptrdiff_t n_rounds = PTRDIFF_MAX;
        for (int i = 0; i < n; i++) {
            ptrdiff_t by_out = (streams[i]->end - out[i] - STORE) / (LOOKS * MOST_SYMBOLS);
            ptrdiff_t by_in = (in[i] - streams[i]->bits.start) / REFILL;
            n_rounds = n_rounds < by_out ? n_rounds : by_out;
            n_rounds = n_rounds < by_in ? n_rounds : by_in;
        }
        if (n_rounds <= 0)
            break;
        do {
#pragma GCC unroll 5
            for (int look = 0; look < LOOKS; look++) {
#pragma GCC unroll 4
                for (int i = 0; i < n; i++) {
                    uint64_t entry = table[bits[i] >> (64 - WINDOW)], symbols = entry >> 8;
                    bits[i] <<= entry & 63;
                    memcpy(out[i], &symbols, sizeof symbols);
                    out[i] += entry >> 56;
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < n; i++) { /* the lowest bit, set when the word was loaded, says how many are used up */
                int n_used = __builtin_ctzll(bits[i]);
                in[i] -= n_used >> 3;
                bits[i] = (load64(in[i]) | 1) << (n_used & 7);
            }
        } while (--n_rounds);
    }
    for (int i = 0; i < n; i++) {
        streams[i]->bits.left = 8 * (in[i] - streams[i]->bits.start) + 64 - __builtin_ctzll(bits[i]);
        streams[i]->out = out[i];
    }
}

/* The last symbols of a stream, one by one; whether it ends with the last of them. */
static int finish(stream_t *stream, const uint64_t *table)
{
    while (stream->out < stream->end) {
        uint64_t entry = table[backward_peek(&stream->bits, WINDOW)];
        stream->bits.left -= entry >> 48 & 0xFF;
        if (stream->bits.left < 0)
            return 0;
        *stream->out++ = (uint8_t)(entry >> 8);
    }
    return stream->bits.left == 0;
}

/* The streams that are not nearly done yet. */
static int unfinished(stream_t *all, stream_t **some)
{
    int n = 0;
    for (int i = 0; i < N_STREAMS; i++)
        if (all[i].end - all[i].out > 2 * LOOKS * MOST_SYMBOLS && all[i].bits.left > 2 * 8 * REFILL + 64)
            some[n++] = &all[i];
    return n;
}

static inline __attribute__((always_inline)) void run_all(stream_t *streams, const uint64_t *table)
{
    stream_t *some[N_STREAMS];
    int n = unfinished(streams, some);
    if (n == 4) {
        run(some, 4, table);
        n = unfinished(streams, some);
    }
    if (n == 3) {
        run(some, 3, table);
        n = unfinished(streams, some);
    }
    if (n == 2) {
        run(some, 2, table);
        n = unfinished(streams, some);
    }
    for (int i = 0; i < n; i++)
        run(some + i, 1, table);
}

#if defined(__x86_64__)
__attribute__((target("bmi,bmi2"))) static void run_all_bmi2(stream_t *streams, const uint64_t *table)
{
    run_all(streams, table);
}
#endif

static void run_all_plain(stream_t *streams, const uint64_t *table) { run_all(streams, table); }

static int decode_streams(const uint64_t *table, const uint8_t *source, size_t n_bytes, uint8_t *out, size_t n_out)
{
    stream_t streams[N_STREAMS];
    size_t n_each = (n_out + 3) / 4, at = 6;
    if (n_bytes < 6 || 3 * n_each > n_out)
        return 0;
    for (int i = 0; i < N_STREAMS; i++) {
        size_t n = i < 3 ? load(source + 2 * i, 2) : n_bytes - at;
        if (n > n_bytes - at || !backward_begin(&streams[i].bits, source + at, n))
            return 0;
        streams[i].out = out + n_each * (size_t)i;
        streams[i].end = i < 3 ? streams[i].out + n_each : out + n_out;
        at += n;
    }
#if defined(__x86_64__)
    if (__builtin_cpu_supports("bmi2"))
        run_all_bmi2(streams, table);
    else
#endif
        run_all_plain(streams, table);
    return finish(&streams[0], table) & finish(&streams[1], table) & finish(&streams[2], table) &
           finish(&streams[3], table);
}

/* A block of literals in four streams and nothing else. */
static ptrdiff_t decode_block(literals_t *state, const uint8_t *source, size_t n_bytes, uint8_t *out, size_t room)
{
    enum { HUFFMAN = 2, SAME_HUFFMAN = 3 };
    int form = n_bytes ? source[0] & 3 : 0, sizes = n_bytes ? source[0] >> 2 & 3 : 0;
    int n_head = sizes + 2, n_size_bits = sizes == 1 ? 10 : sizes == 2 ? 14 : 18;
    size_t head, n_out, n_source;
    if (form < HUFFMAN || !sizes || n_bytes < (size_t)n_head + 1)
        return -1;
    head = load(source, n_head) >> 4;
    n_out = head & (((size_t)1 << n_size_bits) - 1);
    n_source = head >> n_size_bits;
    source += n_head;
    if (n_out > room || n_out > MOST_BLOCK_BYTES || n_source + 1 != n_bytes - (size_t)n_head || source[n_source])
        return -1;
    if (form == HUFFMAN) {
        uint8_t weights[MOST_WEIGHTS];
        int n_weights, log;
        size_t n_read = read_weights(source, n_source, weights, &n_weights, &log);
        state->has_table = n_read > 0;
        if (!n_read)
            return -1;
        make_tables(state->tables, weights, n_weights, log);
        source += n_read;
        n_source -= n_read;
    }
    if (!state->has_table || !decode_streams(state->tables + (1 << WINDOW), source, n_source, out, n_out))
        return -1;
    return (ptrdiff_t)n_out;
}

int literals_begin(literals_t *state, const uint8_t *source, size_t n_bytes)
{
    enum { MAGIC = 0xFD2FB528u, CHECKSUM = 4, RESERVED = 8, DICTIONARY = 3 };
    int single, n_size, n_head;
    if (!USABLE || n_bytes < 6 || load(source, 4) != MAGIC || source[4] & (CHECKSUM | RESERVED | DICTIONARY))
        return 0;
    single = source[4] >> 5 & 1;
    n_size = source[4] >> 6 ? 1 << (source[4] >> 6) : single;
    n_head = 5 + !single + n_size;
    if (!n_size || n_bytes < (size_t)n_head)
        return 0;
    state->n_declared = load(source + n_head - n_size, n_size) + (n_size == 2 ? 256 : 0);
    state->window = single ? state->n_declared : ((uint64_t)1 << 10 << (source[5] >> 3)) / 8 * (8 + (source[5] & 7));
    state->at = source + n_head;
    state->end = source + n_bytes;
    state->last = state->has_table = 0;
    return 1;
}

ptrdiff_t literals_next(literals_t *state, uint8_t *out, size_t room)
{
    enum { RAW, ONE_BYTE, COMPRESSED };
    size_t head, n, n_source;
    ptrdiff_t n_out = -1;
    if (state->end - state->at < 3)
        return -1;
    head = load(state->at, 3);
    n = head >> 3;
    n_source = (head >> 1 & 3) == ONE_BYTE ? 1 : n;
    state->at += 3;
    state->last = head & 1;
    if (n > MOST_BLOCK_BYTES || (size_t)(state->end - state->at) < n_source)
        return -1;
    switch (head >> 1 & 3) {
    case RAW:
    case ONE_BYTE:
        if (n > room)
            return -1;
        if (n_source < n)
            memset(out, state->at[0], n);
        else
            memcpy(out, state->at, n);
        n_out = (ptrdiff_t)n;
        break;
    case COMPRESSED:
        n_out = decode_block(state, state->at, n, out, room);
        break;
    }
    state->at += n_source;
    return n_out;
}
