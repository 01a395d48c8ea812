// Inputs of products rounded to 8 or 16 bits, with a scale for every 32 columns of a row; matrix_integers.h multiplies with them. Rows are rounded once, and
// every thread reads them.
//
// Included by matrix_body.h. Only AVX-512 with VNNI has such products; elsewhere nothing here is called.

constexpr long BLOCK_ROWS = 128;  // rows that lie together, and are multiplied with all tiles before the next

constexpr long SCALES = 3;        // floats of a block of a row

// Rounded rows. codes: for every BLOCK_ROWS rows [blocks of 32 columns, rows of the part, 32 codes in the order of `places`]; scales: likewise [blocks, rows of
// the part, 3]: the scale, the middle, and the sum of the numbers that the codes stand for, each scale * code + middle. Codes of 8 bits reach from the block's
// smallest number to its largest: where one number stands out, half the range would be empty otherwise. The middle of those of 16 bits is 0.
struct Rounded {
    int8_t *codes;
    float *scales;
    long rows, columns;
    int inputs, bits;  // of a code; of the weights that read it
};

// The four kinds of rounded inputs: 8 or 16 bits, in the order that weights of 4 or 8 bits want.
constexpr int KINDS = 4;
INLINE int kind_of(int inputs, const lissome_matrix &m) { return (inputs == 16) + 2 * (m.bits == 8); }

INLINE long scales_bytes(long rows, long columns) { return (rows * (columns / LISSOME_GROUP_MIN) * SCALES * 4 + 63) / 64 * 64; }
INLINE long rounded_bytes(int kind, long rows, long columns) { return scales_bytes(rows, columns) + (rows * columns * (1 + kind % 2) + 63) / 64 * 64; }

INLINE Rounded rounded_at(char *room, int kind, long rows, long columns) {
    return {(int8_t *)room + scales_bytes(rows, columns), (float *)room, rows, columns, kind % 2 ? 16 : 8, kind / 2 ? 8 : 4};
}

// Whether products of `count` inputs with this matrix round them to `inputs` bits here; two of 16 bits are no faster than floats, as measured.
INLINE bool rounds(const lissome_matrix &m, int inputs, long count) { return WIDTH == 16 && isa() == VNNI && m.bits != 32 && inputs != 32 && count > (inputs == 8 ? 1 : 2); }

INLINE long part_rows(const Rounded &x, long first) { return x.rows - first < BLOCK_ROWS ? x.rows - first : BLOCK_ROWS; }

#if WIDTH == 16
// Bytes of 16 neighbours in the order in which masks and shifts take a word's codes apart.
INLINE __m128i places(int inputs, int bits) {
    if (inputs == 16) return bits == 4 ? _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15) : _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    return bits == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15) : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// One block of a row: 32 columns in two vectors. What is not finite makes its whole block NaN.
template <int X>
INLINE void block_rounded(const Rounded &to, long row, long block, __m512 a, __m512 b, __m128i order) {
    const float most_code = X == 8 ? 127.f : 32767.f;
    const __m512 none = _mm512_setzero_ps();
    float most, middle = 0;
    if (X == 8) {
        const float high = .5f * _mm512_reduce_max_ps(_mm512_max_ps(a, b)), low = .5f * _mm512_reduce_min_ps(_mm512_min_ps(a, b));
        most = high - low, middle = high + low;
    } else {
        most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    }
    const __mmask16 odd = _mm512_cmp_ps_mask(_mm512_mul_ps(a, none), none, _CMP_NEQ_UQ) | _mm512_cmp_ps_mask(_mm512_mul_ps(b, none), none, _CMP_NEQ_UQ);
    const float inverse = most > 1e-30f ? most_code / most : 0.f;
    const __m512 mid = _mm512_set1_ps(middle), by = _mm512_set1_ps(inverse);
    const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(a, mid), by)), high = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(b, mid), by));
    const long first = row / BLOCK_ROWS * BLOCK_ROWS, place = block * part_rows(to, first) + row - first;
    int8_t *codes = to.codes + (first * to.columns + place * LISSOME_GROUP_MIN) * (X / 8);
    if (X == 8) {
        _mm_storeu_si128((__m128i *)codes, _mm_shuffle_epi8(_mm512_cvtsepi32_epi8(low), order));
        _mm_storeu_si128((__m128i *)(codes + 16), _mm_shuffle_epi8(_mm512_cvtsepi32_epi8(high), order));
    } else {
        const __m256i both = _mm256_broadcastsi128_si256(order);
        _mm256_storeu_si256((__m256i *)codes, _mm256_shuffle_epi8(_mm512_cvtsepi32_epi16(low), both));
        _mm256_storeu_si256((__m256i *)(codes + 32), _mm256_shuffle_epi8(_mm512_cvtsepi32_epi16(high), both));
    }
    float *scales = to.scales + (first * (to.columns / LISSOME_GROUP_MIN) + place) * SCALES;
    scales[0] = odd ? NAN : most / most_code;
    scales[1] = middle;
    scales[2] = scales[0] * (float)_mm512_reduce_add_epi32(_mm512_add_epi32(low, high)) + LISSOME_GROUP_MIN * middle;
}

template <int X>
static void rows_rounded_to(const Rounded &to, const float *x, long ldx, long begin, long end, long from, long until) {
    const __m128i order = places(X, to.bits);
    for (long row = begin; row < end; row++)
        for (long c = from; c < until; c += LISSOME_GROUP_MIN)
            block_rounded<X>(to, row, c / LISSOME_GROUP_MIN, _mm512_loadu_ps(x + row * ldx + c), _mm512_loadu_ps(x + row * ldx + c + 16), order);
}

// Columns [from, until) of rows [begin, end) of x, rounded. from, until: multiples of 32.
static void rows_rounded(const Rounded &to, const float *x, long ldx, long begin, long end, long from, long until) {
    (to.inputs == 8 ? rows_rounded_to<8> : rows_rounded_to<16>)(to, x, ldx, begin, end, from, until);
}
#else
static void rows_rounded(const Rounded &, const float *, long, long, long, long, long) {}
#endif
