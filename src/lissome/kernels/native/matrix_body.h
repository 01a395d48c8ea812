// Products with the matrices of matrix.h, compiled once for each instruction set. Codes are widened in registers and multiplied with float32 inputs: nothing
// but the weights themselves is rounded. Where several inputs share the weights, they may be rounded too (matrix_rounded.h, matrix_integers.h).
#include "vector_body.h"

constexpr long PARTS = LISSOME_ROWS / WIDTH;  // vectors that hold one number of each row of a tile
constexpr long FEW = 8;                       // up to so many inputs are multiplied straight from the codes
constexpr long AHEAD = 2048;                  // bytes: the processor fetches ahead within a page alone, and weights are read once, page after page
constexpr long DEEP = 256;                    // columns of a panel of widened weights: 64 rows of it are 64 KiB

INLINE vi load_words(const void *at) {
    vi value;
    __builtin_memcpy(&value, at, sizeof value);
    return value;
}

#if WIDTH == 16
INLINE vf halves(const void *at) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at)); }
// Code c of every word: the low four bits of a lane choose from a table.
INLINE vf decoded(vi words, int c) {
    const vf table = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return (vf)_mm512_permutexvar_ps((__m512i)(words >> (4 * c)), (__m512)table);
}
#elif WIDTH == 8
INLINE vf halves(const void *at) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)at)); }
INLINE vf decoded(vi words, int c) { return __builtin_convertvector((words >> (4 * c)) & 15, vf); }
#else
INLINE float half_at(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    uint32_t word = rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : (rest << 13) + (112u << 23);
    float value;
    if (rest < 0x400) {  // zero and what is below 2^-14
        value = (float)rest * 5.9604644775390625e-8f;
        __builtin_memcpy(&word, &value, 4);
    }
    word |= sign;
    __builtin_memcpy(&value, &word, 4);
    return value;
}
INLINE vf halves(const void *at) {
    uint16_t bits[WIDTH];
    __builtin_memcpy(bits, at, sizeof bits);
    vf found;
    for (int i = 0; i < WIDTH; i++) found[i] = half_at(bits[i]);
    return found;
}
INLINE vf decoded(vi words, int c) { return __builtin_convertvector((words >> (4 * c)) & 15, vf); }
#endif

INLINE vf decoded_byte(vi words, int c) { return __builtin_convertvector((words << (24 - 8 * c)) >> 24, vf); }

// Bytes of a group of a tile, and of a tile.
INLINE long group_bytes(const lissome_matrix &m) { return m.bits == 32 ? (long)m.group * 64 : 64 + (long)m.group * 2 * m.bits; }
INLINE long tile_bytes(const lissome_matrix &m) { return m.columns / m.group * group_bytes(m); }
INLINE long tiles_of(const lissome_matrix &m) { return (m.rows + LISSOME_ROWS - 1) / LISSOME_ROWS; }

// One part of a tile times N inputs. sums: of each input [columns / 32], the sum of every 32 columns. out: [N, ldo], 16 rows of which this part writes WIDTH.
template <int N, int BITS>
INLINE void part_times(const lissome_matrix &m, long tile, long part, const float *x, long ldx, const float *sums, float *out, long ldo) {
    constexpr int CHAINS = N == 1 ? 4 : N == 2 ? 2 : 1;  // sums that do not wait for one another
    constexpr int IN_WORD = 32 / BITS;
    const char *at = (const char *)m.data + tile * tile_bytes(m);
    const long deep = m.group, per_sum = deep / LISSOME_GROUP_MIN, blocks = m.columns / LISSOME_GROUP_MIN;
    vf total[N] = {};
    for (long first = 0; first < m.columns; first += deep, at += group_bytes(m)) {
        vf sum[N][CHAINS] = {};
        const char *words = at + (BITS == 32 ? 0 : 64) + part * WIDTH * 4;
        for (long c = 0; c < deep; c += IN_WORD, words += 64) {
            const vi word = load_words(words);
            __builtin_prefetch(words + AHEAD);
#pragma GCC unroll 8
            for (int i = 0; i < IN_WORD; i++) {
                const vf w = BITS == 32 ? (vf)word : BITS == 4 ? decoded(word, i) : decoded_byte(word, i);
                for (int n = 0; n < N; n++) sum[n][(BITS == 32 ? c : i) % CHAINS] += w * x[n * ldx + first + c + i];
            }
        }
        vf scale = splat(1.f), offset = {};
        if (BITS != 32) scale = halves(at + part * WIDTH * 2), offset = halves(at + 32 + part * WIDTH * 2);
        for (int n = 0; n < N; n++) {
            vf whole = sum[n][0];
            for (int i = 1; i < CHAINS; i++) whole += sum[n][i];
            float inputs = 0;
            if (BITS != 32) inputs = sums[n * blocks + first / LISSOME_GROUP_MIN];
            if (BITS != 32 && per_sum > 1)
#pragma GCC unroll 1
                for (long i = 1; i < per_sum; i++) inputs += sums[n * blocks + first / LISSOME_GROUP_MIN + i];
            total[n] += scale * whole + offset * inputs;
        }
    }
    for (int n = 0; n < N; n++) store(out + n * ldo + part * WIDTH, total[n]);
}

template <int N>
INLINE void tile_times(const lissome_matrix &m, long tile, const float *x, long ldx, const float *sums, float *out, long ldo) {
    for (long part = 0; part < PARTS; part++) switch (m.bits) {
            case 4: part_times<N, 4>(m, tile, part, x, ldx, sums, out, ldo); break;
            case 8: part_times<N, 8>(m, tile, part, x, ldx, sums, out, ldo); break;
            default: part_times<N, 32>(m, tile, part, x, ldx, sums, out, ldo); break;
        }
}

// Tiles [begin, end) times n <= FEW inputs.
static void few(const lissome_matrix &m, long begin, long end, long n, const float *x, long ldx, const float *sums, float *out, long ldo) {
    for (long tile = begin; tile < end; tile++) {
        float *to = out + tile * LISSOME_ROWS;
        switch (n) {
            case 1: tile_times<1>(m, tile, x, ldx, sums, to, ldo); break;
            case 2: tile_times<2>(m, tile, x, ldx, sums, to, ldo); break;
            case 3: tile_times<3>(m, tile, x, ldx, sums, to, ldo); break;
            case 4: tile_times<4>(m, tile, x, ldx, sums, to, ldo); break;
            case 5: tile_times<5>(m, tile, x, ldx, sums, to, ldo); break;
            case 6: tile_times<6>(m, tile, x, ldx, sums, to, ldo); break;
            case 7: tile_times<7>(m, tile, x, ldx, sums, to, ldo); break;
            default: tile_times<8>(m, tile, x, ldx, sums, to, ldo); break;
        }
    }
}

// Weights of a tile, columns [first, first + deep), widened: panel [deep, ldp], 16 of whose columns are the tile's rows.
static void widened_tile(const lissome_matrix &m, long tile, long first, long deep, float *panel, long ldp) {
    const char *at = (const char *)m.data + tile * tile_bytes(m) + first / m.group * group_bytes(m);
    const int in_word = 32 / m.bits;
    for (long begin = 0; begin < deep; begin += m.group, at += group_bytes(m))
        for (long part = 0; part < PARTS; part++) {
            vf scale = splat(1.f), offset = {};
            if (m.bits != 32) scale = halves(at + part * WIDTH * 2), offset = halves(at + 32 + part * WIDTH * 2);
            const char *words = at + (m.bits == 32 ? 0 : 64) + part * WIDTH * 4;
            for (long c = 0; c < m.group; c += in_word, words += 64) {
                const vi word = load_words(words);
                for (int i = 0; i < in_word; i++) {
                    const vf code = m.bits == 32 ? (vf)word : m.bits == 4 ? decoded(word, i) : decoded_byte(word, i);
                    store(panel + (begin + c + i) * ldp + part * WIDTH, scale * code + offset);
                }
            }
        }
}

// Tiles [begin, end) times any number of inputs: four tiles of widened weights at a time serve all inputs. panel: [DEEP, 64].
static void many(const lissome_matrix &m, long begin, long end, long n, const float *x, long ldx, float *out, long ldo, float *panel) {
    for (long tile = begin; tile < end; tile += 4) {
        const long count = end - tile < 4 ? end - tile : 4, width = count * LISSOME_ROWS;
        for (long first = 0; first < m.columns; first += DEEP) {
            const long deep = m.columns - first < DEEP ? m.columns - first : DEEP;
            for (long t = 0; t < count; t++) widened_tile(m, tile + t, first, deep, panel + t * LISSOME_ROWS, width);
            product(out + tile * LISSOME_ROWS, ldo, x + first, ldx, 1, panel, width, n, width, deep, first ? ADD : OVERWRITE);
        }
    }
}

// The sum of every 32 columns of n inputs: sums [n, columns / 32].
static void block_sums(const float *x, long ldx, long n, long columns, float *sums) {
    const long blocks = columns / LISSOME_GROUP_MIN;
    for (long i = 0; i < n * blocks; i++) {
        const float *from = x + i / blocks * ldx + i % blocks * LISSOME_GROUP_MIN;
        vf sum = {};
        for (long c = 0; c < LISSOME_GROUP_MIN; c += WIDTH) sum += load(from + c);
        float whole = 0;
        for (int c = 0; c < WIDTH; c++) whole += sum[c];
        sums[i] = whole;
    }
}

// One row of the matrix, widened: out [columns].
static void row_of(const lissome_matrix &m, long row, float *out) {
    const char *at = (const char *)m.data + row / LISSOME_ROWS * tile_bytes(m);
    const long lane = row % LISSOME_ROWS, part = lane / WIDTH, in_word = 32 / m.bits;
    for (long first = 0; first < m.columns; first += m.group, at += group_bytes(m)) {
        float scale = 1, offset = 0;
        if (m.bits != 32) scale = halves(at + part * WIDTH * 2)[lane % WIDTH], offset = halves(at + 32 + part * WIDTH * 2)[lane % WIDTH];
        const char *words = at + (m.bits == 32 ? 0 : 64) + lane * 4;
        for (long c = 0; c < m.group; c++) {
            int32_t word;
            __builtin_memcpy(&word, words + c / in_word * 64, 4);
            const long i = c % in_word;
            float code;
            if (m.bits == 32) __builtin_memcpy(&code, &word, 4);
            else code = m.bits == 4 ? (float)((word >> (4 * i)) & 15) : (float)(int8_t)(word >> (8 * i));
            out[first + c] = scale * code + offset;
        }
    }
}

#include "matrix_rounded.h"

#if WIDTH == 16
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vnni")
#endif
#include "matrix_integers.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
INLINE void two_tiles(const lissome_matrix &m, long tile, long tiles, const Rounded &x, long part, float *y) {
    if (x.inputs == 8) return (m.bits == 4 ? pair_times<8, 4> : pair_times<8, 8>)(m, tile, tiles, x, part, y);
    (m.bits == 4 ? pair_times<16, 4> : pair_times<16, 8>)(m, tile, tiles, x, part, y);
}

// out [rows, ldo]: tiles [begin, end) times all rows.
static void integers(const lissome_matrix &m, long begin, long end, const Rounded &x, float *out, long ldo) {
    alignas(64) float y[BLOCK_ROWS * PAIR];
    for (long part = 0; part < x.rows; part += BLOCK_ROWS)
        for (long tile = begin; tile < end; tile += 2) {
            const long tiles = end - tile < 2 ? 1 : 2;
            two_tiles(m, tile, tiles, x, part, y);
            for (long n = 0; n < part_rows(x, part); n++)
                for (long t = 0; t < tiles; t++) store(out + (part + n) * ldo + (tile + t) * LISSOME_ROWS, load(y + n * PAIR + t * LISSOME_ROWS));
        }
}
#else
static void integers(const lissome_matrix &, long, long, const Rounded &, float *, long) {}
#endif
