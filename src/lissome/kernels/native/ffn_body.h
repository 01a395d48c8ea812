// The feed-forward part of a decoder's layer, in the kinds that decoder.h names; compiled once for each instruction set, after Step and `times`.
//
// Neurons that say nothing (|activation| <= threshold) cost nothing beyond their gate: their rows of `up` and of the transposed `down` are not read. For that
// the two are laid out by neuron (decoder.h). More rows than FEW share panels of widened weights instead, as nearly every neuron then speaks for one of them.

constexpr long BLOCK = 64;  // columns whose codes stand in 16 words

struct FfnRoom {
    std::unique_ptr<float[]> floats;
    std::unique_ptr<int32_t[]> numbers;
    float *partial;                            // [threads, FEW, wide]: what each thread's neurons add
    float *weight, *sorted, *gate, *up, *out;  // of pairs of a row and an expert, by expert: 1 | wide | inner | inner | wide
    float *logits;                             // [rows, experts up to 16]
    int32_t *live;                             // [threads, ffn_wide]: neurons that speak
    int32_t *chosen, *place, *begin;           // of pairs, by row: the expert, and where the pair stands by expert; where experts begin [experts + 1]
    float *scales;                             // [threads, HEADS, groups]: of neurons that are being read
    long inner = 0, experts = 0, groups;
    static constexpr long HEADS = 6;

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
        groups = (d.hidden / LISSOME_GROUP_MIN + 15) / 16 * 16;
        const long pairs = rows * active, few = silent ? (rows < FEW ? rows : FEW) : 0;
        floats.reset(new float[threads * few * wide + pairs * (1 + 2 * wide + 2 * inner) + rows * experts + (silent ? threads * HEADS * groups : 0)]);
        numbers.reset(new int32_t[(silent ? threads * ffn_wide : 0) + 2 * pairs + experts + 1]);
        partial = floats.get(), sorted = partial + threads * few * wide, out = sorted + pairs * wide, gate = out + pairs * wide, up = gate + pairs * inner;
        logits = up + pairs * inner, weight = logits + rows * experts, scales = weight + pairs;
        live = numbers.get(), chosen = live + (silent ? threads * ffn_wide : 0), place = chosen + pairs, begin = place + pairs;
    }
};

#include "gated_body.h"

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
    if (BITS == 8) return decoded_byte(load_words(block + part * WIDTH * 4), c);
    typedef uint16_t vh __attribute__((vector_size(WIDTH * 2)));
    vh words;
    __builtin_memcpy(&words, block + part * WIDTH * 2, sizeof words);
    return decoded(__builtin_convertvector(words, vi), c);
}

INLINE const char *codes_at(const lissome_matrix &m, long neuron, long column) {
    return neuron_at(m, neuron) + (m.bits == 32 ? column * 4 : m.columns / m.group * 4 + column / BLOCK * m.bits * 8);
}

// The scales of a neuron's groups times `factor`; sums += its offsets times `factor`. Room for whole vectors in both.
INLINE void heads(const lissome_matrix &m, long neuron, float factor, float *scale, float *sums) {
    const long groups = m.columns / m.group;
    const char *at = neuron_at(m, neuron);  // what is read beyond the last group is codes
    for (long g = 0; g < groups; g += WIDTH) {
        store(scale + g, factor * halves(at + g * 2));
        store(sums + g, load(sums + g) + factor * halves(at + (groups + g) * 2));
    }
}

constexpr int VECTORS = BLOCK / WIDTH;

template <int BITS, int COUNT>
INLINE vf dot_block(const char *codes, const float *x, const float *scale, long per) {
    vf total = {};
#pragma GCC unroll 2
    for (int half = 0; half < COUNT; half++) {
        vf sum = {};
#pragma GCC unroll 8
        for (int i = half * VECTORS / 2; i < (half + 1) * VECTORS / 2; i++) sum += codes_of<BITS>(codes, i) * load(x + i * WIDTH);
        total += BITS == 32 ? sum : scale[half * 32 / per] * sum;
    }
    return total;
}

// A neuron's weights times x. x_sums: of each group of columns; scale: room for the groups' scales.
template <int BITS>
static float dot(const lissome_matrix &m, long neuron, const float *x, const float *x_sums, float *scale) {
    const long groups = BITS == 32 ? 0 : m.columns / m.group;
    const char *at = neuron_at(m, neuron);
    vf total[2] = {};
    float whole = 0;
    for (long g = 0; g < groups; g += WIDTH) {
        const vf offset = halves(at + (groups + g) * 2);
        store(scale + g, halves(at + g * 2));
        if (g + WIDTH <= groups) total[0] += offset * load(x_sums + g);
        else for (long i = 0; g + i < groups; i++) whole += offset[i] * x_sums[g + i];  // what is read beyond the last group is codes, and may be NaN
    }
    const long per = m.group < BLOCK ? m.group : BLOCK;
    const char *codes = codes_at(m, neuron, 0);
    long c = 0;
    for (; c + BLOCK <= m.columns; c += BLOCK, codes += BITS * 8) total[c / BLOCK % 2] += dot_block<BITS, 2>(codes, x + c, scale + c / m.group, per);
    if (c < m.columns) total[0] += dot_block<BITS, 1>(codes, x + c, scale + c / m.group, per);
    const vf both = total[0] + total[1];
    for (int i = 0; i < WIDTH; i++) whole += both[i];
    return whole;
}

// y += the weights of `count` neurons times their factors, in COUNT halves of a block, but for the offsets. scale: [count, wide], from the block's group on.
template <int BITS, int COUNT>
INLINE void add_block(const char *const *codes, long count, float *y, const float *scale, long wide, long per, const float *factor) {
    vf sum[VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < COUNT * VECTORS / 2; i++) sum[i] = load(y + i * WIDTH);
    for (long n = 0; n < count; n++)
#pragma GCC unroll 16
        for (int i = 0; i < COUNT * VECTORS / 2; i++)
            sum[i] += (BITS == 32 ? factor[n] : scale[n * wide + i / (VECTORS / 2) * 32 / per]) * codes_of<BITS>(codes[n], i);
#pragma GCC unroll 16
    for (int i = 0; i < COUNT * VECTORS / 2; i++) store(y + i * WIDTH, sum[i]);
}

constexpr long ADDED = 4;  // neurons whose rows of `down` are added in one pass over y

template <int BITS>
static void add(const lissome_matrix &m, const int32_t *neurons, long count, const float *factor, float *y, float *offsets, float *scale, long wide) {
    const char *codes[ADDED];
    for (long n = 0; n < count; n++) {
        codes[n] = codes_at(m, neurons[n], 0);
        if (BITS != 32) heads(m, neurons[n], factor[n], scale + n * wide, offsets);
    }
    const long per = m.group < BLOCK ? m.group : BLOCK;
    long c = 0;
    for (; c + BLOCK <= m.columns; c += BLOCK) {
        add_block<BITS, 2>(codes, count, y + c, scale + c / m.group, wide, per, factor);
        for (long n = 0; n < count; n++) codes[n] += BITS * 8;
    }
    if (c < m.columns) add_block<BITS, 1>(codes, count, y + c, scale + c / m.group, wide, per, factor);
}

// One neuron's columns [begin, end), begin a multiple of 64, to `to`, so far apart. room: for the groups' scales and offsets.
template <int BITS>
static void spread(const lissome_matrix &m, long neuron, long begin, long end, float *to, long apart, float *room, long wide) {
    if (BITS != 32) {
        __builtin_memset(room + wide, 0, sizeof(float) * wide);
        heads(m, neuron, 1, room, room + wide);
    }
    for (long c = begin; c < end; c += WIDTH) {
        const vf code = codes_of<BITS>(codes_at(m, neuron, c / BLOCK * BLOCK), (int)(c % BLOCK / WIDTH));
        const vf w = BITS == 32 ? code : code * room[c / m.group] + room[wide + c / m.group];
        if (apart == 1) store(to + c - begin, w);
        else for (int i = 0; i < WIDTH; i++) to[(c - begin + i) * apart] = w[i];
    }
}

#define BY_BITS(m, call) ((m).bits == 4 ? call<4> : (m).bits == 8 ? call<8> : call<32>)

// What this thread's speaking neurons add to one row: y.
static void spoken(const Step &s, int thread, const lissome_layer &l, Span mine, long row, float *y) {
    const bool gate_first = l.ffn == LISSOME_GATE_FIRST;
    const long wide = s.ffn->groups, hidden = s.d.hidden, last = mine.end < l.down.rows ? mine.end : l.down.rows;
    float *scale = s.ffn->scales + thread * FfnRoom::HEADS * wide, *offsets = scale + ADDED * wide, *x_sums = offsets + wide;
    const float *gate = s.gate + row * s.ffn_wide, *x = s.normed + row * s.wide;
    int32_t *live = s.ffn->live + thread * s.ffn_wide;
    long count = 0;
    for (long j = mine.begin; j < last; j++) live[count] = (int32_t)j, count += says(gate[j], l.threshold);
    __builtin_memset(y, 0, sizeof(float) * s.wide);
    __builtin_memset(offsets, 0, sizeof(float) * 2 * wide);
    if (gate_first)
        for (long c = 0; c < hidden; c++) x_sums[c / l.up.group] += x[c];
    for (long i = 0; i < count; i += ADDED) {
        const long some = count - i < ADDED ? count - i : ADDED;
        for (long n = i + ADDED; n < count && n < i + 2 * ADDED; n++) {
            if (gate_first) fetch(l.up, live[n]);
            fetch(l.down, live[n]);
        }
        float says_so[ADDED];
        for (long n = 0; n < some; n++) {
            says_so[n] = gate[live[i + n]];
            if (gate_first) says_so[n] *= BY_BITS(l.up, dot)(l.up, live[i + n], x, x_sums, scale);
        }
        BY_BITS(l.down, add)(l.down, live + i, some, says_so, y, offsets, scale, wide);
    }
    if (l.down.bits != 32)
        for (long c = 0; c < hidden; c += WIDTH) store(y + c, load(y + c) + offsets[c / l.down.group]);
}

// s.up = x up^T for this thread's neurons of a matrix that is laid out by neuron.
static void up_by_panels(const Step &s, int thread, const lissome_matrix &m, Span mine) {
    float *panel = s.panels + thread * DEEP * 64, *room = s.ffn->scales + thread * FfnRoom::HEADS * s.ffn->groups;
    for (long j = mine.begin; j < mine.end; j += 64) {
        const long width = mine.end - j < 64 ? mine.end - j : 64;
        for (long first = 0; first < m.columns; first += DEEP) {
            const long deep = m.columns - first < DEEP ? m.columns - first : DEEP;
            for (long i = 0; i < width; i++) {
                if (j + i < m.rows) BY_BITS(m, spread)(m, j + i, first, first + deep, panel + i, width, room, s.ffn->groups);
                else for (long c = 0; c < deep; c++) panel[c * width + i] = 0;
            }
            product(s.up + j, s.ffn_wide, s.normed + first, s.wide, 1, panel, width, s.rows, width, deep, first ? ADD : OVERWRITE);
        }
    }
}

// s.added = s.gate down for this thread's columns of a matrix that is laid out by neuron.
static void down_by_panels(const Step &s, int thread, const lissome_matrix &m) {
    float *panel = s.panels + thread * DEEP * 64, *room = s.ffn->scales + thread * FfnRoom::HEADS * s.ffn->groups;
    const long blocks = (m.columns + BLOCK - 1) / BLOCK;
    for (long b = share(blocks, thread, s.pool.size()); b < share(blocks, thread + 1, s.pool.size()); b++) {
        const long from = b * BLOCK, width = m.columns - from < BLOCK ? m.columns - from : BLOCK;
        for (long first = 0; first < m.rows; first += DEEP) {
            const long deep = m.rows - first < DEEP ? m.rows - first : DEEP;
            for (long i = 0; i < deep; i++) BY_BITS(m, spread)(m, first + i, from, from + width, panel + i * width, 1, room, s.ffn->groups);
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
    times(s, thread, first, s.rows, s.normed, s.wide, s.gate, s.ffn_wide, OUTER);
    if (l.ffn == LISSOME_PRODUCT) times(s, thread, l.up, s.rows, s.normed, s.wide, s.up, s.ffn_wide, OUTER);
    activate(s.gate, l.ffn == LISSOME_PRODUCT ? s.up : nullptr, s.rows, s.ffn_wide, mine.begin, mine.end, l.activation);
    if (s.rows > FEW) {
        if (l.ffn == LISSOME_GATE_FIRST) up_by_panels(s, thread, l.up, mine);
        silenced(s, l, mine);
        s.pool.barrier();
        return down_by_panels(s, thread, l.down);
    }
    for (long r = 0; r < s.rows; r++) spoken(s, thread, l, mine, r, s.ffn->partial + (thread * s.rows + r) * s.wide);
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
        times(s, thread, e.gate[i], count, f.sorted + from * s.wide, s.wide, f.gate + from * f.inner, f.inner, OWN);
        times(s, thread, e.up[i], count, f.sorted + from * s.wide, s.wide, f.up + from * f.inner, f.inner, OWN);
        const Span mine = own(s, thread, e.gate[i]);
        activate(f.gate + from * f.inner, f.up + from * f.inner, count, f.inner, mine.begin, mine.end, l.activation);
    }
    if (shared) {
        times(s, thread, l.gate, s.rows, s.normed, s.wide, s.gate, s.ffn_wide, OUTER);
        times(s, thread, l.up, s.rows, s.normed, s.wide, s.up, s.ffn_wide, OUTER);
        const Span mine = own(s, thread, l.gate);
        activate(s.gate, s.up, s.rows, s.ffn_wide, mine.begin, mine.end, l.activation);
    }
    s.pool.barrier();
    for (long i = 0; i < e.count; i++) {
        const long from = f.begin[i], count = f.begin[i + 1] - from;
        if (count) times(s, thread, e.down[i], count, f.gate + from * f.inner, f.inner, f.out + from * s.wide, s.wide, OWN);
    }
    if (shared) times(s, thread, l.down, s.rows, s.gate, s.ffn_wide, s.added, s.wide, OWN);
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
    gated(s, thread, l);
}
#undef BY_BITS
