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
    char *tiles;                    // [threads, attention_scratch()]
    char *inputs;                   // [threads, inputs_each]: rounded ones
    long sums_each, scores_each, inputs_each;
    std::vector<Look> looks;        // of single rows
    std::vector<Place> shares;      // of these, for each thread
    FfnRoom *ffn;
};

INLINE long share(long whole, int thread, int threads) { return whole * thread / threads; }

// out [rows, ldo] = x W^T for this thread's tiles.
static void times(const Step &s, int thread, const lissome_matrix &m, long rows, const float *x, long ldx, float *out, long ldo) {
    const long tiles = tiles_of(m), begin = share(tiles, thread, s.pool.size()), end = share(tiles, thread + 1, s.pool.size());
    if (rounds(m, s.d.inputs, rows)) return rounding(m, s.d.inputs, begin, end, rows, x, ldx, out, ldo, s.inputs + thread * s.inputs_each);
    if (rows > FEW) return many(m, begin, end, rows, x, ldx, out, ldo, s.panels + thread * DEEP * 64);
    float *sums = s.sums + thread * s.sums_each;
    if (m.bits != 32) block_sums(x, ldx, rows, m.columns, sums);
    few(m, begin, end, rows, x, ldx, sums, out, ldo);
}

// state += added (where there is any), normed = state / rms(state) * weight (Zhang and Sennrich 2019), for this thread's rows.
static void norm(const Step &s, int thread, const float *weight, bool add) {
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

// This thread's tiles of a long run.
static void looked_by_tiles(const Step &s, int thread, long layer, const Run &run, lissome_attention a) {
    const lissome_decoder &d = s.d;
    const int64_t kept = place_of(d, layer, s.given.slot[run.begin], 0, 0) * (d.half ? 2 : 4);
    a.q = {s.q + run.begin * s.q_wide, 0, d.dim, s.q_wide};
    a.out = {s.seen + run.begin * s.q_wide, 0, d.dim, s.q_wide};
    a.k = {(const char *)d.keys + kept, 0, d.capacity * d.dim, d.dim};
    a.v = {(const char *)d.values + kept, 0, d.capacity * d.dim, d.dim};
    for (int64_t item = thread; item < d.heads * a.tiles; item += s.pool.size())  // the last tiles see most, so threads take them in turn
        attention_tile(a, item % d.heads, item / d.heads, s.tiles + thread * attention_scratch());
}

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

// Rows that are wanted, one after the other: into `normed`.
static void picked(const Step &s, float *into) {
    for (long i = 0; i < s.given.wanted; i++)
        __builtin_memcpy(into + i * s.d.hidden, s.normed + s.given.which[i] * s.wide, sizeof(float) * s.d.hidden);
}

static void stages(Step &s, int thread, const std::vector<Run> &runs, const std::vector<std::unique_ptr<Causal>> &causal, float *last, float *logits, long ldl) {
    const lissome_decoder &d = s.d;
    bool together = false;  // whether threads share the keys of a head
    for (const Place &one : s.shares) together = together || one.key > 0;
    embedded(s, thread);
    for (long at = 0; at < d.layers; at++) {
        const lissome_layer &l = d.layer[at];
        norm(s, thread, l.attention_norm, at > 0);
        s.pool.barrier();
        times(s, thread, l.q, s.rows, s.normed, s.wide, s.q, s.q_wide);
        times(s, thread, l.k, s.rows, s.normed, s.wide, s.k, s.kv_wide);
        times(s, thread, l.v, s.rows, s.normed, s.wide, s.v, s.kv_wide);
        s.pool.barrier();
        remembered(s, thread, at);
        s.pool.barrier();
        for (size_t i = 0; i < runs.size(); i++) {
            if (causal[i]) looked_by_tiles(s, thread, at, runs[i], causal[i]->attention);
        }
        looked(s, thread, at);
        s.pool.barrier();
        if (together) {
            looked_together(s, thread);
            s.pool.barrier();
        }
        times(s, thread, l.o, s.rows, s.seen, s.q_wide, s.added, s.wide);
        s.pool.barrier();
        norm(s, thread, l.ffn_norm, true);
        s.pool.barrier();
        ffn(s, thread, l);
        s.pool.barrier();
    }
    if (s.given.end) left(s, thread);
    if (!s.given.wanted) return;
    norm(s, thread, d.norm, d.layers > 0);
    s.pool.barrier();
    if (thread == 0) picked(s, last);
    s.pool.barrier();
    times(s, thread, d.head, s.given.wanted, last, d.hidden, logits, ldl);
}

struct Room {
    void *at;
    explicit Room(size_t bytes) : at(std::aligned_alloc(64, (bytes + 63) / 64 * 64)) {
        if (!at) throw std::bad_alloc();
    }
    ~Room() { std::free(at); }
    Room(const Room &) = delete;
};

INLINE long up_to(long width, long whole) { return (width + whole - 1) / whole * whole; }

static void step(const lissome_decoder &d, Pool &pool, const Rows &given) {
    const long rows = given.count, threads = pool.size(), vocabulary = up_to(d.head.rows, LISSOME_ROWS), group = d.heads / d.kv_heads;
    Step s{d, pool, given};
    s.rows = rows, s.wide = up_to(d.hidden, 16), s.q_wide = up_to(d.heads * d.dim, 16), s.kv_wide = up_to(d.kv_heads * d.dim, 16), s.ffn_wide = up_to(d.ffn, 16);
    const long widest = s.wide > s.ffn_wide ? (s.wide > s.q_wide ? s.wide : s.q_wide) : (s.ffn_wide > s.q_wide ? s.ffn_wide : s.q_wide);
    s.sums_each = FEW * widest / LISSOME_GROUP_MIN + 16;
    s.scores_each = up_to(HEADS_TOGETHER * (d.capacity + WIDTH + d.dim), 16);
    s.inputs_each = up_to(rounded_bytes(widest), 64);
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
    const Room room(floats * sizeof(float)), tiles(by_tiles ? threads * up_to(attention_scratch(), 64) : 64), inputs(threads * s.inputs_each + 64);
    float *at = (float *)room.at;
    for (const Part &part : parts) *part.at = at, at += up_to(part.floats, 16);
    s.tiles = (char *)tiles.at, s.inputs = (char *)inputs.at;
    FfnRoom ffn_room(d, rows, threads, s.wide, s.ffn_wide);
    s.ffn = &ffn_room;
    float *to = padded ? logits : given.logits;
    pool.run([&](int thread) { stages(s, thread, runs, causal, last, to, vocabulary); });
    for (long i = 0; padded && i < given.wanted; i++) __builtin_memcpy(given.logits + i * d.head.rows, to + i * vocabulary, sizeof(float) * d.head.rows);
}

static void multiply(const lissome_matrix &m, Pool &pool, int inputs, long n, const float *x, float *y) {
    const long threads = pool.size(), blocks = m.columns / LISSOME_GROUP_MIN, wide = up_to(m.rows, LISSOME_ROWS), rounded = up_to(rounded_bytes(m.columns), 64);
    const Room room(sizeof(float) * threads * (DEEP * 64 + FEW * blocks)), codes(threads * rounded + 64);
    pool.run([&](int thread) {
        const long tiles = tiles_of(m), begin = share(tiles, thread, threads), end = share(tiles, thread + 1, threads);
        float *panel = (float *)room.at + thread * (DEEP * 64 + FEW * blocks), *sums = panel + DEEP * 64;
        if (rounds(m, inputs, n)) return rounding(m, inputs, begin, end, n, x, m.columns, y, wide, (char *)codes.at + thread * rounded);
        if (n > FEW) return many(m, begin, end, n, x, m.columns, y, wide, panel);
        if (m.bits != 32) block_sums(x, m.columns, n, m.columns, sums);
        few(m, begin, end, n, x, m.columns, sums, y, wide);
    });
}
