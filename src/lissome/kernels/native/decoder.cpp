// A step of the decoder: what is checked before it runs, and which instruction set runs it.
#include "decoder.h"

#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <new>

#include "decoder_runs.h"
#include "isa.h"
#include "pool.h"

#define LISSOME_BODY "decoder_body.h"
#include "each_isa.h"

#ifdef LISSOME_X86
#define AS_HERE(call) (isa() >= AVX512 ? avx512::call : isa() == AVX2 ? avx2::call : portable::call)
#else
#define AS_HERE(call) (portable::call)
#endif

struct lissome_pool {
    Pool team;
    std::mutex calls;  // one call at a time: a second one waits for the team

    explicit lissome_pool(int threads) : team(threads) {}
};

namespace {

bool sensible_bits(int32_t inputs) { return inputs == 8 || inputs == 16 || inputs == 32; }

bool sensible(const lissome_matrix &m, int64_t rows, int64_t columns) {
    const bool coded = m.bits == 4 || m.bits == 8;
    const bool group = m.group == 32 || (coded && (m.group == 64 || m.group == 128));
    return m.data && sensible_bits(m.inputs) && m.rows == rows && m.columns == columns && rows > 0 && columns > 0 && group && columns % m.group == 0 && (coded || m.bits == 32);
}

bool gated(const lissome_decoder &d, const lissome_matrix &gate, const lissome_matrix &up, const lissome_matrix &down) {
    const int64_t neurons = gate.rows;
    return neurons <= d.ffn && sensible(gate, neurons, d.hidden) && sensible(up, neurons, d.hidden) && sensible(down, d.hidden, neurons);
}

bool sensible_ffn(const lissome_decoder &d, const lissome_layer &l) {
    if (l.activation < LISSOME_SILU || l.activation > LISSOME_RELU2) return false;
    if (l.ffn == LISSOME_GATED) return gated(d, l.gate, l.up, l.down);
    if (l.ffn == LISSOME_GATE_FIRST || l.ffn == LISSOME_PRODUCT || l.ffn == LISSOME_PLAIN) {
        const int64_t neurons = l.up.rows;
        return l.threshold >= 0 && neurons <= d.ffn && (l.ffn == LISSOME_PLAIN || sensible(l.gate, neurons, d.hidden)) &&
               sensible(l.up, neurons, d.hidden) && sensible(l.down, neurons, d.hidden);
    }
    if (l.ffn != LISSOME_EXPERTS || !l.experts) return false;
    const lissome_experts &e = *l.experts;
    if (e.count < 1 || e.active < 1 || e.active > e.count || e.count > INT32_MAX || !e.gate || !e.up || !e.down) return false;
    if (e.weights < LISSOME_SCORES || e.weights > LISSOME_ONES || e.router.bits != 32 || !sensible(e.router, e.count, d.hidden)) return false;
    for (int64_t i = 0; i < e.count; i++)
        if (e.gate[i].rows != e.gate[0].rows || !gated(d, e.gate[i], e.up[i], e.down[i])) return false;
    return !l.gate.data || gated(d, l.gate, l.up, l.down);
}

bool sensible(const lissome_decoder &d) {
    if (d.inputs && !sensible_bits(d.inputs)) return false;
    if (d.layers < 0 || d.heads < 1 || d.kv_heads < 1 || d.heads % d.kv_heads || d.dim < 16 || d.dim % 16 || d.dim > LISSOME_DIM_MAX || d.slots < 1 ||
        d.capacity < 1 || !d.keys || !d.values)
        return false;
    if (!sensible(d.embedding, d.vocabulary, d.hidden) || !sensible(d.head, d.head.rows, d.hidden)) return false;
    for (int64_t i = 0; i < d.layers; i++) {
        const lissome_layer &l = d.layer[i];
        if (!sensible(l.q, d.heads * d.dim, d.hidden) || !sensible(l.k, d.kv_heads * d.dim, d.hidden) || !sensible(l.v, d.kv_heads * d.dim, d.hidden) ||
            !sensible(l.o, d.hidden, d.heads * d.dim) || !sensible_ffn(d, l))
            return false;
    }
    return true;
}

bool sensible(const lissome_decoder &d, int64_t rows, const int32_t *token, const int32_t *slot, const int32_t *position, int64_t wanted, const int32_t *which) {
    for (int64_t i = 0; i < rows; i++)
        if (token[i] < 0 || token[i] >= d.vocabulary || slot[i] < 0 || slot[i] >= d.slots || position[i] < 0 || position[i] >= d.capacity) return false;
    for (int64_t i = 0; i < wanted; i++)
        if (which[i] < 0 || which[i] >= rows) return false;
    return true;
}

}  // namespace

extern "C" {

lissome_pool *lissome_pool_new(int threads) {
    try {
        return new lissome_pool(threads);
    } catch (const std::exception &) {  // no memory, or no more threads
        return nullptr;
    }
}

void lissome_pool_free(lissome_pool *pool) { delete pool; }

int lissome_decoder_step(const lissome_decoder *decoder, lissome_pool *pool, int64_t rows, const int32_t *token, const int32_t *slot, const int32_t *position,
                         int64_t wanted, const int32_t *which, float *logits, const float *begin, float *end) {
    if (!sensible(*decoder) || !sensible(*decoder, rows, token, slot, position, wanted, which)) return 1;
    if (!rows) return 0;
    const std::lock_guard<std::mutex> alone(pool->calls);
    try {
        const Rows given{rows, token, slot, position, wanted, which, logits, begin, end};
        AS_HERE(step(*decoder, pool->team, given));
    } catch (const std::bad_alloc &) {
        return 2;
    }
    return 0;
}

int lissome_matrix_multiply(const lissome_matrix *matrix, lissome_pool *pool, int32_t inputs, int64_t n, const float *x, float *y) {
    if (!sensible(*matrix, matrix->rows, matrix->columns) || (inputs && !sensible_bits(inputs)) || n < 0) return 1;
    const std::lock_guard<std::mutex> alone(pool->calls);
    try {
        if (n) AS_HERE(multiply(*matrix, pool->team, inputs ? inputs : matrix->inputs, n, x, y));
    } catch (const std::bad_alloc &) {
        return 2;
    }
    return 0;
}
}
