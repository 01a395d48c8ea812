// Includes LISSOME_BODY once for each instruction set: namespaces portable, avx2 and avx512.
#define INLINE static inline __attribute__((always_inline))
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of intrinsics that begin with an undefined vector
#endif
#if defined(__x86_64__)
#define LISSOME_X86 1
#include <immintrin.h>
#endif

namespace portable {
#define WIDTH 4
#define COLUMNS 2
#include LISSOME_BODY
#undef WIDTH
#undef COLUMNS
}  // namespace portable

#ifdef LISSOME_X86

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace avx2 {
#define WIDTH 8
#define COLUMNS 2
#include LISSOME_BODY
#undef WIDTH
#undef COLUMNS
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif
namespace avx512 {
#define WIDTH 16
#define COLUMNS 4
#include LISSOME_BODY
#undef WIDTH
#undef COLUMNS
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // x86

