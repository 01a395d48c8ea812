// The feed-forward part of a decoder's layer, in the kinds that decoder.h names; compiled once for each instruction set, after Step and `times`.
//
// Neurons that say nothing (|activation| <= threshold) cost nothing beyond their gate: their rows of `up` and of the transposed `down` are not read. For that
// the two are laid out by neuron (decoder.h). More rows than FEW share panels of widened weights instead, as nearly every neuron then speaks for one of them.

constexpr long BLOCK = 64, AHEAD_NEURONS = 2;  // columns whose codes stand in 16 words; neurons that are fetched ahead

struct FfnRoom {
    std::unique_ptr<float[]> floats;
    std::unique_ptr<int32_t[]> numbers;
    float *partial;                            // [threads, FEW, wide]: what each thread's neurons add
    float *weight, *sorted, *gate, *up, *out;  // of pairs of a row and an expert, by expert: 1 | wide | inner | inner | wide
    float *logits;                             // [rows, experts up to 16]
    int32_t *live;                             // [threads, ffn_wide]: neurons that speak
    int32_t *chosen, *place, *begin;           // of pairs, by row: the expert, and where the pair stands by expert; where experts begin [experts + 1]
    long inner = 0, experts = 0;

    FfnRoom(const lissome_decoder &d, long rows, long threads, long wide, long ffn_wide) {
        long active = 0;
        bool silent = false;
        for (long i = 0; i < d.layers; i++) {
            const lissome_layer &l = d.layer[i];
            silent = silent || (l.ffn != LISSOME_GATED && l.ffn != LISSOME_EXPERTS);
            if (l.ffn != LISSOME_EXPERTS) continue;
            const long width = (l.experts->gate->rows + 15) / 16 * 16, count = (l.experts->count + 15) / 16 * 16;
            inner = width > inner ? width : inner, experts = count > experts ? count : experts;
            active = l.experts->active > active ? l.experts->active : active;
        }
        const long pairs = rows * active, few = silent ? (rows < FEW ? rows : FEW) : 0;
        floats.reset(new float[threads * few * wide + pairs * (1 + 2 * wide + 2 * inner) + rows * experts + 16]);
        numbers.reset(new int32_t[(silent ? threads * ffn_wide : 0) + 2 * pairs + experts + 1]);
        partial = floats.get(), sorted = partial + threads * few * wide, out = sorted + pairs * wide, gate = out + pairs * wide, up = gate + pairs * inner;
        logits = up + pairs * inner, weight = logits + rows * experts;
        live = numbers.get(), chosen = live + (silent ? threads * ffn_wide : 0), place = chosen + pairs, begin = place + pairs;
    }
};

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
    return {share(tiles_of(m), thread, s.pool.size()) * LISSOME_ROWS, share(tiles_of(m), thread + 1, s.pool.size()) * LISSOME_ROWS};
}

#if WIDTH == 4
INLINE float half_of(uint16_t bits) { return half_at(bits); }
#else
INLINE float half_of(uint16_t bits) { return _cvtsh_ss(bits); }
#endif

INLINE bool says(float activation, float threshold) { return !(__builtin_fabsf(activation) <= threshold); }  // a NaN is heard

INLINE long neuron_bytes(const lissome_matrix &m) {
    return m.bits == 32 ? m.columns * 4 : m.columns / m.group * 4 + (m.columns + BLOCK - 1) / BLOCK * m.bits * 8;
}
INLINE const char *neuron_at(const lissome_matrix &m, long neuron) { return (const char *)m.data + neuron * neuron_bytes(m); }

INLINE void fetch(const lissome_matrix &m, long neuron) {
    const char *at = neuron_at(m, neuron);
    for (long i = 0; i < neuron_bytes(m); i += 64) __builtin_prefetch(at + i);
}

// Vector `at` of the 64 columns whose codes begin at `block`.
template <int BITS>
INLINE vf codes_of(const char *block, int at) {
    constexpr int IN_ROW = 16 / WIDTH;
    const int part = at % IN_ROW, c = at / IN_ROW;
    if (BITS == 32) return load((const float *)block + at * WIDTH);
    if (BITS == 8) return __builtin_convertvector((load_words(block + part * WIDTH * 4) << (24 - 8 * c)) >> 24, vf);
    typedef uint16_t vh __attribute__((vector_size(WIDTH * 2)));
    vh words;
    __builtin_memcpy(&words, block + part * WIDTH * 2, sizeof words);
    return __builtin_convertvector((__builtin_convertvector(words, vi) >> (4 * c)) & 15, vf);
}

// use(column, i, w) for vectors of a neuron's weights in 32 columns from `first` on, which share a scale; i counts them within 64 columns.
template <int BITS, int HALF, typename Use>
INLINE void half_block(const lissome_matrix &m, const char *at, long first, const Use &use) {
    constexpr int EACH = 32 / WIDTH;
    const long groups = m.columns / m.group, group = first / m.group;
    const char *block = at + (BITS == 32 ? (first - 32 * HALF) * 4 : groups * 4 + first / BLOCK * BITS * 8);
    float scale = 1, offset = 0;
    if (BITS != 32) {
        uint16_t halves[2];
        __builtin_memcpy(halves, at + group * 2, 2);
        __builtin_memcpy(halves + 1, at + (groups + group) * 2, 2);
        scale = half_of(halves[0]), offset = half_of(halves[1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < EACH; i++) {
        const vf code = codes_of<BITS>(block, HALF * EACH + i);
        use(first + i * WIDTH, HALF * EACH + i, BITS == 32 ? code : code * scale + offset);
    }
}

// Columns [begin, end) of one neuron; begin a multiple of 64, end one of 32.
template <int BITS, typename Use>
INLINE void each_weight(const lissome_matrix &m, long neuron, long begin, long end, const Use &use) {
    const char *at = neuron_at(m, neuron);
    long first = begin;
    for (; first + BLOCK <= end; first += BLOCK) {
        half_block<BITS, 0>(m, at, first, use);
        half_block<BITS, 1>(m, at, first + 32, use);
    }
    if (first < end) half_block<BITS, 0>(m, at, first, use);
}

#define BY_BITS(m, call) ((m).bits == 4 ? call<4> : (m).bits == 8 ? call<8> : call<32>)

template <int BITS>
static float dot(const lissome_matrix &m, long neuron, const float *x) {
    vf sum[4] = {};
    each_weight<BITS>(m, neuron, 0, m.columns, [&](long column, int i, vf w) __attribute__((always_inline)) { sum[i % 4] += w * load(x + column); });
    const vf whole = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    float total = 0;
    for (int i = 0; i < WIDTH; i++) total += whole[i];
    return total;
}

template <int BITS>
static void add(const lissome_matrix &m, long neuron, float times, float *y) {
    each_weight<BITS>(m, neuron, 0, m.columns, [&](long column, int, vf w) __attribute__((always_inline)) { store(y + column, load(y + column) + times * w); });
}

// One neuron's columns [begin, end) to `to`, so far apart.
template <int BITS>
static void spread(const lissome_matrix &m, long neuron, long begin, long end, float *to, long apart) {
    each_weight<BITS>(m, neuron, begin, end, [&](long column, int, vf w) __attribute__((always_inline)) {
        if (apart == 1) return store(to + column - begin, w);
        for (int i = 0; i < WIDTH; i++) to[(column - begin + i) * apart] = w[i];
    });
}

// What this thread's speaking neurons add, into its own sums; the caller joins them.
static void spoken(const Step &s, int thread, const lissome_layer &l, Span mine) {
    float *partial = s.ffn->partial + thread * s.rows * s.wide;
    int32_t *live = s.ffn->live + thread * s.ffn_wide;
    const bool gate_first = l.ffn == LISSOME_GATE_FIRST;
    const long last = mine.end < l.down.rows ? mine.end : l.down.rows;
    long count = 0;
    for (long j = mine.begin; j < last; j++) {
        bool any = false;
        for (long r = 0; r < s.rows; r++) any |= says(s.gate[r * s.ffn_wide + j], l.threshold);
        live[count] = (int32_t)j;
        count += any;
    }
    __builtin_memset(partial, 0, sizeof(float) * s.rows * s.wide);
    for (long i = 0; i < count; i++) {
        if (i + AHEAD_NEURONS < count) {
            if (gate_first) fetch(l.up, live[i + AHEAD_NEURONS]);
            fetch(l.down, live[i + AHEAD_NEURONS]);
        }
        for (long r = 0, j = live[i]; r < s.rows; r++) {
            float says_so = s.gate[r * s.ffn_wide + j];
            if (!says(says_so, l.threshold)) continue;
            if (gate_first) says_so *= BY_BITS(l.up, dot)(l.up, j, s.normed + r * s.wide);
            BY_BITS(l.down, add)(l.down, j, says_so, partial + r * s.wide);
        }
    }
}

// s.up = x up^T for this thread's neurons of a matrix that is laid out by neuron.
static void up_by_panels(const Step &s, int thread, const lissome_matrix &m, Span mine) {
    float *panel = s.panels + thread * DEEP * 64;
    for (long j = mine.begin; j < mine.end; j += 64) {
        const long width = mine.end - j < 64 ? mine.end - j : 64;
        for (long first = 0; first < m.columns; first += DEEP) {
            const long deep = m.columns - first < DEEP ? m.columns - first : DEEP;
            for (long i = 0; i < width; i++) {
                if (j + i < m.rows) BY_BITS(m, spread)(m, j + i, first, first + deep, panel + i, width);
                else for (long c = 0; c < deep; c++) panel[c * width + i] = 0;
            }
            product(s.up + j, s.ffn_wide, s.normed + first, s.wide, 1, panel, width, s.rows, width, deep, first ? ADD : OVERWRITE);
        }
    }
}

// s.added = s.gate down for this thread's columns of a matrix that is laid out by neuron.
static void down_by_panels(const Step &s, int thread, const lissome_matrix &m) {
    float *panel = s.panels + thread * DEEP * 64;
    const long blocks = (m.columns + BLOCK - 1) / BLOCK;
    for (long b = share(blocks, thread, s.pool.size()); b < share(blocks, thread + 1, s.pool.size()); b++) {
        const long from = b * BLOCK, width = m.columns - from < BLOCK ? m.columns - from : BLOCK;
        for (long first = 0; first < m.rows; first += DEEP) {
            const long deep = m.rows - first < DEEP ? m.rows - first : DEEP;
            for (long i = 0; i < deep; i++) BY_BITS(m, spread)(m, first + i, from, from + width, panel + i * width, 1);
            product(s.added + from, s.wide, s.gate + first, s.ffn_wide, 1, panel, width, s.rows, width, deep, first ? ADD : OVERWRITE);
        }
    }
}

static void silenced(const Step &s, const lissome_layer &l, Span mine) {
    for (long r = 0; r < s.rows; r++)
        for (long j = r * s.ffn_wide + mine.begin; j < r * s.ffn_wide + mine.end; j++)
            s.gate[j] = !says(s.gate[j], l.threshold) ? 0 : l.ffn == LISSOME_GATE_FIRST ? s.gate[j] * s.up[j] : s.gate[j];
}

// Layers whose silent neurons are skipped: gate-first, product and plain.
static void sparse(const Step &s, int thread, const lissome_layer &l) {
    const lissome_matrix &first = l.ffn == LISSOME_PLAIN ? l.up : l.gate;
    const Span mine = own(s, thread, first);
    times(s, thread, first, s.rows, s.normed, s.wide, s.gate, s.ffn_wide);
    if (l.ffn == LISSOME_PRODUCT) times(s, thread, l.up, s.rows, s.normed, s.wide, s.up, s.ffn_wide);
    activate(s.gate, l.ffn == LISSOME_PRODUCT ? s.up : nullptr, s.rows, s.ffn_wide, mine.begin, mine.end, l.activation);
    if (s.rows > FEW) {
        if (l.ffn == LISSOME_GATE_FIRST) up_by_panels(s, thread, l.up, mine);
        silenced(s, l, mine);
        s.pool.barrier();
        return down_by_panels(s, thread, l.down);
    }
    spoken(s, thread, l, mine);
    s.pool.barrier();
    const long whole = s.rows * s.wide / WIDTH;
    for (long i = share(whole, thread, s.pool.size()) * WIDTH; i < share(whole, thread + 1, s.pool.size()) * WIDTH; i += WIDTH) {
        vf sum = load(s.ffn->partial + i);
        for (long t = 1; t < s.pool.size(); t++) sum += load(s.ffn->partial + t * s.rows * s.wide + i);
        store(s.added + i, sum);
    }
}

// Which experts one row takes, and with which weight: `active` of the best scores + bias, of equals the first.
static void choose(const lissome_experts &e, float *logits, int32_t *chosen, float *weight) {
    float most = -INFINITY, total = 0;
    for (long i = 0; i < e.count; i++) logits[i] += e.offset ? e.offset[i] : 0, most = logits[i] > most ? logits[i] : most;
    for (long i = 0; i < e.count; i++) logits[i] = e.sigmoid ? 1 / (1 + std::exp(-logits[i])) : std::exp(logits[i] - most), total += logits[i];
    for (long i = 0; i < e.count && !e.sigmoid; i++) logits[i] /= total;
    float sum = 0;
    for (long k = 0; k < e.active; k++) {
        long best = -1;
        for (long i = 0; i < e.count; i++) {
            bool taken = false;
            for (long before = 0; before < k; before++) taken |= chosen[before] == i;
            if (!taken && (best < 0 || logits[i] + (e.bias ? e.bias[i] : 0) > logits[best] + (e.bias ? e.bias[best] : 0))) best = i;
        }
        chosen[k] = (int32_t)best, weight[k] = logits[best], sum += logits[best];
    }
    const float shares = e.weights != LISSOME_NORMALISED ? 1 : sum < FLT_MIN ? FLT_MIN : sum;
    for (long k = 0; k < e.active; k++) weight[k] = e.scale * (e.weights == LISSOME_ONES ? 1 : weight[k] / shares);
}

// Rows [begin, end) find their experts.
static void route(const Step &s, const lissome_experts &e, long begin, long end) {
    const long experts = s.ffn->experts;
    for (long r = begin; r < end; r++) {
        float *logits = s.ffn->logits + r * experts;
        const float *x = s.normed + r * s.wide, *w = (const float *)e.router.data;
        for (long tile = 0; tile < tiles_of(e.router); tile++)
            for (long part = 0; part < PARTS; part++) {
                vf sum = {};
                for (long c = 0; c < s.d.hidden; c++) sum += x[c] * load(w + (tile * s.d.hidden + c) * LISSOME_ROWS + part * WIDTH);
                store(logits + tile * LISSOME_ROWS + part * WIDTH, sum);
            }
        choose(e, logits, s.ffn->chosen + r * e.active, s.ffn->weight + r * e.active);
    }
}

// Where each pair of a row and an expert stands when they go by expert, of one expert by row.
static void sort(const Step &s, const lissome_experts &e) {
    FfnRoom &f = *s.ffn;
    for (long i = 0; i <= e.count; i++) f.begin[i] = 0;
    for (long p = 0; p < s.rows * e.active; p++) f.begin[f.chosen[p] + 1]++;
    for (long i = 0; i < e.count; i++) f.begin[i + 1] += f.begin[i];
    for (long p = 0; p < s.rows * e.active; p++) f.place[p] = f.begin[f.chosen[p]]++;
    for (long i = e.count; i > 0; i--) f.begin[i] = f.begin[i - 1];
    f.begin[0] = 0;
}

// Each row goes through its experts alone, and through the shared one (gate, up and down of the layer) where there is one.
static void experts(const Step &s, int thread, const lissome_layer &l) {
    const lissome_experts &e = *l.experts;
    FfnRoom &f = *s.ffn;
    const long pairs = s.rows * e.active, threads = s.pool.size();
    if (s.rows > 1) {
        route(s, e, share(s.rows, thread, threads), share(s.rows, thread + 1, threads));
        s.pool.barrier();
    } else if (thread == 0) route(s, e, 0, 1);
    if (thread == 0) sort(s, e);
    s.pool.barrier();
    for (long p = share(pairs, thread, threads); p < share(pairs, thread + 1, threads); p++)
        __builtin_memcpy(f.sorted + f.place[p] * s.wide, s.normed + p / e.active * s.wide, sizeof(float) * s.wide);
    s.pool.barrier();
    const bool shared = l.gate.data;
    for (long i = 0; i < e.count; i++) {
        const long from = f.begin[i], count = f.begin[i + 1] - from;
        if (!count) continue;
        times(s, thread, e.gate[i], count, f.sorted + from * s.wide, s.wide, f.gate + from * f.inner, f.inner);
        times(s, thread, e.up[i], count, f.sorted + from * s.wide, s.wide, f.up + from * f.inner, f.inner);
        const Span mine = own(s, thread, e.gate[i]);
        activate(f.gate + from * f.inner, f.up + from * f.inner, count, f.inner, mine.begin, mine.end, l.activation);
    }
    if (shared) {
        times(s, thread, l.gate, s.rows, s.normed, s.wide, s.gate, s.ffn_wide);
        times(s, thread, l.up, s.rows, s.normed, s.wide, s.up, s.ffn_wide);
        const Span mine = own(s, thread, l.gate);
        activate(s.gate, s.up, s.rows, s.ffn_wide, mine.begin, mine.end, l.activation);
    }
    s.pool.barrier();
    for (long i = 0; i < e.count; i++) {
        const long from = f.begin[i], count = f.begin[i + 1] - from;
        if (count) times(s, thread, e.down[i], count, f.gate + from * f.inner, f.inner, f.out + from * s.wide, s.wide);
    }
    if (shared) times(s, thread, l.down, s.rows, s.gate, s.ffn_wide, s.added, s.wide);
    const Span mine = own(s, thread, e.down[0]);  // the columns that this thread has just computed, of every expert
    for (long r = 0; r < s.rows; r++)
        for (long i = mine.begin; i < mine.end; i += WIDTH) {
            vf sum = {};
            if (shared) sum = load(s.added + r * s.wide + i);
            for (long p = r * e.active; p < (r + 1) * e.active; p++) sum += f.weight[p] * load(f.out + f.place[p] * s.wide + i);
            store(s.added + r * s.wide + i, sum);
        }
}

// What the layer's feed-forward part adds to each row: s.added. Its last barrier is the caller's.
static void ffn(const Step &s, int thread, const lissome_layer &l) {
    if (l.ffn == LISSOME_EXPERTS) return experts(s, thread, l);
    if (l.ffn != LISSOME_GATED) return sparse(s, thread, l);
    const Span mine = own(s, thread, l.gate);
    times(s, thread, l.gate, s.rows, s.normed, s.wide, s.gate, s.ffn_wide);
    times(s, thread, l.up, s.rows, s.normed, s.wide, s.up, s.ffn_wide);
    activate(s.gate, s.up, s.rows, s.ffn_wide, mine.begin, mine.end, l.activation);
    s.pool.barrier();
    times(s, thread, l.down, s.rows, s.gate, s.ffn_wide, s.added, s.wide);
}
#undef BY_BITS
