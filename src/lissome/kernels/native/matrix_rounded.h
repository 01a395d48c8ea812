// Products whose inputs are rounded to 8 or 16 bits, with a scale for every 32 columns of a row, and multiplied as integers (AVX512-VNNI): exact but for
// that rounding. One vector instruction takes 64 or 32 products, against 16 of floats; bfloat16's (vdpbf16ps) is slower than that of floats where this was
// measured (Xeon, Emerald Rapids: 1.4 against 5.5 thousand million a second), so it is not used.
//
// Included by matrix_body.h for AVX-512 alone.

// Inputs as the products read them. codes: [blocks of 32 columns, count, 32 codes in the order of `places`]; scales: [blocks, count, 2], the scale and
// scale times the sum of the codes.
struct Rounded {
    int8_t *codes;
    float *scales;
    long count;
};

INLINE Rounded rounded_at(void *room, long columns) {
    return {(int8_t *)room, (float *)((char *)room + BLOCK_ROWS * columns / LISSOME_GROUP_MIN * 64), 0};
}

// Bytes of 16 neighbours in the order in which masks and shifts take a word's codes apart.
INLINE __m128i places(int inputs, int bits) {
    if (inputs == 16) return bits == 4 ? _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15) : _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    return bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15) : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// x [count <= BLOCK_ROWS, ldx] rounded for a matrix of `bits`. What is not finite makes its whole block NaN.
template <int X>
static void rounded(const float *x, long ldx, long columns, int bits, Rounded &to) {
    const __m128i order = places(X, bits);
    const float most_code = X == 8 ? 127.f : 32767.f;
    for (long block = 0; block < columns / LISSOME_GROUP_MIN; block++)
        for (long n = 0; n < to.count; n++) {
            const float *from = x + n * ldx + block * LISSOME_GROUP_MIN;
            const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16), none = _mm512_setzero_ps();
            const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
            const __mmask16 odd = _mm512_cmp_ps_mask(_mm512_mul_ps(a, none), none, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(_mm512_mul_ps(b, none), none, _CMP_NEQ_UQ);
            const float inverse = most > 1e-30f ? most_code / most : 0.f;
            const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(inverse))), high = _mm512_cvtps_epi32(_mm512_mul_ps(b, _mm512_set1_ps(inverse)));
            int8_t *codes = to.codes + (block * to.count + n) * (LISSOME_GROUP_MIN * X / 8);
            if (X == 8) {
                const __m128i first = _mm_shuffle_epi8(_mm512_cvtsepi32_epi8(low), order), second = _mm_shuffle_epi8(_mm512_cvtsepi32_epi8(high), order);
                _mm_storeu_si128((__m128i *)codes, first);
                _mm_storeu_si128((__m128i *)(codes + 16), second);
            } else {
                const __m256i both = _mm256_broadcastsi128_si256(order);
                _mm256_storeu_si256((__m256i *)codes, _mm256_shuffle_epi8(_mm512_cvtsepi32_epi16(low), both));
                _mm256_storeu_si256((__m256i *)(codes + 32), _mm256_shuffle_epi8(_mm512_cvtsepi32_epi16(high), both));
            }
            const float scale = odd ? NAN : most / most_code, sum = (float)_mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
            to.scales[(block * to.count + n) * 2] = scale;
            to.scales[(block * to.count + n) * 2 + 1] = scale * sum;
        }
}

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

// What one group of T tiles multiplies with: codes taken apart, scales and offsets.
template <int T, int X>
struct Taken {
    __m512i w[T][X];
    __m512 scale[T], offset[T];
};

// y [N, 16 T] += 32 columns of T tiles times N inputs, whose sums do not wait for one another.
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
        const __m512 x_scale = _mm512_set1_ps(scales[2 * n]), x_sum = _mm512_set1_ps(scales[2 * n + 1]);
        for (int t = 0; t < T; t++) {
            float *at = y + 16 * (n * T + t);
            const __m512 before = _mm512_fmadd_ps(m.offset[t], x_sum, _mm512_load_ps(at));
            _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[n][t]), m.scale[t]), x_scale, before));
        }
    }
}

// y [count, 16 T] += 32 columns of T tiles times all inputs. at, words: of each tile, its group and where in it the codes of these columns stand.
template <int T, int X, int BITS>
INLINE void block_times(const char *const *at, const char *const *words, const Rounded &x, long block, float *y) {
    constexpr int N = 8 / T;
    Taken<T, X> m;
    for (int t = 0; t < T; t++) {
        taken_apart<X, BITS>(words[t], m.w[t]);
        m.scale[t] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)at[t]));
        m.offset[t] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(at[t] + 32)));
        if (X == 8 && BITS == 8) m.offset[t] = _mm512_fnmadd_ps(_mm512_set1_ps(128.f), m.scale[t], m.offset[t]);
    }
    const int8_t *codes = x.codes + block * x.count * (LISSOME_GROUP_MIN * X / 8);
    const float *scales = x.scales + block * x.count * 2;
    long n = 0;
    const long each = LISSOME_GROUP_MIN * X / 8;
    for (; n + N <= x.count; n += N) inputs_times<N>(m, codes + n * each, scales + n * 2, y + n * 16 * T);
    if (N > 4 && n + 4 <= x.count) inputs_times<4>(m, codes + n * each, scales + n * 2, y + n * 16 * T), n += 4;
    if (n + 2 <= x.count) inputs_times<2>(m, codes + n * each, scales + n * 2, y + n * 16 * T), n += 2;
    if (n < x.count) inputs_times<1>(m, codes + n * each, scales + n * 2, y + n * 16 * T);
}

template <int T, int X, int BITS>
static void tiles_times(const lissome_matrix &m, long tile, const Rounded &x, float *out, long ldo, float *y) {
    const char *at[T], *words[T];
    for (int t = 0; t < T; t++) at[t] = (const char *)m.data + (tile + t) * tile_bytes(m);
    __builtin_memset(y, 0, sizeof(float) * x.count * 16 * T);
    for (long first = 0; first < m.columns; first += LISSOME_GROUP_MIN) {
        const long within = first % m.group;
        for (int t = 0; t < T; t++) {
            if (first && !within) at[t] += group_bytes(m);
            words[t] = at[t] + 64 + within * 2 * BITS;
        }
        block_times<T, X, BITS>(at, words, x, first / LISSOME_GROUP_MIN, y);
    }
    for (long n = 0; n < x.count; n++)
        for (int t = 0; t < T; t++) _mm512_storeu_ps(out + n * ldo + (tile + t) * LISSOME_ROWS, _mm512_load_ps(y + (n * T + t) * 16));
}

// Tiles [begin, end) times any number of inputs, rounded to X bits. room: rounded_bytes(columns), 64-byte aligned.
template <int X, int BITS>
static void rounded_times(const lissome_matrix &m, long begin, long end, long count, const float *x, long ldx, float *out, long ldo, void *room) {
    alignas(64) float y[BLOCK_ROWS * 32];
    constexpr int T = X == 8 ? 2 : 1;  // as many as there are registers for
    for (long first = 0; first < count && begin < end; first += BLOCK_ROWS) {
        Rounded inputs = rounded_at(room, m.columns);
        inputs.count = count - first < BLOCK_ROWS ? count - first : BLOCK_ROWS;
        rounded<X>(x + first * ldx, ldx, m.columns, m.bits, inputs);
        long tile = begin;
        for (; tile + T <= end; tile += T) tiles_times<T, X, BITS>(m, tile, inputs, out + first * ldo, ldo, y);
        for (; tile < end; tile++) tiles_times<1, X, BITS>(m, tile, inputs, out + first * ldo, ldo, y);
    }
}
