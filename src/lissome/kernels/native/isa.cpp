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
        best = __builtin_cpu_supports("avx512vnni") ? VNNI : AVX512;
    const char *forced = std::getenv("LISSOME_ISA");
    if (forced && !std::strcmp(forced, "portable")) return PORTABLE;
    if (forced && !std::strcmp(forced, "avx2") && best > AVX2) return AVX2;
    if (forced && !std::strcmp(forced, "avx512") && best > AVX512) return AVX512;
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
    static const char *const names[] = {"portable", "avx2", "avx512", "avx512-vnni"};
    return names[isa()];
}
}
