// The gated feed-forward part, down (act(gate x) * up x), and activations; compiled once for each instruction set, included by ffn_body.h.

INLINE vf activated(vf x, int kind) {
    if (kind == LISSOME_SILU) {
        const vf bounded = x < -80.f ? splat(-80.f) : x;  // exp(80) is still a float; silu(-80) is 0 to all digits
        return bounded / (1.f + exponential(-bounded));
    }
    const vf zero = {}, positive = x < 0.f ? zero : x;  // a NaN stays one
    return kind == LISSOME_RELU ? positive : positive * positive;
}

// gate = act(gate) * up for neurons [begin, end), multiples of 16; without `up`, act(gate).
static void activate(float *gate, const float *up, long rows, long ld, long begin, long end, int kind) {
    for (long r = 0; r < rows; r++)
        for (long i = r * ld + begin; i < r * ld + end; i += WIDTH) {
            const vf active = activated(load(gate + i), kind);
            store(gate + i, up ? active * load(up + i) : active);
        }
}

struct Span {
    long begin, end;
};

// Rows of the tiles of `m` that `times` gives this thread.
static Span own(const Step &s, int thread, const lissome_matrix &m) {
    return {first_tile(m, thread, s.pool.size()) * LISSOME_ROWS, first_tile(m, thread + 1, s.pool.size()) * LISSOME_ROWS};
}

#if WIDTH == 16
// Rounded rows that `down` reads, of 32 neurons at a time: neither gate x nor up x leaves the nearest cache.
template <int X>
static void neurons_rounded(const Rounded &to, const float *gate, const float *up, long first, long count, long block, int activation) {
    const __m128i order = places(X, to.bits);
    for (long n = 0; n < count; n++) {
        const vf a = activated(load(gate + n * PAIR), activation) * load(up + n * PAIR);
        const vf b = activated(load(gate + n * PAIR + 16), activation) * load(up + n * PAIR + 16);
        block_rounded<X>(to, first + n, block, (__m512)a, (__m512)b, order);
    }
}

static void gated_rounded(const lissome_layer &l, Span mine, const Rounded &gate_x, const Rounded &up_x, const Rounded &to) {
    alignas(64) float gate[BLOCK_ROWS * PAIR], up[BLOCK_ROWS * PAIR];
    for (long first = 0; first < to.rows; first += BLOCK_ROWS)
        for (long tile = mine.begin / LISSOME_ROWS; tile < mine.end / LISSOME_ROWS; tile += 2) {
            two_tiles(l.gate, tile, 2, gate_x, first, gate);
            two_tiles(l.up, tile, 2, up_x, first, up);
            (to.inputs == 8 ? neurons_rounded<8> : neurons_rounded<16>)(to, gate, up, first, part_rows(to, first), tile / 2, l.activation);
        }
}
#else
static void gated_rounded(const lissome_layer &, Span, const Rounded &, const Rounded &, const Rounded &) {}
#endif

static void gated(const Step &s, int thread, const lissome_layer &l) {
    const Span mine = own(s, thread, l.gate);
    const auto rounded = [&](const lissome_matrix &m) { return rounds(m, inputs_of(s, m), s.rows); };
    if (rounded(l.gate) && rounded(l.up) && rounded(l.down)) {
        gated_rounded(l, mine, kept_for(s, l.gate, OUTER, s.rows), kept_for(s, l.up, OUTER, s.rows), kept_for(s, l.down, INNER, s.rows));
    } else {
        times(s, thread, l.gate, s.rows, s.normed, s.wide, s.gate, s.ffn_wide, OUTER);
        times(s, thread, l.up, s.rows, s.normed, s.wide, s.up, s.ffn_wide, OUTER);
        activate(s.gate, s.up, s.rows, s.ffn_wide, mine.begin, mine.end, l.activation);
        if (rounded(l.down)) rows_rounded(kept_for(s, l.down, INNER, s.rows), s.gate, s.ffn_wide, 0, s.rows, mine.begin, mine.end);
    }
    s.pool.barrier();
    times(s, thread, l.down, s.rows, s.gate, s.ffn_wide, s.added, s.wide, INNER);
}
