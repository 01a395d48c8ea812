// The attention kernel itself, compiled once for each instruction set.
//
// Scores are kept transposed, [keys, queries]: a query is a lane, so maxima and sums over keys are plain vector operations, keys and values are read
// where they lie (as broadcast scalars, with any stride), and a key's mask is one word of bits. Every product has the form C[m, n] += A[m, k] B[k, n]
// with B contiguous in n.
//
// Source: online softmax and recomputation as in FlashAttention (Dao et al. 2022, algorithms 1 and 4).
#include "vector_body.h"

// What one thread needs for a tile.
struct Scratch {
    alignas(64) float q[LISSOME_DIM_MAX * TILE];     // [dim, queries], scaled
    alignas(64) float out[LISSOME_DIM_MAX * TILE];   // [value_dim, queries]: forward the sums, backward the gradient
    alignas(64) float s[TILE * TILE];                // [keys, queries]
    alignas(64) float most[TILE], total[TILE], shrink[TILE];
    alignas(64) float k[TILE * LISSOME_DIM_MAX], v[TILE * LISSOME_DIM_MAX];  // bfloat16 blocks, widened
    // backward only
    alignas(64) float ds[TILE * TILE], dq[LISSOME_DIM_MAX * TILE];
    alignas(64) float q_rows[TILE * LISSOME_DIM_MAX], grad_rows[TILE * LISSOME_DIM_MAX], k_sum[TILE * LISSOME_DIM_MAX];
};

// A visited block. Of tokens, the rows lie in scratch; `tokens` says where they came from.
struct Block {
    const float *k, *v;
    long k_row, v_row, count;
    int64_t first;
    const int64_t *tokens;
};

INLINE void copied(float *into, const lissome_rows &from, int half, int64_t at, long width) {
    const uint16_t *narrow = (const uint16_t *)from.data + at;
    const float *wide = (const float *)from.data + at;
    for (long d = 0; d < width; d++) into[d] = half ? widened(narrow[d]) : wide[d];
}

static Block visited(const lissome_attention &a, int64_t batch, int64_t head, int32_t id, Scratch &at) {
    const int64_t plain = (a.keys + TILE - 1) / TILE, kv = head / (a.heads / a.kv_heads);
    const int64_t k = batch * a.k.batch + kv * a.k.head, v = batch * a.v.batch + kv * a.v.head;
    const bool own = id < plain;
    const int64_t first = (own ? id : id - plain) * TILE, left = (own ? a.keys : a.extra) - first;
    const long count = left < TILE ? left : TILE;
    const int64_t *tokens = own ? nullptr : a.tokens + batch * a.token_batch + head * a.token_head + first;
    if (own && !a.kv_half)
        return {(const float *)a.k.data + k + first * a.k.row, (const float *)a.v.data + v + first * a.v.row, a.k.row, a.v.row, count, first, nullptr};
    for (long j = 0; j < count; j++) {
        const int64_t row = own ? first + j : tokens[j];
        copied(at.k + j * a.dim, a.k, a.kv_half, k + row * a.k.row, a.dim);
        copied(at.v + j * a.value_dim, a.v, a.kv_half, v + row * a.v.row, a.value_dim);
    }
    return {at.k, at.v, a.dim, a.value_dim, count, first, tokens};
}

// The rows of a tile, transposed and times `scale`: [width, 64]; zeros where there is no query.
static void turned(float *into, const lissome_rows &from, int half, int64_t at, long width, long begin, long end, float scale) {
    __builtin_memset(into, 0, sizeof(float) * width * TILE);
    for (long r = begin; r < end; r++)
        for (long d = 0; d < width; d++) {
            int64_t place = at + (r - begin) * from.row + d;
            into[d * TILE + r] = scale * (half ? widened(((const uint16_t *)from.data)[place]) : ((const float *)from.data)[place]);
        }
}

// [keys, queries from `low` to `high`]: what is masked becomes `hidden`.
static void masked(float *s, const uint64_t *bits, long count, float hidden, long low, long high) {
    vi lane;
    for (int i = 0; i < WIDTH; i++) lane[i] = 1 << i;
    for (long j = 0; j < count; j++) {
        uint64_t word = bits[j];
        if (word == ~(uint64_t)0) continue;
        for (long c = low; c < high; c += WIDTH) {
            int part = (int)((word >> c) & (((uint64_t)1 << WIDTH) - 1));
            float *at = s + j * TILE + c;
            vf gone = splat(hidden);
            store(at, (lane & part) != 0 ? load(at) : gone);
        }
    }
}

static void forward_tile(const lissome_attention &a, int64_t batch, int64_t head, int64_t tile, Scratch &at) {
    int64_t first = tile * TILE - a.lead;  // index of the query in row 0
    long begin = first < 0 ? -first : 0, end = a.queries - first < TILE ? a.queries - first : TILE;
    const long low = begin / WIDTH * WIDTH, high = (end + WIDTH - 1) / WIDTH * WIDTH;  // a decoder's step has one query: the vectors without any are left out
    turned(at.q, a.q, a.half, batch * a.q.batch + head * a.q.head + (first + begin) * a.q.row, a.dim, begin, end, a.scale);
    __builtin_memset(at.out, 0, sizeof(float) * a.value_dim * TILE);
    for (int r = 0; r < TILE; r++) at.most[r] = -INFINITY, at.total[r] = 0;
    int64_t list = batch * a.selection_batch + head * a.selection_head + tile * a.most;
    for (int64_t e = 0; e < a.most && a.blocks[list + e] >= 0; e++) {
        Block block = visited(a, batch, head, a.blocks[list + e], at);
        product(at.s + low, TILE, block.k, block.k_row, 1, at.q + low, TILE, block.count, high - low, a.dim, OVERWRITE);
        if (a.masks[list + e] >= 0) masked(at.s, a.bits + (int64_t)a.masks[list + e] * TILE, block.count, -INFINITY, low, high);
        for (long c = low; c < high; c += WIDTH) {
            vf before = load(at.most + c), most = before, zero = {};
            for (long j = 0; j < block.count; j++) {
                vf s = load(at.s + j * TILE + c);
                most = s > most ? s : most;
            }
            vf safe = most == -INFINITY ? zero : most, sum = {};
            for (long j = 0; j < block.count; j++) {
                vf p = exponential(load(at.s + j * TILE + c) - safe);
                store(at.s + j * TILE + c, p);
                sum += p;
            }
            vf shrink = exponential(before - safe);
            store(at.shrink + c, shrink);
            store(at.most + c, most);
            store(at.total + c, load(at.total + c) * shrink + sum);
        }
        product(at.out + low, TILE, block.v, 1, block.v_row, at.s + low, TILE, a.value_dim, high - low, block.count, at.shrink + low);
    }
    for (long r = begin; r < end; r++) {
        int64_t row = (batch * a.heads + head) * a.queries + first + r;
        float total = at.total[r], inverse = total == 0 ? 0 : 1 / total;
        a.lse[row] = at.most[r] + __builtin_logf(total);
        const int64_t place = batch * a.out.batch + head * a.out.head + (first + r) * a.out.row;
        for (long d = 0; d < a.value_dim; d++) {
            float value = at.out[d * TILE + r] * inverse;
            if (a.half) ((uint16_t *)a.out.data)[place + d] = narrowed(value);
            else ((float *)a.out.data)[place + d] = value;
        }
    }
}

// Add A B [keys of the block, width] to the rows of a gradient.
static void added(float *gradient, const Block &block, const float *a, const float *b, long width, float *scratch) {
    if (!block.tokens) return product(gradient + block.first * width, width, a, TILE, 1, b, width, block.count, width, TILE, ADD);
    product(scratch, width, a, TILE, 1, b, width, block.count, width, TILE, OVERWRITE);
    for (long j = 0; j < block.count; j++)
        for (long d = 0; d < width; d++) gradient[block.tokens[j] * width + d] += scratch[j * width + d];
}

// Gradients of one tile. dk [keys, dim_up] and dv [keys, value_up] are added to; `up` is rounded up to 16.
static void backward_tile(const lissome_attention &a, int64_t batch, int64_t head, int64_t tile, Scratch &at, float *dk, float *dv, long dim_up, long value_up) {
    int64_t first = tile * TILE - a.lead;
    long begin = first < 0 ? -first : 0, end = a.queries - first < TILE ? a.queries - first : TILE;
    turned(at.q, a.q, a.half, batch * a.q.batch + head * a.q.head + (first + begin) * a.q.row, a.dim, begin, end, a.scale);
    turned(at.out, a.grad, a.half, batch * a.grad.batch + head * a.grad.head + (first + begin) * a.grad.row, a.value_dim, begin, end, 1);
    __builtin_memset(at.dq, 0, sizeof(float) * a.dim * TILE);
    __builtin_memset(at.q_rows, 0, sizeof(float) * dim_up * TILE);
    __builtin_memset(at.grad_rows, 0, sizeof(float) * value_up * TILE);
    for (int r = 0; r < TILE; r++) {
        for (long d = 0; d < a.dim; d++) at.q_rows[r * dim_up + d] = at.q[d * TILE + r];
        for (long d = 0; d < a.value_dim; d++) at.grad_rows[r * value_up + d] = at.out[d * TILE + r];
        at.most[r] = INFINITY;  // a row without a query, or one that sees no key: exp(s - inf) = 0
        at.total[r] = 0;
    }
    const int64_t rows = (batch * a.heads + head) * a.queries + first;
    for (long r = begin; r < end; r++) {
        at.most[r] = a.lse[rows + r] == -INFINITY ? INFINITY : a.lse[rows + r];
        at.total[r] = a.delta[rows + r];
    }
    int64_t list = batch * a.selection_batch + head * a.selection_head + tile * a.most;
    for (int64_t e = 0; e < a.most && a.blocks[list + e] >= 0; e++) {
        Block block = visited(a, batch, head, a.blocks[list + e], at);
        product(at.s, TILE, block.k, block.k_row, 1, at.q, TILE, block.count, TILE, a.dim, OVERWRITE);
        product(at.ds, TILE, block.v, block.v_row, 1, at.out, TILE, block.count, TILE, a.value_dim, OVERWRITE);
        for (long j = 0; j < block.count; j++)
            for (int c = 0; c < TILE; c += WIDTH) store(at.s + j * TILE + c, exponential(load(at.s + j * TILE + c) - load(at.most + c)));
        if (a.masks[list + e] >= 0) masked(at.s, a.bits + (int64_t)a.masks[list + e] * TILE, block.count, 0, 0, TILE);
        for (long j = 0; j < block.count; j++)
            for (int c = 0; c < TILE; c += WIDTH) {
                float *ds = at.ds + j * TILE + c;
                store(ds, load(at.s + j * TILE + c) * (load(ds) - load(at.total + c)));
            }
        added(dv, block, at.s, at.grad_rows, value_up, at.k_sum);
        added(dk, block, at.ds, at.q_rows, dim_up, at.k_sum);
        product(at.dq, TILE, block.k, 1, block.k_row, at.ds, TILE, a.dim, TILE, block.count, ADD);
    }
    for (long r = begin; r < end; r++)
        for (long d = 0; d < a.dim; d++) a.dq[(rows + r) * a.dim + d] = at.dq[d * TILE + r] * a.scale;
}
