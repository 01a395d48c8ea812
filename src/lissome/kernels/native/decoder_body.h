// The stages of a decoder's step, compiled once for each instruction set. Every stage shares its work among the threads and ends at a barrier.
#include "matrix_body.h"

constexpr long LONG_RUN = 16;     // so many rows of a sequence are attended to in tiles
constexpr long SHARED_KEYS = 64;  // threads share a head by so many keys

struct FfnRoom;

// What the threads share during a step. A row's width is rounded up to whole tiles.
struct Step {
    const lissome_decoder &d;
    Pool &pool;
    const Rows &given;
    long rows, wide, q_wide, kv_wide, ffn_wide;
    float *state, *normed, *added;  // [rows, wide]: the residual stream, what a block reads, what it adds
    float *q, *k, *v, *seen;        // [rows, q_wide | kv_wide | kv_wide | q_wide]
    float *gate, *up;               // [rows, ffn_wide]
    float *scores;                  // [threads, scores_each]: scores of HEADS_TOGETHER heads, and their queries
    float *partial;                 // [threads, 2, query heads of a key-value head, 2 + dim]: see look_body.h
    float *sums;                    // [threads, sums_each]
    float *panels;                  // [threads, DEEP * 64]
    char *tiles;                    // [threads, scratch_each()]
    char *coded;                    // of each long run: [kv_heads, blocks of keys, coded_bytes()]
    char *inputs;                   // [threads, inputs_each]: rounded by a thread for itself
    char *kept[2][KINDS];           // rounded once for all threads, where any matrix reads them: what norms and heads give, what neurons give
    long sums_each, scores_each, inputs_each;
    std::vector<Look> looks;        // of single rows
    std::vector<Place> shares;      // of these, for each thread
    FfnRoom *ffn;
};

enum Kept { OUTER, INNER, OWN };  // where a product's rounded inputs are: in Step.kept, or nowhere yet

INLINE long up_to(long width, long whole) { return (width + whole - 1) / whole * whole; }

INLINE long share(long whole, int thread, int threads) { return whole * thread / threads; }

// The first tile of a thread. Two tiles, 32 rows, are a block of the next product's inputs: they stay together.
INLINE long first_tile(const lissome_matrix &m, int thread, int threads) {
    const long tiles = tiles_of(m), first = 2 * share((tiles + 1) / 2, thread, threads);
    return first < tiles ? first : tiles;
}

INLINE int inputs_of(const Step &s, const lissome_matrix &m) { return s.d.inputs ? s.d.inputs : m.inputs; }

// The rounded rows that `m` reads.
INLINE Rounded kept_for(const Step &s, const lissome_matrix &m, Kept where, long rows) {
    const int kind = kind_of(inputs_of(s, m), m);
    return rounded_at(s.kept[where][kind], kind, rows, m.columns);
}

// Rows [begin, end) of x, rounded for those of the matrices that want it: each kind once.
static void keep(const Step &s, std::initializer_list<const lissome_matrix *> readers, Kept where, long rows, const float *x, long ldx, long begin, long end) {
    bool done[KINDS] = {};
    for (const lissome_matrix *m : readers) {
        if (!m->data || !rounds(*m, inputs_of(s, *m), rows) || done[kind_of(inputs_of(s, *m), *m)]) continue;
        done[kind_of(inputs_of(s, *m), *m)] = true;
        rows_rounded(kept_for(s, *m, where, rows), x, ldx, begin, end, 0, m->columns);
    }
}

// out [rows, ldo] = x W^T for this thread's tiles. where: x is kept there, if it is to be rounded.
static void times(const Step &s, int thread, const lissome_matrix &m, long rows, const float *x, long ldx, float *out, long ldo, Kept where) {
    const long begin = first_tile(m, thread, s.pool.size()), end = first_tile(m, thread + 1, s.pool.size());
    const int inputs = inputs_of(s, m);
    if (rounds(m, inputs, rows)) {
        if (where != OWN) return integers(m, begin, end, kept_for(s, m, where, rows), out, ldo);
        for (long first = 0; first < rows && begin < end; first += BLOCK_ROWS) {
            const long count = rows - first < BLOCK_ROWS ? rows - first : BLOCK_ROWS;
            const Rounded own = rounded_at(s.inputs + thread * s.inputs_each, kind_of(inputs, m), count, m.columns);
            rows_rounded(own, x + first * ldx, ldx, 0, count, 0, m.columns);
            integers(m, begin, end, own, out + first * ldo, ldo);
        }
        return;
    }
    if (rows > FEW) return many(m, begin, end, rows, x, ldx, out, ldo, s.panels + thread * DEEP * 64);
    float *sums = s.sums + thread * s.sums_each;
    if (m.bits != 32) block_sums(x, ldx, rows, m.columns, sums);
    few(m, begin, end, rows, x, ldx, sums, out, ldo);
}

// state += added (where there is any), normed = state / rms(state) * weight (Zhang and Sennrich 2019), for this thread's rows, kept for who reads them.
static void norm(const Step &s, int thread, const float *weight, bool add, std::initializer_list<const lissome_matrix *> readers) {
    const long hidden = s.d.hidden;
    for (long r = share(s.rows, thread, s.pool.size()); r < share(s.rows, thread + 1, s.pool.size()); r++) {
        float *state = s.state + r * s.wide, *normed = s.normed + r * s.wide;
        const float *added = s.added + r * s.wide;
        double squares = 0;
        vf lanes = {};
        long c = 0;
        for (; c + WIDTH <= hidden; c += WIDTH) {
            const vf now = add ? load(state + c) + load(added + c) : load(state + c);
            store(state + c, now);
            lanes += now * now;
        }
        for (int i = 0; i < WIDTH; i++) squares += lanes[i];
        for (; c < hidden; c++) {
            if (add) state[c] += added[c];
            squares += (double)state[c] * state[c];
        }
        const float inverse = (float)(1 / std::sqrt(squares / hidden + s.d.epsilon));
        for (long i = 0; i < hidden; i++) normed[i] = state[i] * inverse * weight[i];
        keep(s, readers, OUTER, s.rows, s.normed, s.wide, r, r + 1);
    }
}

INLINE void rotated(float *x, const float *cosine, const float *sine, long half) {
    for (long i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

INLINE int64_t place_of(const lissome_decoder &d, long layer, long slot, long head, long position) {
    return (((layer * d.slots + slot) * d.kv_heads + head) * d.capacity + position) * d.dim;
}

// Rotate this thread's queries and keys by their positions, and keep keys and values.
static void remembered(const Step &s, int thread, long layer) {
    const lissome_decoder &d = s.d;
    const long half = d.dim / 2;
    for (long r = share(s.rows, thread, s.pool.size()); r < share(s.rows, thread + 1, s.pool.size()); r++) {
        const float *cosine = d.cosine + s.given.position[r] * half, *sine = d.sine + s.given.position[r] * half;
        for (long h = 0; h < d.heads; h++) rotated(s.q + r * s.q_wide + h * d.dim, cosine, sine, half);
        for (long h = 0; h < d.kv_heads; h++) {
            float *key = s.k + r * s.kv_wide + h * d.dim, *value = s.v + r * s.kv_wide + h * d.dim;
            rotated(key, cosine, sine, half);
            const int64_t at = place_of(d, layer, s.given.slot[r], h, s.given.position[r]);
            for (long i = 0; i < d.dim; i++) {
                if (d.half) {
                    ((uint16_t *)d.keys)[at + i] = narrowed(key[i]);
                    ((uint16_t *)d.values)[at + i] = narrowed(value[i]);
                } else {
                    ((float *)d.keys)[at + i] = key[i];
                    ((float *)d.values)[at + i] = value[i];
                }
            }
        }
    }
}

#include "look_body.h"
#include "prompt_body.h"
#include "ffn_body.h"

static void embedded(const Step &s, int thread) {
    for (long r = share(s.rows, thread, s.pool.size()); r < share(s.rows, thread + 1, s.pool.size()); r++) {
        if (s.given.begin) __builtin_memcpy(s.state + r * s.wide, s.given.begin + r * s.d.hidden, sizeof(float) * s.d.hidden);
        else row_of(s.d.embedding, s.given.token[r], s.state + r * s.wide);
    }
}

// What this thread's rows are after the last layer, whose addition is still to be made.
static void left(const Step &s, int thread) {
    const long hidden = s.d.hidden;
    for (long r = share(s.rows, thread, s.pool.size()); r < share(s.rows, thread + 1, s.pool.size()); r++)
        for (long i = 0; i < hidden; i++) s.given.end[r * hidden + i] = s.state[r * s.wide + i] + (s.d.layers ? s.added[r * s.wide + i] : 0.f);
}

// This thread's part of the rows that are wanted, one after the other.
static void picked(const Step &s, int thread, float *into) {
    const long wanted = s.given.wanted, begin = share(wanted, thread, s.pool.size()), end = share(wanted, thread + 1, s.pool.size());
    for (long i = begin; i < end; i++) __builtin_memcpy(into + i * s.d.hidden, s.normed + s.given.which[i] * s.wide, sizeof(float) * s.d.hidden);
    keep(s, {&s.d.head}, OUTER, wanted, into, s.d.hidden, begin, end);
}

static void stages(Step &s, int thread, const std::vector<Run> &runs, const std::vector<std::unique_ptr<Causal>> &causal, float *last, float *logits, long ldl) {
    const lissome_decoder &d = s.d;
    bool together = false;  // whether threads share the keys of a head
    for (const Place &one : s.shares) together = together || one.key > 0;
    embedded(s, thread);
    for (long at = 0; at < d.layers; at++) {
        const lissome_layer &l = d.layer[at];
        norm(s, thread, l.attention_norm, at > 0, {&l.q, &l.k, &l.v});
        s.pool.barrier();
        times(s, thread, l.q, s.rows, s.normed, s.wide, s.q, s.q_wide, OUTER);
        times(s, thread, l.k, s.rows, s.normed, s.wide, s.k, s.kv_wide, OUTER);
        times(s, thread, l.v, s.rows, s.normed, s.wide, s.v, s.kv_wide, OUTER);
        s.pool.barrier();
        remembered(s, thread, at);
        s.pool.barrier();
        looked_by_runs(s, thread, at, runs, causal);
        looked(s, thread, at);
        s.pool.barrier();
        if (together) {
            looked_together(s, thread);
            s.pool.barrier();
        }
        if (rounds(l.o, inputs_of(s, l.o), s.rows)) {
            keep(s, {&l.o}, OUTER, s.rows, s.seen, s.q_wide, share(s.rows, thread, s.pool.size()), share(s.rows, thread + 1, s.pool.size()));
            s.pool.barrier();
        }
        times(s, thread, l.o, s.rows, s.seen, s.q_wide, s.added, s.wide, OUTER);
        s.pool.barrier();
        norm(s, thread, l.ffn_norm, true, {&l.gate, l.ffn == LISSOME_GATE_FIRST ? &l.gate : &l.up});
        s.pool.barrier();
        ffn(s, thread, l);
        s.pool.barrier();
    }
    if (s.given.end) left(s, thread);
    if (!s.given.wanted) return;
    norm(s, thread, d.norm, d.layers > 0, {});
    s.pool.barrier();
    picked(s, thread, last);
    s.pool.barrier();
    times(s, thread, d.head, s.given.wanted, last, d.hidden, logits, ldl, OUTER);
}

struct Room {
    void *at;
    explicit Room(size_t bytes) : at(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {
        if (!at) throw std::bad_alloc();
    }
    ~Room() { std::free(at); }
    Room(const Room &) = delete;
};

// Bytes of rounded inputs of each kind that some matrix reads: [2, KINDS].
static void kept_bytes(const Step &s, long outer, long inner, long (*bytes)[KINDS]) {
    const auto read = [&](const lissome_matrix &m, Kept where, long rows) {
        if (!m.data || !rounds(m, inputs_of(s, m), rows)) return;
        const int kind = kind_of(inputs_of(s, m), m);
        const long wanted = rounded_bytes(kind, rows, where == INNER ? inner : outer);
        if (wanted > bytes[where][kind]) bytes[where][kind] = wanted;
    };
    for (long i = 0; i < s.d.layers; i++) {
        const lissome_layer &l = s.d.layer[i];
        for (const lissome_matrix *m : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up}) read(*m, OUTER, s.rows);
        if (l.ffn == LISSOME_GATED) read(l.down, INNER, s.rows);
    }
    read(s.d.head, OUTER, s.given.wanted);
}

static void step(const lissome_decoder &d, Pool &pool, const Rows &given) {
    const long rows = given.count, threads = pool.size(), vocabulary = up_to(d.head.rows, LISSOME_ROWS), group = d.heads / d.kv_heads;
    Step s{d, pool, given};
    s.rows = rows, s.wide = up_to(d.hidden, 16), s.q_wide = up_to(d.heads * d.dim, 16), s.kv_wide = up_to(d.kv_heads * d.dim, 16), s.ffn_wide = up_to(d.ffn, 16);
    const long widest = s.wide > s.ffn_wide ? (s.wide > s.q_wide ? s.wide : s.q_wide) : (s.ffn_wide > s.q_wide ? s.ffn_wide : s.q_wide);
    s.sums_each = FEW * widest / LISSOME_GROUP_MIN + 16;
    s.scores_each = up_to(HEADS_TOGETHER * (d.capacity + WIDTH + d.dim), 16);
    s.inputs_each = WIDTH == 16 ? rounded_bytes(1, BLOCK_ROWS, widest) : 0;
    long kept[2][KINDS] = {}, rounded = 0;
    kept_bytes(s, s.wide > s.q_wide ? s.wide : s.q_wide, s.ffn_wide, kept);
    for (const auto &one : kept)
        for (long bytes : one) rounded += bytes;
    const bool padded = vocabulary != d.head.rows;
    struct Part {
        float **at;
        long floats;
    };
    float *last, *logits;
    const Part parts[] = {
        {&s.state, rows * s.wide}, {&s.normed, rows * s.wide}, {&s.added, rows * s.wide}, {&s.q, rows * s.q_wide}, {&s.seen, rows * s.q_wide},
        {&s.k, rows * s.kv_wide}, {&s.v, rows * s.kv_wide}, {&s.gate, rows * s.ffn_wide}, {&s.up, rows * s.ffn_wide},
        {&s.scores, threads * s.scores_each}, {&s.partial, threads * 2 * group * (2 + d.dim)}, {&s.sums, threads * s.sums_each}, {&s.panels, threads * DEEP * 64},
        {&last, given.wanted * d.hidden}, {&logits, padded ? given.wanted * vocabulary : 0},
    };
    long floats = 0;
    for (const Part &part : parts) floats += up_to(part.floats, 16);
    const std::vector<Run> runs = runs_of(rows, given.slot, given.position);
    std::vector<std::unique_ptr<Causal>> causal(runs.size());
    bool by_tiles = false;
    for (size_t i = 0; i < runs.size(); i++)
        if (runs[i].end - runs[i].begin >= LONG_RUN) {
            causal[i].reset(new Causal(d, runs[i], given.position[runs[i].begin])), by_tiles = true;
        } else {
            for (int64_t r = runs[i].begin; r < runs[i].end; r++)
                for (int64_t h = 0; h < d.kv_heads; h++) s.looks.push_back({r, h, given.position[r] + 1});
        }
    s.shares = shares_of(s.looks, (int)threads, SHARED_KEYS);
    bool integers = false;
    long coded = 0;
    for (long i = 0; i < d.layers; i++) integers = integers || attends_rounded(s, d.layer[i]);
    for (const auto &run : causal) coded += integers && run ? coded_run(d, *run) : 0;
    const Room room(floats * sizeof(float)), tiles(by_tiles ? threads * scratch_each() : 64), inputs(threads * s.inputs_each + rounded + 64), codes(coded + 64);
    float *at = (float *)room.at;
    for (const Part &part : parts) *part.at = at, at += up_to(part.floats, 16);
    s.tiles = (char *)tiles.at, s.inputs = (char *)inputs.at, s.coded = coded ? (char *)codes.at : nullptr;
    char *next = s.inputs + threads * s.inputs_each;
    for (int where : {OUTER, INNER})
        for (int kind = 0; kind < KINDS; kind++) s.kept[where][kind] = next, next += kept[where][kind];
    FfnRoom ffn_room(d, rows, threads, s.wide, s.ffn_wide);
    s.ffn = &ffn_room;
    float *to = padded ? logits : given.logits;
    pool.run([&](int thread) { stages(s, thread, runs, causal, last, to, vocabulary); });
    for (long i = 0; padded && i < given.wanted; i++) __builtin_memcpy(given.logits + i * d.head.rows, to + i * vocabulary, sizeof(float) * d.head.rows);
}

static void multiply(const lissome_matrix &m, Pool &pool, int inputs, long n, const float *x, float *y) {
    const long threads = pool.size(), blocks = m.columns / LISSOME_GROUP_MIN, wide = up_to(m.rows, LISSOME_ROWS);
    const int kind = kind_of(inputs, m);
    const bool rounded = rounds(m, inputs, n);
    const Room room(sizeof(float) * threads * (DEEP * 64 + FEW * blocks)), codes(rounded ? rounded_bytes(kind, n, m.columns) : 64);
    const Rounded given = rounded_at((char *)codes.at, kind, n, m.columns);
    pool.run([&](int thread) {
        const long begin = first_tile(m, thread, threads), end = first_tile(m, thread + 1, threads);
        float *panel = (float *)room.at + thread * (DEEP * 64 + FEW * blocks), *sums = panel + DEEP * 64;
        if (rounded) {
            rows_rounded(given, x, m.columns, share(n, thread, threads), share(n, thread + 1, threads), 0, m.columns);
            pool.barrier();
            return integers(m, begin, end, given, y, wide);
        }
        if (n > FEW) return many(m, begin, end, n, x, m.columns, y, wide, panel);
        if (m.bits != 32) block_sums(x, m.columns, n, m.columns, sums);
        few(m, begin, end, n, x, m.columns, sums, y, wide);
    });
}
