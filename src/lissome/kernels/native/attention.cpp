// Which instruction set runs, and how the work is shared among threads. Built without torch; OpenMP is used where the compiler has it.
#include "attention.h"
#include "attention_tile.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

#define LISSOME_BODY "attention_body.h"
#include "each_isa.h"
#include "isa.h"

namespace {

bool sensible(const lissome_attention *a) {
    return a->dim > 0 && a->dim <= LISSOME_DIM_MAX && a->value_dim > 0 && a->value_dim <= LISSOME_DIM_MAX && a->kv_heads > 0 &&
           a->heads % a->kv_heads == 0 && a->threads > 0 && a->lead >= 0 && a->lead < LISSOME_TILE && a->tiles >= 0 && a->queries >= 0 &&
           a->tiles * LISSOME_TILE >= a->queries + a->lead;
}

void forward_tile(const lissome_attention &a, int64_t batch, int64_t head, int64_t tile, void *scratch) {
#ifdef LISSOME_X86
    if (isa() >= AVX512) return avx512::forward_tile(a, batch, head, tile, *(avx512::Scratch *)scratch);
    if (isa() == AVX2) return avx2::forward_tile(a, batch, head, tile, *(avx2::Scratch *)scratch);
#endif
    portable::forward_tile(a, batch, head, tile, *(portable::Scratch *)scratch);
}

void backward_tile(const lissome_attention &a, int64_t batch, int64_t head, int64_t tile, void *scratch, float *dk, float *dv, long dim_up, long value_up) {
#ifdef LISSOME_X86
    if (isa() >= AVX512) return avx512::backward_tile(a, batch, head, tile, *(avx512::Scratch *)scratch, dk, dv, dim_up, value_up);
    if (isa() == AVX2) return avx2::backward_tile(a, batch, head, tile, *(avx2::Scratch *)scratch, dk, dv, dim_up, value_up);
#endif
    portable::backward_tile(a, batch, head, tile, *(portable::Scratch *)scratch, dk, dv, dim_up, value_up);
}

void *aligned(size_t bytes) { return std::aligned_alloc(64, (bytes + 63) / 64 * 64); }

// Add the first `width` of every `up` floats, over all threads' copies, to a gradient; and clear the copies.
void gather(float *into, float *const *copies, int threads, int64_t offset, int64_t rows, int64_t width, int64_t up, int thread) {
    int64_t begin = rows * thread / threads, end = rows * (thread + 1) / threads;
    for (int64_t row = begin; row < end; row++)
        for (int64_t d = 0; d < width; d++) {
            float sum = 0;
            for (int t = 0; t < threads; t++) sum += copies[t][offset + row * up + d];
            into[row * width + d] = sum;
        }
}

}  // namespace

void attention_tile(const lissome_attention &a, int64_t head, int64_t tile, void *scratch) { forward_tile(a, 0, head, tile, scratch); }

size_t attention_scratch() { return sizeof(portable::Scratch); }

extern "C" {

int lissome_attention_forward(const lissome_attention *a) {
    if (!sensible(a)) return 1;
    bool short_of_memory = false;
    const int64_t items = a->batch * a->heads * a->tiles;
#pragma omp parallel num_threads(a->threads)
    {
        void *scratch = aligned(sizeof(portable::Scratch));
        if (!scratch) {
#pragma omp atomic write
            short_of_memory = true;
        }
#pragma omp for schedule(dynamic, 4)
        for (int64_t item = 0; item < items; item++)
            if (scratch) forward_tile(*a, item / a->tiles / a->heads, item / a->tiles % a->heads, item % a->tiles, scratch);
        std::free(scratch);
    }
    return short_of_memory ? 2 : 0;
}

// Every thread adds to gradients of keys and values of its own, which are summed when a key-value head is done: the order of sums, and with it every
// bit, depends on the number of threads alone.
int lissome_attention_backward(const lissome_attention *a) {
    if (!sensible(a)) return 1;
    const int64_t dim_up = (a->dim + 15) / 16 * 16, value_up = (a->value_dim + 15) / 16 * 16, rows = a->keys, group = a->heads / a->kv_heads;
    const int64_t size = rows * (dim_up + value_up);
    float *copies[256];
    bool short_of_memory = false;
    int threads = a->threads < 256 ? a->threads : 256;
#pragma omp parallel num_threads(threads)
    {
        int thread = 0, team = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num();
        team = omp_get_num_threads();
#endif
        void *scratch = aligned(sizeof(portable::Scratch));
        copies[thread] = (float *)aligned(sizeof(float) * size);
        if (!scratch || !copies[thread]) {
#pragma omp atomic write
            short_of_memory = true;
        }
#pragma omp barrier
        for (int64_t item = 0; !short_of_memory && item < a->batch * a->kv_heads; item++) {
            int64_t batch = item / a->kv_heads, kv = item % a->kv_heads;
            std::memset(copies[thread], 0, sizeof(float) * size);
            for (int64_t one = thread; one < group * a->tiles; one += team)
                backward_tile(*a, batch, kv * group + one / a->tiles, one % a->tiles, scratch, copies[thread], copies[thread] + rows * dim_up, dim_up, value_up);
#pragma omp barrier
            gather(a->dk + item * a->keys * a->dim, copies, team, 0, a->keys, a->dim, dim_up, thread);
            gather(a->dv + item * a->keys * a->value_dim, copies, team, rows * dim_up, a->keys, a->value_dim, value_up, thread);
#pragma omp barrier
        }
        std::free(scratch);
        std::free(copies[thread]);
    }
    return short_of_memory ? 2 : 0;
}

}  // extern "C"
