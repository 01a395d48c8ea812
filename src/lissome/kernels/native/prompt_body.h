// Attention of long runs, whose rows go by tiles: in floats with the kernel of sparse attention, or in integers (tile_integers.h). After Step and load_kept.

INLINE long coded_bytes(long dim) { return 64 + 4 * 3 * TILE + 4 * TILE * dim; }  // of a CodedBlock, see tile_integers.h

#if WIDTH == 16
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vnni")
#endif
#include "tile_integers.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#else
struct CodedTile {};
static void coded_keys(const Step &, int, long, const Run &, const lissome_attention &, char *) {}
static void looked_at_codes(const Step &, int, const Run &, const lissome_attention &, const char *, CodedTile &) {}
#endif

// Whether tiles of a layer are attended to in integers: where the products beside it round their inputs.
INLINE bool attends_rounded(const Step &s, const lissome_layer &l) { return rounds(l.q, inputs_of(s, l.q), LONG_RUN); }

INLINE long scratch_each() {
    const long floats = attention_scratch(), integers = sizeof(CodedTile);
    return up_to(floats > integers ? floats : integers, 64);
}

INLINE long coded_run(const lissome_decoder &d, const Causal &run) { return d.kv_heads * run.attention.most * coded_bytes(d.dim); }

// This thread's tiles of a long run.
static void looked_by_tiles(const Step &s, int thread, long layer, const Run &run, lissome_attention a) {
    const lissome_decoder &d = s.d;
    const int64_t kept = place_of(d, layer, s.given.slot[run.begin], 0, 0) * (d.half ? 2 : 4);
    a.q = {s.q + run.begin * s.q_wide, 0, d.dim, s.q_wide};
    a.out = {s.seen + run.begin * s.q_wide, 0, d.dim, s.q_wide};
    a.k = {(const char *)d.keys + kept, 0, d.capacity * d.dim, d.dim};
    a.v = {(const char *)d.values + kept, 0, d.capacity * d.dim, d.dim};
    for (int64_t item = thread; item < d.heads * a.tiles; item += s.pool.size())  // the last tiles see most, so threads take them in turn
        attention_tile(a, item % d.heads, item / d.heads, s.tiles + thread * scratch_each());
}

// This thread's part of what long runs see.
static void looked_by_runs(const Step &s, int thread, long layer, const std::vector<Run> &runs, const std::vector<std::unique_ptr<Causal>> &causal) {
    const bool integers = s.coded && attends_rounded(s, s.d.layer[layer]);
    for (int coding = integers; coding >= 0; coding--) {
        char *coded = s.coded;
        for (size_t i = 0; i < runs.size(); i++) {
            if (!causal[i]) continue;
            const lissome_attention &a = causal[i]->attention;
            if (coding) coded_keys(s, thread, layer, runs[i], a, coded);
            else if (integers) looked_at_codes(s, thread, runs[i], a, coded, *(CodedTile *)(s.tiles + thread * scratch_each()));
            else looked_by_tiles(s, thread, layer, runs[i], a);
            coded += coded_run(s.d, *causal[i]);
        }
        if (coding) s.pool.barrier();
    }
}
