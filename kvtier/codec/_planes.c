/* Byte planes in native code: 16-bit values <-> their low and high bytes, in one pass each and without the GIL.
 *
 * join() decodes the high bytes block by block and puts each block together with the low ones while it is in the
 * processor's cache; read_frames() reads frames and verifies them first, and a thread gives the GIL away once for it.
 * zstd, which does what _literals.c leaves, is the one in python-zstandard, XXH3 the one in python-xxhash: their
 * functions come as addresses. */
#define _DEFAULT_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include "_literals.h"
#include "_reads.h"
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

typedef struct {
    size_t (*begin)(void *context);
    size_t (*next_bytes)(void *context);
    size_t (*decode)(void *context, void *out, size_t room, const void *source, size_t n_bytes);
    unsigned (*is_error)(size_t code);
} zstd_t;

typedef struct {
    uint64_t low, high;
} hash_t;

typedef struct {
    int (*reset)(void *state);
    int (*update)(void *state, const void *source, size_t n_bytes);
    hash_t (*digest)(const void *state);
} xxh3_t;

/* Of a frame, see docs/format.md. */
enum { HEAD_BYTES = 48, CHECKSUM_BYTES = 16, HEADER_BYTES = HEAD_BYTES + CHECKSUM_BYTES };

/* Values in rows of equal length, any two dimensions of them apart: how a page lies in an engine's memory. */
typedef struct {
    uint8_t *first;
    size_t row_values, n_inner, n_values;
    ptrdiff_t outer, inner;
} rows_t;

enum { WHOLE = 0, CUT_SHORT = 1, TOO_LONG = 2 }; /* what join() returns; below zero it is an error code of zstd's */

static void split_values(const uint8_t *values, uint8_t *low, uint8_t *high, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        low[i] = values[2 * i];
        high[i] = values[2 * i + 1];
    }
}

/* Past the cache where the processor can: whoever reads the values next is a device or another core, and a plain store
 * first fetches the line that it overwrites. */
static void join_values(const uint8_t *low, const uint8_t *high, uint8_t *values, size_t n)
{
    size_t i = 0;
#if defined(__SSE2__)
    if ((uintptr_t)values % 2 == 0) {
        for (; i < n && (uintptr_t)(values + 2 * i) % 16; i++) {
            values[2 * i] = low[i];
            values[2 * i + 1] = high[i];
        }
        for (; i + 16 <= n; i += 16) {
            __m128i l = _mm_loadu_si128((const __m128i *)(low + i)), h = _mm_loadu_si128((const __m128i *)(high + i));
            _mm_stream_si128((__m128i *)(values + 2 * i), _mm_unpacklo_epi8(l, h));
            _mm_stream_si128((__m128i *)(values + 2 * i + 16), _mm_unpackhi_epi8(l, h));
        }
    }
#endif
    for (; i < n; i++) {
        values[2 * i] = low[i];
        values[2 * i + 1] = high[i];
    }
}

/* What was stored past the cache is to be seen by others before anything that is stored from here on. */
static void drain(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

/* Up to three dimensions, the last without gaps and even; bytes. */
static int as_rows(const Py_buffer *view, rows_t *rows)
{
    int n = view->ndim;
    Py_ssize_t length;
    if (n < 1 || n > 3 || view->itemsize != 1 || !view->shape || !view->strides)
        return 0;
    length = view->shape[n - 1];
    if (length < 2 || length % 2 || view->strides[n - 1] != 1)
        return 0;
    rows->first = view->buf;
    rows->row_values = (size_t)length / 2;
    rows->n_inner = n > 1 ? (size_t)view->shape[n - 2] : 1;
    rows->inner = n > 1 ? view->strides[n - 2] : 0;
    rows->outer = n > 2 ? view->strides[0] : 0;
    rows->n_values = rows->row_values * rows->n_inner * (n > 2 ? (size_t)view->shape[0] : 1);
    return 1;
}

/* Where value `at` lies; `n` is cut down to what follows it in its row. */
static uint8_t *place_of(const rows_t *rows, size_t at, size_t *n)
{
    size_t row = at / rows->row_values, column = at % rows->row_values;
    if (*n > rows->row_values - column)
        *n = rows->row_values - column;
    return rows->first + (ptrdiff_t)(row / rows->n_inner) * rows->outer +
           (ptrdiff_t)(row % rows->n_inner) * rows->inner + 2 * column;
}

static void split_rows(const rows_t *rows, uint8_t *low, uint8_t *high)
{
    size_t at = 0, n;
    for (; at < rows->n_values; at += n) {
        const uint8_t *values;
        n = rows->n_values - at;
        values = place_of(rows, at, &n);
        split_values(values, low + at, high + at, n);
    }
}

/* Values `at` to `end`; `high` has those of them alone. */
static void join_rows(const rows_t *rows, size_t at, size_t end, const uint8_t *low, const uint8_t *high)
{
    size_t n;
    for (; at < end; at += n, high += n) {
        uint8_t *values;
        n = end - at;
        values = place_of(rows, at, &n);
        join_values(low + at, high, values, n);
    }
}

/* Whether this was a frame such as kvtier writes; if not, what `out` holds is to be written over. */
static int join_literals(const uint8_t *low, const uint8_t *section, size_t n_section, uint8_t *high,
                         const rows_t *out)
{
    enum { WINDOW_SLACK = 1 << 17 }; /* as entropy.py has it */
    literals_t state;
    size_t n_values = out->n_values, n_high = 0;
    if (!literals_begin(&state, section, n_section) || state.n_declared != n_values ||
        state.window > n_values + WINDOW_SLACK)
        return 0;
    do {
        /* Each block in the place of the one before, which no match can ask for: the processor's cache keeps the place. */
        ptrdiff_t n = literals_next(&state, high, n_values - n_high);
        if (n < 0)
            return 0;
        join_rows(out, n_high, n_high + (size_t)n, low, high);
        n_high += (size_t)n;
    } while (!state.last);
    return n_high == n_values && state.at == state.end;
}

static long long join_by_zstd(const zstd_t *zstd, void *context, const Py_buffer *low, const Py_buffer *section,
                              const Py_buffer *scratch, const rows_t *out)
{
    const uint8_t *source = section->buf;
    uint8_t *high = scratch->buf;
    size_t n_values = (size_t)low->len, n_source = (size_t)section->len, at = 0, n_high = 0, wanted;
    size_t code = zstd->begin(context);
    if (zstd->is_error(code))
        return (ptrdiff_t)code;
    while ((wanted = zstd->next_bytes(context)) > 0) {
        if (wanted > n_source - at)
            return CUT_SHORT;
        code = zstd->decode(context, high + n_high, n_values - n_high, source + at, wanted);
        if (zstd->is_error(code))
            return (ptrdiff_t)code;
        if (code > n_values - n_high)
            return TOO_LONG;
        join_rows(out, n_high, n_high + code, low->buf, high + n_high);
        at += wanted;
        n_high += code;
    }
    return at < n_source ? TOO_LONG : n_high < n_values ? CUT_SHORT : WHOLE;
}

static long long join_section(const zstd_t *zstd, void *context, const Py_buffer *low, const Py_buffer *section,
                              const Py_buffer *scratch, const rows_t *out)
{
    long long outcome = WHOLE;
    if (!join_literals(low->buf, section->buf, (size_t)section->len, scratch->buf, out))
        outcome = join_by_zstd(zstd, context, low, section, scratch, out);
    drain();
    return outcome;
}

static xxh3_t xxh3_at(unsigned long long reset, unsigned long long update, unsigned long long digest)
{
    return (xxh3_t){(int (*)(void *))(uintptr_t)reset, (int (*)(void *, const void *, size_t))(uintptr_t)update,
                    (hash_t(*)(const void *))(uintptr_t)digest};
}

static int is_checksum(hash_t hash, const uint8_t *checksum)
{
    uint64_t halves[2] = {hash.high, hash.low};
    for (int i = 0; i < CHECKSUM_BYTES; i++)
        if (checksum[i] != (uint8_t)(halves[i / 8] >> (56 - 8 * (i % 8))))
            return 0;
    return 1;
}

/* Whether `frame`, which begins with `head`, is whole and its values are in `out`. */
static int open_plain(const xxh3_t *xxh3, void *state, const uint8_t *head, const uint8_t *frame, size_t n_frame,
                      uint8_t *high, const rows_t *out)
{
    const uint8_t *low = frame + HEADER_BYTES;
    size_t n_payload = n_frame - HEADER_BYTES;
    int opened;
    if (memcmp(frame, head, HEAD_BYTES) || xxh3->reset(state) || xxh3->update(state, head, HEAD_BYTES) ||
        xxh3->update(state, low, n_payload) || !is_checksum(xxh3->digest(state), frame + HEAD_BYTES))
        return 0;
    opened = join_literals(low, low + out->n_values, n_payload - out->n_values, high, out);
    drain();
    return opened;
}

/* Those that were never filled included. */
static void release(Py_buffer *buffers, size_t n)
{
    for (size_t i = 0; i < n; i++)
        PyBuffer_Release(buffers + i);
}

static PyObject *split(PyObject *module, PyObject *args)
{
    enum { VALUES, LOW, HIGH, N };
    Py_buffer held[N] = {{0}};
    PyObject *object;
    rows_t rows;
    int fits;
    (void)module;
    if (!PyArg_ParseTuple(args, "Ow*w*:split", &object, held + LOW, held + HIGH))
        return NULL;
    if (PyObject_GetBuffer(object, held + VALUES, PyBUF_STRIDED_RO) < 0) {
        release(held, N);
        return NULL;
    }
    fits = as_rows(held + VALUES, &rows) && (size_t)held[LOW].len == rows.n_values && held[HIGH].len == held[LOW].len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        split_rows(&rows, held[LOW].buf, held[HIGH].buf);
        Py_END_ALLOW_THREADS
    }
    release(held, N);
    if (fits)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "split: low and high take half of the values' bytes each, and those are in even rows");
    return NULL;
}

static PyObject *join(PyObject *module, PyObject *args)
{
    enum { LOW, SECTION, SCRATCH, OUT, N };
    unsigned long long context, begin, next_bytes, decode, is_error;
    Py_buffer held[N] = {{0}}, *low = held + LOW, *section = held + SECTION, *scratch = held + SCRATCH;
    PyObject *object;
    rows_t rows;
    long long outcome = WHOLE;
    int fits;
    (void)module;
    if (!PyArg_ParseTuple(args, "(KKKK)Ky*y*w*O:join", &begin, &next_bytes, &decode, &is_error, &context, low,
                          section, scratch, &object))
        return NULL;
    if (PyObject_GetBuffer(object, held + OUT, PyBUF_STRIDED) < 0) {
        release(held, N);
        return NULL;
    }
    fits = as_rows(held + OUT, &rows) && (size_t)low->len == rows.n_values && scratch->len >= low->len && begin &&
           next_bytes && decode && is_error && context;
    if (fits) {
        zstd_t zstd = {(size_t(*)(void *))(uintptr_t)begin, (size_t(*)(void *))(uintptr_t)next_bytes,
                       (size_t(*)(void *, void *, size_t, const void *, size_t))(uintptr_t)decode,
                       (unsigned (*)(size_t))(uintptr_t)is_error};
        Py_BEGIN_ALLOW_THREADS
        outcome = join_section(&zstd, (void *)(uintptr_t)context, low, section, scratch, &rows);
        Py_END_ALLOW_THREADS
    }
    release(held, N);
    if (fits)
        return PyLong_FromLongLong(outcome);
    PyErr_SetString(PyExc_ValueError, "join: low takes half of out's bytes, scratch as many, out is bytes in even rows, and no address is zero");
    return NULL;
}

static int read_pages(int descriptor, uint8_t *out, size_t n_bytes, long long at)
{
    while (n_bytes) {
        ssize_t n = pread(descriptor, out, n_bytes, (off_t)at);
        if (n <= 0)
            return 0;
        out += n;
        n_bytes -= (size_t)n;
        at += n;
    }
    return 1;
}

static PyObject *open_frame(PyObject *module, PyObject *args)
{
    enum { HEAD, FRAME, SCRATCH, OUT, N };
    unsigned long long state, reset, update, digest;
    Py_buffer held[N] = {{0}}, *head = held + HEAD, *frame = held + FRAME, *scratch = held + SCRATCH;
    PyObject *target;
    rows_t rows;
    int fits, opened = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "(KKK)Ky*y*w*O:open_frame", &reset, &update, &digest, &state, head, frame, scratch,
                          &target))
        return NULL;
    if (PyObject_GetBuffer(target, held + OUT, PyBUF_STRIDED) < 0) {
        release(held, N);
        return NULL;
    }
    fits = as_rows(held + OUT, &rows) && head->len == HEAD_BYTES && (size_t)scratch->len >= rows.n_values && reset &&
           update && digest && state;
    if (fits && (size_t)frame->len >= HEADER_BYTES + rows.n_values) {
        xxh3_t xxh3 = xxh3_at(reset, update, digest);
        Py_BEGIN_ALLOW_THREADS
        opened = open_plain(&xxh3, (void *)(uintptr_t)state, head->buf, frame->buf, (size_t)frame->len, scratch->buf,
                            &rows);
        Py_END_ALLOW_THREADS
    }
    release(held, N);
    if (fits)
        return PyBool_FromLong(opened);
    PyErr_SetString(PyExc_ValueError, "open_frame: a head has 48 bytes, scratch takes half of out's bytes, out is bytes in even rows, and no address is zero");
    return NULL;
}

enum { MOST_FRAMES = 16, MOST_PLACES = 16 };

/* A frame in a file, and where its values go. */
typedef struct {
    int descriptor, cached, opened;
    long long offset;
    Py_ssize_t length, skip, n_bytes; /* to read, whole pages; in front of the frame; of the frame */
    uint8_t *place;
    Py_buffer head, out;
    rows_t rows;
} wanted_t;

/* Frames that are read and opened by one call, and what it does that with. */
typedef struct {
    wanted_t frames[MOST_FRAMES];
    size_t n, next, n_asked;
    uint8_t *places[MOST_PLACES]; /* of memory, that no read is under way to */
    size_t n_places;
    reads_t *reads;
    xxh3_t xxh3;
    void *state;
    uint8_t *scratch;
    int yields;
} batch_t;

static void open_wanted(const batch_t *batch, wanted_t *frame, int is_read)
{
    frame->opened = is_read && open_plain(&batch->xxh3, batch->state, frame->head.buf, frame->place + frame->skip,
                                          (size_t)frame->n_bytes, batch->scratch, &frame->rows);
    if (batch->yields)
        sched_yield(); /* here, where nobody waits for this thread's GIL */
}

static void read_and_open(const batch_t *batch, wanted_t *frame)
{
    open_wanted(batch, frame, read_pages(frame->descriptor, frame->place, (size_t)frame->length, frame->offset));
}

/* Have the disk at work on as many as there are places for. */
static void ask(batch_t *batch)
{
    for (; batch->next < batch->n && batch->n_places; batch->next++) {
        wanted_t *frame = batch->frames + batch->next;
        if (frame->cached)
            continue;
        frame->place = batch->places[--batch->n_places];
        if (reads_begin(batch->reads, frame->descriptor, frame->place, (size_t)frame->length, frame->offset,
                        batch->next)) {
            batch->n_asked++;
        } else {
            read_and_open(batch, frame);
            batch->places[batch->n_places++] = frame->place;
        }
    }
}

/* What is cached is opened in the last place while the disk is at work; then that place is one like the others. */
static void open_all(batch_t *batch)
{
    uint8_t *place = batch->places[--batch->n_places];
    ask(batch);
    for (wanted_t *frame = batch->frames; frame < batch->frames + batch->n; frame++)
        if (frame->cached) {
            frame->place = place;
            read_and_open(batch, frame);
        }
    batch->places[batch->n_places++] = place;
    ask(batch);
    while (batch->n_asked) {
        size_t number;
        long long n_read;
        if (reads_end(batch->reads, &number, &n_read)) {
            wanted_t *frame = batch->frames + number;
            batch->n_asked--;
            open_wanted(batch, frame, n_read == frame->length);
            batch->places[batch->n_places++] = frame->place;
        } else {
            batch->n_asked = 0;
            batch->n_places = 1; /* for one at a time, which waits itself */
        }
        ask(batch);
    }
}

static int as_wanted(PyObject *object, wanted_t *frame, size_t place_bytes, size_t scratch_bytes)
{
    PyObject *out;
    if (!PyArg_ParseTuple(object, "(iLnnnp)y*O:read_frames", &frame->descriptor, &frame->offset, &frame->length,
                          &frame->skip, &frame->n_bytes, &frame->cached, &frame->head, &out) ||
        PyObject_GetBuffer(out, &frame->out, PyBUF_STRIDED) < 0)
        return 0;
    if (as_rows(&frame->out, &frame->rows) && frame->head.len == HEAD_BYTES && frame->rows.n_values <= scratch_bytes &&
        frame->skip >= 0 && frame->length >= frame->skip && frame->n_bytes <= frame->length - frame->skip &&
        frame->n_bytes >= (Py_ssize_t)(HEADER_BYTES + frame->rows.n_values) && (size_t)frame->length <= place_bytes)
        return 1;
    PyErr_SetString(PyExc_ValueError, "read_frames: a head has 48 bytes, a frame lies inside of what is read, which fits into a place, is no shorter than a header and half of out's bytes, and out is bytes in even rows");
    return 0;
}

static const char READS[] = "kvtier.codec._planes.reads";

static PyObject *opened_of(batch_t *batch)
{
    PyObject *opened = PyList_New((Py_ssize_t)batch->n);
    for (size_t i = 0; opened && i < batch->n; i++)
        PyList_SetItem(opened, (Py_ssize_t)i, PyBool_FromLong(batch->frames[i].opened));
    return opened;
}

static PyObject *read_frames(PyObject *module, PyObject *args)
{
    unsigned long long state, reset, update, digest;
    Py_buffer held[2] = {{0}}, *memory = held, *scratch = held + 1;
    Py_ssize_t n, place_bytes;
    PyObject *frames, *reads, *opened = NULL;
    batch_t batch = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "(KKK)KOO!w*nw*p:read_frames", &reset, &update, &digest, &state, &reads, &PyList_Type,
                          &frames, memory, &place_bytes, scratch, &batch.yields))
        return NULL;
    n = PyList_Size(frames);
    batch.reads = PyCapsule_GetPointer(reads, READS);
    if (!batch.reads)
        goto end;
    if (!(n <= MOST_FRAMES && place_bytes > 0 && memory->len / place_bytes >= 1 && reset && update && digest && state)) {
        PyErr_SetString(PyExc_ValueError, "read_frames: 16 frames at most, a place or more, and no address is zero");
        goto end;
    }
    for (; batch.n_places < MOST_PLACES && (Py_ssize_t)batch.n_places < memory->len / place_bytes; batch.n_places++)
        batch.places[batch.n_places] = (uint8_t *)memory->buf + batch.n_places * (size_t)place_bytes;
    for (; batch.n < (size_t)n; batch.n++)
        if (!as_wanted(PyList_GetItem(frames, (Py_ssize_t)batch.n), batch.frames + batch.n, (size_t)place_bytes,
                       (size_t)scratch->len)) {
            batch.n++; /* what it holds is to be released */
            goto end;
        }
    batch.xxh3 = xxh3_at(reset, update, digest);
    batch.state = (void *)(uintptr_t)state;
    batch.scratch = scratch->buf;
    Py_BEGIN_ALLOW_THREADS
    open_all(&batch);
    Py_END_ALLOW_THREADS
    opened = opened_of(&batch);
end:
    for (size_t i = 0; i < batch.n; i++) {
        release(&batch.frames[i].head, 1);
        release(&batch.frames[i].out, 1);
    }
    release(held, 2);
    return opened;
}

static void forget_reads(PyObject *capsule)
{
    reads_t *reads = PyCapsule_GetPointer(capsule, READS);
    Py_BEGIN_ALLOW_THREADS
    reads_close(reads); /* takes some 20 ms: the kernel waits until no processor can know them any more */
    Py_END_ALLOW_THREADS
    PyMem_Free(reads);
}

static PyObject *new_reads(PyObject *module, PyObject *args)
{
    reads_t *reads = PyMem_Malloc(sizeof *reads);
    PyObject *capsule = NULL;
    (void)module;
    (void)args;
    if (!reads)
        return PyErr_NoMemory();
    reads_open(reads, MOST_PLACES);
    capsule = PyCapsule_New(reads, READS, forget_reads);
    if (!capsule) {
        reads_close(reads);
        PyMem_Free(reads);
    }
    return capsule;
}

static PyMethodDef methods[] = {
    {"split", split, METH_VARARGS, "split(values, low, high): the low and the high bytes of 16-bit values."},
    {"join", join, METH_VARARGS,
     "join(functions, context, low, section, scratch, out) -> int: out from its low bytes and a zstd frame of the\n"
     "high ones. 0: done; 1: the frame ends early; 2: it holds more; below zero: an error code of zstd's."},
    {"open_frame", open_frame, METH_VARARGS,
     "open_frame(functions, state, head, frame, scratch, out) -> bool: whether the frame begins with this head, has a\n"
     "checksum that agrees, and was decoded into out. If not, out is undefined, and somebody else is to say why."},
    {"read_frames", read_frames, METH_VARARGS,
     "read_frames(functions, state, reads, [((descriptor, offset, length, skip, n_bytes, cached), head, out), ...],\n"
     "memory, place_bytes, scratch, yields) -> [bool, ...]: as open_frame, of frames that are read from their files\n"
     "first, into places of memory: those that are not cached as many at a time as there are places, while the others are\n"
     "opened. With yields the thread lets others of its processor run after each. reads is this thread's."},
    {"new_reads", new_reads, METH_NOARGS, "new_reads() -> reads: what a thread gives to read_frames."},
    {NULL, NULL, 0, NULL},
};

static int describe(PyObject *module) { return PyModule_AddIntConstant(module, "INTERFACE", 5); }

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)describe}, {0, NULL}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_planes", "Byte planes in native code.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__planes(void) { return PyModuleDef_Init(&definition); }
