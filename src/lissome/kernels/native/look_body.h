// Attention of single rows over the keys and values of their sequences; compiled once for each instruction set, after Step.
//
// All query heads of a key-value head are computed together, so that its keys and values are read and widened once. Scores of WIDTH keys are summed across
// lanes in one tree. Bfloat16 is widened two numbers of a word at a time, even ones and odd ones: queries and outputs stand in that order meanwhile.
// The threads share keys rather than heads: what two of them found out about the same head is joined afterwards (as in flash-decoding, Dao et al. 2023).

constexpr long HEADS_TOGETHER = 4;  // query heads at a time

typedef uint16_t vh __attribute__((vector_size(WIDTH * 2)));

INLINE vf load_kept(const void *kept, int half, int64_t at) {
    if (!half) return load((const float *)kept + at);
    vh narrow;
    __builtin_memcpy(&narrow, (const uint16_t *)kept + at, sizeof narrow);
    return (vf)(__builtin_convertvector(narrow, vi) << 16);
}

// 2 WIDTH neighbours: in bfloat16 the even ones, then the odd ones.
INLINE void load_two(const void *kept, int half, int64_t at, vf &first, vf &second) {
    if (!half) {
        first = load((const float *)kept + at), second = load((const float *)kept + at + WIDTH);
        return;
    }
    vi words;
    __builtin_memcpy(&words, (const uint16_t *)kept + at, sizeof words);
    first = (vf)(words << 16), second = (vf)(words & (int32_t)0xffff0000);
}

// Where number i of a head stands in the order of load_two.
INLINE long place_in(const lissome_decoder &d, long i) {
    const long pair = i / (2 * WIDTH) * (2 * WIDTH), within = i - pair;
    if (!d.half || pair + 2 * WIDTH > d.dim) return i;
    return pair + within / 2 + within % 2 * WIDTH;
}

#if WIDTH > 4 && !defined(__clang__)
// A step of the tree below: two vectors with sums of EACH lanes a key become one with half as many lanes for twice the keys.
template <int EACH>
INLINE vf joined(vf a, vf b) {
#define AT(i) ((i) / (EACH / 2) * EACH + (i) % (EACH / 2))
#if WIDTH == 16
    const vi first = {AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), AT(6), AT(7), AT(8), AT(9), AT(10), AT(11), AT(12), AT(13), AT(14), AT(15)};
#else
    const vi first = {AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), AT(6), AT(7)};
#endif
#undef AT
    return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, first + EACH / 2);
}
#endif

// Lane j of the result: the sum over the lanes of parts[j].
INLINE vf across(const vf *parts) {
#if WIDTH == 16 && !defined(__clang__)
    vf a[8], b[4];
    for (int i = 0; i < 8; i++) a[i] = joined<16>(parts[2 * i], parts[2 * i + 1]);
    for (int i = 0; i < 4; i++) b[i] = joined<8>(a[2 * i], a[2 * i + 1]);
    return joined<2>(joined<4>(b[0], b[1]), joined<4>(b[2], b[3]));
#elif WIDTH == 8 && !defined(__clang__)
    vf a[4];
    for (int i = 0; i < 4; i++) a[i] = joined<8>(parts[2 * i], parts[2 * i + 1]);
    return joined<2>(joined<4>(a[0], a[1]), joined<4>(a[2], a[3]));
#else
    vf sums;
    for (int j = 0; j < WIDTH; j++) {
        float sum = 0;
        for (int i = 0; i < WIDTH; i++) sum += parts[j][i];
        sums[j] = sum;
    }
    return sums;
#endif
}

// Scores of G heads with `keys` keys that begin at `from`: scores [G, lds], -inf where no key is. q: [G, dim] in the order of load_two.
template <int G, int HALF>
INLINE void scored(const lissome_decoder &d, const float *q, int64_t from, long keys, float *scores, long lds) {
    for (long j = 0; j < keys; j += WIDTH) {
        vf parts[G][WIDTH];
        for (long c = 0; c < WIDTH; c++) {
            const int64_t at = from + (j + c < keys ? j + c : keys - 1) * d.dim;
            vf sum[G] = {};
            long i = 0;
            for (; i + 2 * WIDTH <= d.dim; i += 2 * WIDTH) {
                vf first, second;
                load_two(d.keys, HALF, at + i, first, second);
                for (int g = 0; g < G; g++) sum[g] += load(q + g * d.dim + i) * first + load(q + g * d.dim + i + WIDTH) * second;
            }
            for (; i < d.dim; i += WIDTH) {
                const vf last = load_kept(d.keys, HALF, at + i);
                for (int g = 0; g < G; g++) sum[g] += load(q + g * d.dim + i) * last;
            }
            for (int g = 0; g < G; g++) parts[g][c] = sum[g];
        }
        for (int g = 0; g < G; g++) store(scores + g * lds + j, across(parts[g]));
        for (int g = 0; g < G; g++)
            for (long c = keys - j; c < WIDTH; c++) scores[g * lds + j + c] = -INFINITY;
    }
}

// out [G, dim] = weights [G, lds] times the values.
template <int G, int HALF>
INLINE void weighed(const lissome_decoder &d, const float *weights, long lds, int64_t from, long keys, float *out) {
    constexpr int PAIRS = WIDTH == 16 ? 2 : 1;  // as many as there are registers for
    long i = 0;
    for (; i + 2 * WIDTH * PAIRS <= d.dim; i += 2 * WIDTH * PAIRS) {
        vf sum[G][2 * PAIRS] = {};
        for (long j = 0; j < keys; j++)
            for (int c = 0; c < PAIRS; c++) {
                vf first, second;
                load_two(d.values, HALF, from + j * d.dim + i + 2 * WIDTH * c, first, second);
                for (int g = 0; g < G; g++) sum[g][2 * c] += weights[g * lds + j] * first, sum[g][2 * c + 1] += weights[g * lds + j] * second;
            }
        for (int g = 0; g < G; g++)
            for (int c = 0; c < 2 * PAIRS; c++) store(out + g * d.dim + i + c * WIDTH, sum[g][c]);
    }
    while (i < d.dim) {
        const bool two = i + 2 * WIDTH <= d.dim;
        vf sum[G][2] = {};
        for (long j = 0; j < keys; j++) {
            vf first, second = {};
            if (two) load_two(d.values, HALF, from + j * d.dim + i, first, second);
            else first = load_kept(d.values, HALF, from + j * d.dim + i);
            for (int g = 0; g < G; g++) sum[g][0] += weights[g * lds + j] * first, sum[g][1] += weights[g * lds + j] * second;
        }
        for (int g = 0; g < G; g++) {
            store(out + g * d.dim + i, sum[g][0]);
            if (two) store(out + g * d.dim + i + WIDTH, sum[g][1]);
        }
        i += two ? 2 * WIDTH : WIDTH;
    }
}

// What is known of a head after some of its keys: the largest score, the sum of exp(score - most), the same sum of values [dim] in the order of load_two.
struct Seen {
    float *most, *total, *out;
};

template <int G, int HALF>
static void look(const lissome_decoder &d, const float *q, int64_t from, long keys, float *scores, long lds, const Seen &seen) {
    scored<G, HALF>(d, q, from, keys, scores, lds);
    for (int g = 0; g < G; g++) {
        vf most = splat(-INFINITY), sum = {};
        for (long j = 0; j < keys; j += WIDTH) {
            const vf score = load(scores + g * lds + j);
            most = score > most ? score : most;
        }
        float peak = -INFINITY, total = 0;
        for (int i = 0; i < WIDTH; i++) peak = most[i] > peak ? most[i] : peak;
        for (long j = 0; j < keys; j += WIDTH) {
            const vf p = exponential(load(scores + g * lds + j) - peak);
            store(scores + g * lds + j, p);
            sum += p;
        }
        for (int i = 0; i < WIDTH; i++) total += sum[i];
        seen.most[g] = peak, seen.total[g] = total;
    }
    weighed<G, HALF>(d, scores, lds, from, keys, seen.out);
}

// Keys [begin, end) of a row and a key-value head: what its query heads see, into `seen`.
static void look_at(const Step &s, int thread, long layer, const Look &one, long begin, long end, const Seen &seen) {
    const lissome_decoder &d = s.d;
    const long group = d.heads / d.kv_heads, lds = d.capacity + WIDTH;
    const int64_t from = place_of(d, layer, s.given.slot[one.row], one.head, begin);
    float *scores = s.scores + thread * s.scores_each, *q = scores + HEADS_TOGETHER * lds;
    for (long h = 0; h < group; h += HEADS_TOGETHER) {
        const long count = group - h < HEADS_TOGETHER ? group - h : HEADS_TOGETHER;
        const float *given = s.q + one.row * s.q_wide + (one.head * group + h) * d.dim;
        for (long g = 0; g < count; g++)
            for (long i = 0; i < d.dim; i++) q[g * d.dim + place_in(d, i)] = given[g * d.dim + i] * d.scale;
        const Seen to = {seen.most + h, seen.total + h, seen.out + h * d.dim};
        switch (count * 2 + (d.half != 0)) {
            case 2: look<1, 0>(d, q, from, end - begin, scores, lds, to); break;
            case 3: look<1, 1>(d, q, from, end - begin, scores, lds, to); break;
            case 4: look<2, 0>(d, q, from, end - begin, scores, lds, to); break;
            case 5: look<2, 1>(d, q, from, end - begin, scores, lds, to); break;
            case 6: look<3, 0>(d, q, from, end - begin, scores, lds, to); break;
            case 7: look<3, 1>(d, q, from, end - begin, scores, lds, to); break;
            case 8: look<4, 0>(d, q, from, end - begin, scores, lds, to); break;
            default: look<4, 1>(d, q, from, end - begin, scores, lds, to); break;
        }
    }
}

// Room of thread `thread` for what it found out about the first (which = 0) and the last (1) of its heads: neither need be whole.
INLINE Seen seen_at(const Step &s, int thread, int which) {
    const long group = s.d.heads / s.d.kv_heads;
    float *at = s.partial + (thread * 2 + which) * group * (2 + s.d.dim);
    return {at, at + group, at + 2 * group};
}

// Join what threads [first, last] found out about the heads of `one` (of each its first, of `first` itself its last), and write it where it belongs.
static void told(const Step &s, const Look &one, int first, int last) {
    const lissome_decoder &d = s.d;
    const long group = d.heads / d.kv_heads;
    const auto nothing = [&](int t) { return s.shares[t].look == s.shares[t + 1].look && s.shares[t].key == s.shares[t + 1].key; };
    for (long g = 0; g < group; g++) {
        float *out = s.seen + one.row * s.q_wide + (one.head * group + g) * d.dim, most = -INFINITY, total = 0;
        for (int t = first; t <= last; t++) {
            if (nothing(t)) continue;
            const Seen part = seen_at(s, t, t == first);
            most = part.most[g] > most ? part.most[g] : most;
        }
        for (long i = 0; i < d.dim; i++) out[i] = 0;
        for (int t = first; t <= last; t++) {
            if (nothing(t)) continue;
            const Seen part = seen_at(s, t, t == first);
            const float weight = exponential(splat(part.most[g] - most))[0];
            total += weight * part.total[g];
            for (long i = 0; i < d.dim; i++) out[i] += weight * part.out[g * d.dim + place_in(d, i)];
        }
        for (long i = 0; i < d.dim; i++) out[i] /= total;
    }
}

// This thread's share of the keys of all single rows. Heads that are its own from their first key to their last are finished here.
static void looked(const Step &s, int thread, long layer) {
    const Place begin = s.shares[thread], end = s.shares[thread + 1];
    for (long at = begin.look; at <= end.look && at < (long)s.looks.size(); at++) {
        const Look &one = s.looks[at];
        const long first = at == begin.look ? begin.key : 0, last = at == end.look ? end.key : one.keys;
        if (first >= last) continue;
        const int which = first == 0;
        look_at(s, thread, layer, one, first, last, seen_at(s, thread, which));
        if (first == 0 && last == one.keys) told(s, one, thread, thread);
    }
}

// After a barrier: join the heads whose first keys were this thread's, and the rest others'.
static void looked_together(const Step &s, int thread) {
    const Place end = s.shares[thread + 1];
    if (end.key == 0 || (end.look == s.shares[thread].look && s.shares[thread].key > 0)) return;
    int last = thread + 1;
    while (s.shares[last + 1].look == end.look) last++;
    told(s, s.looks[end.look], thread, last);
}
