// Products of rounded inputs (matrix_rounded.h) with codes, as integers (AVX512-VNNI): exact but for that rounding. One vector instruction takes 64 or 32
// products, against 16 of floats; bfloat16's (vdpbf16ps) is slower than that of floats on Emerald Rapids, so it is not used.
//
// Included by matrix_body.h for AVX-512 alone.

constexpr long PAIR = 2 * LISSOME_ROWS;  // rows of two tiles: a block of the next product's inputs

// The codes of 32 columns of a tile, as the products read them: X vectors. `words`: where they stand.
template <int X, int BITS>
INLINE void taken_apart(const char *words, __m512i *w) {
#pragma GCC unroll 8
    for (int i = 0; i < BITS; i++) {
        const __m512i word = _mm512_loadu_si512(words + i * 64);
        __builtin_prefetch(words + i * 64 + AHEAD);
        if (X == 8 && BITS == 4) {
            const __m512i mask = _mm512_set1_epi32(0x0f0f0f0f);
            w[2 * i] = _mm512_and_si512(word, mask), w[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi32(word, 4), mask);
        } else if (X == 8) {
            w[i] = _mm512_xor_si512(word, _mm512_set1_epi32((int)0x80808080));  // 0..255: 128 more than the code
        } else if (BITS == 4) {
            for (int c = 0; c < 4; c++) w[4 * i + c] = _mm512_and_si512(_mm512_srli_epi32(word, 4 * c), _mm512_set1_epi32(0x000f000f));
        } else {
            w[2 * i] = _mm512_srai_epi16(_mm512_slli_epi16(word, 8), 8), w[2 * i + 1] = _mm512_srai_epi16(word, 8);
        }
    }
}

template <int X>
INLINE __m512i dotted(__m512i sum, __m512i w, __m512i x) {
    return X == 8 ? _mm512_dpbusd_epi32(sum, w, x) : _mm512_dpwssd_epi32(sum, w, x);
}

// What one group of T tiles multiplies with: codes taken apart, scales, offsets, and scale times the sum of the codes where inputs have a middle.
template <int T, int X>
struct Taken {
    __m512i w[T][X];
    __m512 scale[T], offset[T], whole[T];
};

// The sums of 32 codes of each row, from the vectors of `taken_apart<8>`.
template <int BITS>
INLINE __m512 summed(const __m512i *w) {
    const __m512i ones = _mm512_set1_epi8(1);
    if (BITS == 4) {  // eight codes of 4 bits: their sum is a byte still
        const __m512i a = _mm512_add_epi8(_mm512_add_epi8(w[0], w[1]), _mm512_add_epi8(w[2], w[3]));
        const __m512i b = _mm512_add_epi8(_mm512_add_epi8(w[4], w[5]), _mm512_add_epi8(w[6], w[7]));
        return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_add_epi8(a, b), ones));
    }
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int i = 0; i < 8; i++) sum[i % 2] = _mm512_dpbusd_epi32(sum[i % 2], w[i], ones);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(sum[0], sum[1]));
}

// y [N, 32], of which T tiles from the first on += 32 columns of T tiles times N inputs, whose sums do not wait for one another.
template <int N, int T, int X>
INLINE void inputs_times(const Taken<T, X> &m, const int8_t *codes, const float *scales, float *y) {
    __m512i sum[N][T];
    for (int n = 0; n < N; n++)
        for (int t = 0; t < T; t++) sum[n][t] = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int i = 0; i < X; i++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            int32_t four;
            __builtin_memcpy(&four, codes + n * (LISSOME_GROUP_MIN * X / 8) + i * 4, 4);
            const __m512i inputs = _mm512_set1_epi32(four);
            for (int t = 0; t < T; t++) sum[n][t] = dotted<X>(sum[n][t], m.w[t][i], inputs);
        }
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
        const __m512 x_scale = _mm512_set1_ps(scales[SCALES * n]), x_middle = _mm512_set1_ps(scales[SCALES * n + 1]), x_sum = _mm512_set1_ps(scales[SCALES * n + 2]);
        for (int t = 0; t < T; t++) {
            float *at = y + PAIR * n + 16 * t;
            __m512 before = _mm512_fmadd_ps(m.offset[t], x_sum, _mm512_load_ps(at));
            if (X == 8) before = _mm512_fmadd_ps(m.whole[t], x_middle, before);
            _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[n][t]), m.scale[t]), x_scale, before));
        }
    }
}

// y [count, 32] += 32 columns of T tiles times `count` inputs. at, words: of each tile, its group and where in it the codes of these columns stand.
template <int T, int X, int BITS>
INLINE void block_times(const char *const *at, const char *const *words, const int8_t *codes, const float *scales, long count, float *y) {
    constexpr int N = 8 / T;
    constexpr long EACH = LISSOME_GROUP_MIN * X / 8;
    Taken<T, X> m;
    for (int t = 0; t < T; t++) {
        taken_apart<X, BITS>(words[t], m.w[t]);
        m.scale[t] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at[t]));
        m.offset[t] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(at[t] + 32)));
        if (X == 8 && BITS == 8) m.offset[t] = _mm512_fnmadd_ps(_mm512_set1_ps(128.f), m.scale[t], m.offset[t]);
        if (X == 8) m.whole[t] = _mm512_mul_ps(m.scale[t], summed<BITS>(m.w[t]));
    }
    long n = 0;
    for (; n + N <= count; n += N) inputs_times<N>(m, codes + n * EACH, scales + n * SCALES, y + n * PAIR);
    if (N > 4 && n + 4 <= count) inputs_times<4>(m, codes + n * EACH, scales + n * SCALES, y + n * PAIR), n += 4;
    if (n + 2 <= count) inputs_times<2>(m, codes + n * EACH, scales + n * SCALES, y + n * PAIR), n += 2;
    if (n < count) inputs_times<1>(m, codes + n * EACH, scales + n * SCALES, y + n * PAIR);
}

// y [count, 32], of which T tiles from the first on: T tiles times the `count` rows of a part. y: zeros before.
template <int T, int X, int BITS>
static void tiles_times(const lissome_matrix &m, long tile, const Rounded &x, long part, long count, float *y) {
    const char *at[T], *words[T];
    for (int t = 0; t < T; t++) at[t] = (const char *)m.data + (tile + t) * tile_bytes(m);
    const int8_t *codes = x.codes + part * m.columns * (X / 8);
    const float *scales = x.scales + part * (m.columns / LISSOME_GROUP_MIN) * SCALES;
    for (long first = 0; first < m.columns; first += LISSOME_GROUP_MIN, codes += count * (LISSOME_GROUP_MIN * X / 8), scales += count * SCALES) {
        const long within = first % m.group;
        for (int t = 0; t < T; t++) {
            if (first && !within) at[t] += group_bytes(m);
            words[t] = at[t] + 64 + within * 2 * BITS;
        }
        block_times<T, X, BITS>(at, words, codes, scales, count, y);
    }
}

// y [rows of the part that begins at row `part`, 32] = those rows times `tiles` (1 or 2) tiles, as many at once as there are registers for.
template <int X, int BITS>
static void pair_times(const lissome_matrix &m, long tile, long tiles, const Rounded &x, long part, float *y) {
    const long count = part_rows(x, part);
    __builtin_memset(y, 0, sizeof(float) * count * PAIR);
    if (X == 8 && tiles == 2) return tiles_times<2, X, BITS>(m, tile, x, part, count, y);
    for (long t = 0; t < tiles; t++) tiles_times<1, X, BITS>(m, tile + t, x, part, count, y + t * LISSOME_ROWS);
}
