// Attention of a prompt's tiles in integers (AVX512-VNNI): one vector instruction takes 32 products, against 16 of floats. Keys and values are rounded once for
// all query heads that read them; the weight of a score, times the scale of its key's value, is rounded beside the largest of its query in the same block of 64
// keys. Every scale is of one key or one query, so that no row depends on what comes after it.
//
// Sums stay below 2^31: keys and queries have 13 and 14 bits with sign for up to 64 dimensions, one less each for up to 256; values have 12 and weights 14 without
// one, for 64 keys.
// Source: QK in blocks with scales of their own as in SageAttention (Zhang et al. 2024), which has 8 bits; online softmax as in FlashAttention (Dao et al. 2022).
//
// Included by prompt_body.h for AVX-512 alone. Scores are [keys, queries], as in attention_body.h.

constexpr float VALUE_MOST = 2047, WEIGHT_MOST = 16383, LEAST_SCALE = 0x1p-60f;
INLINE float key_most(long dim) { return dim <= 64 ? 4095 : 2047; }
INLINE float query_most(long dim) { return dim <= 64 ? 8191 : 4095; }
constexpr long LANES = TILE / 16, AT_ONCE = 4;  // vectors of a tile's queries; rows that a product keeps in registers

// 64 keys and their values. odd: the first key with something not finite in it or its value, or TILE.
struct CodedBlock {
    float *key_scale, *value_log, *value_inverse;  // [keys]: scale of a key's codes; log2 of its value's scale, and one over that
    int32_t *odd;
    int16_t *keys;    // [keys, dim]
    int32_t *values;  // [pairs of keys, dim]: the second key's code in the high half
};

INLINE CodedBlock coded_at(char *room, long dim) {
    float *scales = (float *)(room + 64);
    return {scales, scales + TILE, scales + 2 * TILE, (int32_t *)room, (int16_t *)(scales + 3 * TILE), (int32_t *)(scales + 3 * TILE) + TILE / 2 * dim};
}

// What one thread needs for a tile.
struct CodedTile {
    alignas(64) int32_t queries[LISSOME_DIM_MAX / 2 * TILE];  // [pairs of dimensions, queries]
    alignas(64) float scale[TILE];                            // of a query's codes, times log2(e): weights are powers of two
    alignas(64) float scores[TILE * TILE];
    alignas(64) int32_t weights[TILE / 2 * TILE];  // [pairs of keys, queries]
    alignas(64) float out[LISSOME_DIM_MAX * TILE];
    alignas(64) float most[TILE], total[TILE], shrink[TILE], fresh[TILE];
};

INLINE __mmask16 not_finite(__m512 x) {
    const __m512 none = _mm512_setzero_ps();
    return _mm512_cmp_ps_mask(_mm512_mul_ps(x, none), none, _CMP_NEQ_UQ);
}

// The largest number of a row, or NaN where one is not finite.
template <typename Row>
INLINE float largest_of(long dim, Row row) {
    __m512 most = _mm512_setzero_ps();
    __mmask16 odd = 0;
    for (long c = 0; c < dim; c += 16) odd |= not_finite(row(c)), most = _mm512_max_ps(most, _mm512_abs_ps(row(c)));
    return odd ? NAN : _mm512_reduce_max_ps(most);
}

// `count` keys and values of one head, from number `from` of the cache on; zeros after them.
static void block_coded(const lissome_decoder &d, int64_t from, long count, const CodedBlock &to) {
    __builtin_memset(to.keys, 0, 4 * TILE * d.dim);
    *to.odd = TILE;
    for (long j = 0; j < TILE; j++) {
        const auto key = [&](long c) { return load_kept(d.keys, d.half, from + j * d.dim + c); };
        const auto value = [&](long c) { return load_kept(d.values, d.half, from + j * d.dim + c); };
        const float most_key = j < count ? largest_of(d.dim, key) : 0.f, most_value = j < count ? largest_of(d.dim, value) : 0.f;
        const bool odd = most_key != most_key || most_value != most_value;
        const float scale = odd || most_value / VALUE_MOST < LEAST_SCALE ? LEAST_SCALE : most_value / VALUE_MOST;
        to.key_scale[j] = odd ? 0.f : most_key / key_most(d.dim), to.value_log[j] = std::log2(scale), to.value_inverse[j] = 1 / scale;
        if (odd && *to.odd == TILE) *to.odd = (int32_t)j;
        if (odd || j >= count) continue;
        const __m512 key_by = _mm512_set1_ps(most_key > 1e-30f ? key_most(d.dim) / most_key : 0.f), value_by = _mm512_set1_ps(1 / scale);
        for (long c = 0; c < d.dim; c += 16) {
            _mm256_storeu_si256((__m256i *)(to.keys + j * d.dim + c), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(key(c), key_by))));
            const __m512i codes = _mm512_cvtps_epi32(_mm512_mul_ps(value(c), value_by));
            int32_t *pairs = to.values + j / 2 * d.dim + c;
            const __m512i both = j % 2 ? _mm512_or_si512(_mm512_loadu_si512(pairs), _mm512_slli_epi32(codes, 16)) : _mm512_and_si512(codes, _mm512_set1_epi32(0xffff));
            _mm512_storeu_si512(pairs, both);
        }
    }
}

// Rows [begin, end) of a tile, times the scale of the scores; zeros in the others. The total of a row that is not finite is NaN.
static void queries_coded(const lissome_decoder &d, const float *rows, long row, long begin, long end, CodedTile &to) {
    __builtin_memset(to.queries, 0, sizeof(int32_t) * d.dim / 2 * TILE);
    for (long r = 0; r < TILE; r++) to.most[r] = -INFINITY, to.total[r] = 0, to.scale[r] = 0;
    for (long r = begin; r < end; r++, rows += row) {
        const float largest = largest_of(d.dim, [&](long c) { return _mm512_mul_ps(_mm512_loadu_ps(rows + c), _mm512_set1_ps(d.scale)); });
        if (largest != largest) to.total[r] = NAN;
        if (!(largest > 1e-30f)) continue;
        const __m512 by = _mm512_set1_ps(d.scale * (query_most(d.dim) / largest));
        to.scale[r] = largest / query_most(d.dim) * 1.44269504088896341f;
        for (long c = 0; c < d.dim; c += 16) {
            alignas(32) int32_t pairs[8];
            _mm256_store_si256((__m256i *)pairs, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(rows + c), by))));
            for (long p = 0; p < 8; p++) to.queries[(c / 2 + p) * TILE + r] = pairs[p];
        }
    }
}

// sum [AT_ONCE rows, queries] = a [rows, pairs] b [pairs, queries], each a pair of products. am, ak: strides of a.
INLINE void pairs_times(const int32_t *a, long am, long ak, const int32_t *b, long pairs, __m512i (*sum)[LANES]) {
    for (long i = 0; i < AT_ONCE; i++)
        for (long v = 0; v < LANES; v++) sum[i][v] = _mm512_setzero_si512();
    for (long p = 0; p < pairs; p++) {
        __m512i row[LANES];
        for (long v = 0; v < LANES; v++) row[v] = _mm512_load_si512(b + p * TILE + v * 16);
        for (long i = 0; i < AT_ONCE; i++) {
            const __m512i one = _mm512_set1_epi32(a[i * am + p * ak]);
            for (long v = 0; v < LANES; v++) sum[i][v] = _mm512_dpwssd_epi32(sum[i][v], row[v], one);
        }
    }
}

// 2^x for x <= 0, within 3e-6 of it; 0 for -inf. The polynomial is minimax for 2^f on [0, 1].
INLINE __m512 power(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, 1);  // x less the integer below it
    __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(.01353417f), _mm512_set1_ps(.05201146f));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(.24144276f));
    p = _mm512_fmadd_ps(f, p, _mm512_set1_ps(.69300383f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(f, p, _mm512_set1_ps(1.00000259f)), x);
}

// Scores of the first `keys` keys of a block (a multiple of AT_ONCE), as powers of two and with the scales of their values, and each query's largest.
// diagonal: query r sees keys up to r.
static void scores_of(const CodedBlock &block, long dim, long keys, bool diagonal, CodedTile &at, __m512 *most) {
    __m512 scale[LANES];
    for (long v = 0; v < LANES; v++) most[v] = _mm512_set1_ps(-INFINITY), scale[v] = _mm512_load_ps(at.scale + v * 16);
    for (long j = 0; j < keys; j += AT_ONCE) {
        __m512i sum[AT_ONCE][LANES];
        pairs_times((const int32_t *)block.keys + j * dim / 2, dim / 2, 1, at.queries, dim / 2, sum);
        for (long i = 0; i < AT_ONCE; i++) {
            const __m512 key = _mm512_set1_ps(block.key_scale[j + i]), value = _mm512_set1_ps(block.value_log[j + i]);
            for (long v = 0; v < LANES; v++) {
                __m512 score = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[i][v]), key), scale[v], value);
                if (diagonal) {
                    const long hidden = j + i - v * 16;  // so many of these queries come before the key
                    const __mmask16 seen = hidden <= 0 ? 0xffff : hidden >= 16 ? 0 : (__mmask16)(0xffff << hidden);
                    score = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen, score);
                }
                _mm512_store_ps(at.scores + (j + i) * TILE + v * 16, score);
                most[v] = _mm512_max_ps(most[v], score);
            }
        }
    }
}

// Weights of the block's keys as codes; what was summed before is to shrink by at.shrink, and these weights count at.fresh.
static void weights_of(const CodedBlock &block, long keys, const __m512 *most, CodedTile &at) {
    const __m512 full = _mm512_set1_ps(WEIGHT_MOST);
    for (long v = 0; v < LANES; v++) {
        const __m512 here = most[v], before = _mm512_load_ps(at.most + v * 16), now = _mm512_max_ps(before, here);
        const __m512 shrink = power(_mm512_sub_ps(before, now)), fresh = power(_mm512_sub_ps(here, now));
        __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (long j = 0; j < keys; j += 2) {
            __m512i pair[2];
            for (long i = 0; i < 2; i++) {
                const __m512 weight = _mm512_mul_ps(full, power(_mm512_sub_ps(_mm512_load_ps(at.scores + (j + i) * TILE + v * 16), here)));
                sum[i] = _mm512_fmadd_ps(weight, _mm512_set1_ps(block.value_inverse[j + i]), sum[i]);
                pair[i] = _mm512_cvtps_epi32(weight);
            }
            _mm512_store_si512(at.weights + j / 2 * TILE + v * 16, _mm512_or_si512(pair[0], _mm512_slli_epi32(pair[1], 16)));
        }
        const __m512 total = _mm512_mul_ps(_mm512_load_ps(at.total + v * 16), shrink);
        _mm512_store_ps(at.total + v * 16, _mm512_fmadd_ps(_mm512_add_ps(sum[0], sum[1]), fresh, total));
        _mm512_store_ps(at.most + v * 16, now), _mm512_store_ps(at.shrink + v * 16, shrink), _mm512_store_ps(at.fresh + v * 16, fresh);
    }
}

// out [dim, queries], shrunk, += the block's values by their weights.
static void values_of(const CodedBlock &block, long dim, long keys, CodedTile &at) {
    __m512 shrink[LANES], fresh[LANES];
    for (long v = 0; v < LANES; v++) shrink[v] = _mm512_load_ps(at.shrink + v * 16), fresh[v] = _mm512_load_ps(at.fresh + v * 16);
    for (long c = 0; c < dim; c += AT_ONCE) {
        __m512i sum[AT_ONCE][LANES];
        pairs_times(block.values + c, 1, dim, at.weights, keys / 2, sum);
        for (long i = 0; i < AT_ONCE; i++)
            for (long v = 0; v < LANES; v++) {
                float *to = at.out + (c + i) * TILE + v * 16;
                _mm512_store_ps(to, _mm512_fmadd_ps(_mm512_load_ps(to), shrink[v], _mm512_mul_ps(_mm512_cvtepi32_ps(sum[i][v]), fresh[v])));
            }
    }
}

// Attention of one head's queries of a tile, rows [begin, end), over `blocks` blocks of keys, the last the tile's own. rows, out: [queries, heads, dim].
static void coded_tile(const lissome_decoder &d, const char *coded, long blocks, long last_keys, const float *rows, float *out, long row, long begin, long end,
                       CodedTile &at) {
    queries_coded(d, rows, row, begin, end, at);
    __builtin_memset(at.out, 0, sizeof(float) * d.dim * TILE);
    for (long b = 0; b < blocks; b++) {
        const CodedBlock block = coded_at((char *)coded + b * coded_bytes(d.dim), d.dim);
        const bool diagonal = b + 1 == blocks;
        const long keys = diagonal ? up_to(last_keys, AT_ONCE) : TILE;
        __m512 most[LANES];
        scores_of(block, d.dim, keys, diagonal, at, most);
        weights_of(block, keys, most, at);
        values_of(block, d.dim, keys, at);
        if (*block.odd < TILE)
            for (long r = diagonal ? *block.odd : 0; r < TILE; r++) at.total[r] = NAN;
    }
    for (long r = begin; r < end; r++, out += row) {
        const float inverse = 1 / at.total[r];
        for (long c = 0; c < d.dim; c++) out[c] = at.out[c * TILE + r] * inverse;
    }
}

// This thread's share of the keys and values that a long run sees, as codes.
static void coded_keys(const Step &s, int thread, long layer, const Run &run, const lissome_attention &a, char *coded) {
    const lissome_decoder &d = s.d;
    const long items = d.kv_heads * a.most;
    for (long item = share(items, thread, s.pool.size()); item < share(items, thread + 1, s.pool.size()); item++) {
        const long head = item / a.most, first = item % a.most * TILE, count = a.keys - first < TILE ? a.keys - first : TILE;
        block_coded(d, place_of(d, layer, s.given.slot[run.begin], head, first), count, coded_at(coded + item * coded_bytes(d.dim), d.dim));
    }
}

// This thread's tiles of a long run, in integers.
static void looked_at_codes(const Step &s, int thread, const Run &run, const lissome_attention &a, const char *coded, CodedTile &room) {
    const lissome_decoder &d = s.d;
    const long before = a.most - a.tiles, group = d.heads / d.kv_heads;
    for (long item = thread; item < d.heads * a.tiles; item += s.pool.size()) {  // the last tiles see most, so threads take them in turn
        const long head = item % d.heads, tile = item / d.heads, first = tile * TILE - a.lead;
        const long begin = first < 0 ? -first : 0, end = a.queries - first < TILE ? a.queries - first : TILE, blocks = before + tile + 1;
        const long at = (run.begin + first + begin) * s.q_wide + head * d.dim, last = a.keys - (blocks - 1) * TILE;
        coded_tile(d, coded + head / group * a.most * coded_bytes(d.dim), blocks, last < TILE ? last : TILE, s.q + at, s.seen + at, s.q_wide, begin, end, room);
    }
}
