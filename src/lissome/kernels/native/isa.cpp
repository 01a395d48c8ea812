#include "isa.h"

#include "attention.h"

namespace {

Isa found() {
    Isa best = PORTABLE;
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) best = AVX2;
    if (best == AVX2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        best = AVX512;
    const char *forced = std::getenv("LISSOME_ISA");
    if (forced && !std::strcmp(forced, "portable")) return PORTABLE;
    if (forced && !std::strcmp(forced, "avx2") && best == AVX512) return AVX2;
#endif
    return best;
}

}  // namespace

Isa isa() {
    static const Isa best = found();
    return best;
}

extern "C" {

int lissome_version(void) { return LISSOME_VERSION; }

const char *lissome_isa(void) {
    static const char *const names[] = {"portable", "avx2", "avx512"};
    return names[isa()];
}
}
