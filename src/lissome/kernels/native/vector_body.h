// Vectors and products of matrices, compiled once for each instruction set; WIDTH is the number of floats in a vector, COLUMNS that of vectors a product keeps.
//
// Source: exp from Cephes (Moshier), expf.

typedef float vf __attribute__((vector_size(WIDTH * 4)));
typedef int32_t vi __attribute__((vector_size(WIDTH * 4)));
typedef float vf_at __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

constexpr long TILE = LISSOME_TILE, ROWS = 6;

INLINE vf load(const float *at) { return *(const vf_at *)at; }
INLINE void store(float *at, vf value) { *(vf_at *)at = value; }
INLINE vf splat(float value) { return value - vf{}; }

INLINE vf exponential(vf x) {  // 0 below -87.3
    const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
    vf shifted = x * 1.44269504088896341f + magic;
    vf whole = shifted - magic;
    vf rest = x - whole * 0.693359375f;
    rest = rest + whole * 2.12194440e-4f;
    vf p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.f;
    vf power = (vf)(((vi)shifted << 23) + 0x3f800000);
    vf zero = {};
    return x < -87.3f ? zero : p * power;
}

// What a product does with what stood in C: overwrite it, add to it, or add to it times factor[n].
constexpr const float *OVERWRITE = nullptr;
static const float ADD[1] = {1};

// C[m, n] = C * factor[n] + A B for `m` <= ROWS rows and N vectors of columns.
template <int M, int N>
INLINE void panel(float *c, long ldc, const float *a, long am, long ak, const float *b, long ldb, long k, const float *factor) {
    vf sum[M][N];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            vf before = {};
            if (factor) before = load(c + i * ldc + j * WIDTH);
            if (factor && factor != ADD) before = before * load(factor + j * WIDTH);
            sum[i][j] = before;
        }
    for (long p = 0; p < k; p++) {
        vf row[N];
        for (int j = 0; j < N; j++) row[j] = load(b + p * ldb + j * WIDTH);
        for (int i = 0; i < M; i++) {
            float x = a[i * am + p * ak];
            for (int j = 0; j < N; j++) sum[i][j] += row[j] * x;
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) store(c + i * ldc + j * WIDTH, sum[i][j]);
}

template <int N>
INLINE void columns(float *c, long ldc, const float *a, long am, long ak, const float *b, long ldb, long m, long k, const float *factor) {
    long i = 0;
    for (; i + ROWS <= m; i += ROWS) panel<ROWS, N>(c + i * ldc, ldc, a + i * am, am, ak, b, ldb, k, factor);
    switch (m - i) {
        case 1: panel<1, N>(c + i * ldc, ldc, a + i * am, am, ak, b, ldb, k, factor); break;
        case 2: panel<2, N>(c + i * ldc, ldc, a + i * am, am, ak, b, ldb, k, factor); break;
        case 3: panel<3, N>(c + i * ldc, ldc, a + i * am, am, ak, b, ldb, k, factor); break;
        case 4: panel<4, N>(c + i * ldc, ldc, a + i * am, am, ak, b, ldb, k, factor); break;
        case 5: panel<5, N>(c + i * ldc, ldc, a + i * am, am, ak, b, ldb, k, factor); break;
        default: break;
    }
}

INLINE const float *moved(const float *factor, long by) { return factor && factor != ADD ? factor + by : factor; }

// C[m, n] = C * factor + A B; n a multiple of WIDTH. am, ak: strides of A.
static void product(float *c, long ldc, const float *a, long am, long ak, const float *b, long ldb, long m, long n, long k, const float *factor) {
    long j = 0;
    for (; j + COLUMNS * WIDTH <= n; j += COLUMNS * WIDTH) columns<COLUMNS>(c + j, ldc, a, am, ak, b + j, ldb, m, k, moved(factor, j));
    for (; j < n; j += WIDTH) columns<1>(c + j, ldc, a, am, ak, b + j, ldb, m, k, moved(factor, j));
}

INLINE float widened(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

INLINE uint16_t narrowed(float value) {  // to bfloat16, ties to even; a NaN stays one
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    if (value != value) return (uint16_t)(bits >> 16) | 64;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
