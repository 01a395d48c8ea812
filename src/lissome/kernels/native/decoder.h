// A Llama-shaped decoder: one call runs all layers for some tokens of some sequences. The C interface; all pointers are the caller's.
#pragma once
#include "matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    const float *attention_norm, *ffn_norm;  // [hidden]
    lissome_matrix q, k, v, o, gate, up, down;
} lissome_layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, dim, ffn, vocabulary;
    int64_t slots, capacity;  // sequences that are kept, and tokens of each
    float epsilon, scale;     // of the norms; of the attention scores
    int32_t half;             // keys and values: 0 float32, 1 bfloat16
    const lissome_layer *layer;
    lissome_matrix embedding, head;
    const float *norm;        // [hidden], before the head
    const float *cosine, *sine;  // [capacity, dim / 2], the rotation of each position (halves rotated, as in transformers)
    void *keys, *values;      // [layers, slots, kv_heads, capacity, dim]
} lissome_decoder;

typedef struct lissome_pool lissome_pool;
lissome_pool *lissome_pool_new(int threads);
void lissome_pool_free(lissome_pool *);

// y [n, rows rounded up to 16] = x [n, columns] W^T, float32; x and y contiguous. 0, 1 or 2 as below.
int lissome_matrix_multiply(const lissome_matrix *, lissome_pool *, int64_t n, const float *x, float *y);

// Runs `rows` tokens: token[i] stands at position[i] of the sequence in slot[i]; what came before it there is read from the cache, or stands before it in
// this call. Rows of one slot are neighbours, in rising order of position. logits: [wanted, rows of the head] of the rows which[0..wanted).
// 0, or 1 for arguments that make no sense, 2 without memory.
int lissome_decoder_step(const lissome_decoder *, lissome_pool *, int64_t rows, const int32_t *token, const int32_t *slot, const int32_t *position,
                         int64_t wanted, const int32_t *which, float *logits);

// The same for a decoder that is a part of a larger one: the layers of its structure are some of the larger one's, and keys and values begin at theirs.
// begin: [rows, hidden], what the rows are before the first layer, instead of embeddings; end: room for what they are after the last layer, before the
// norm. Either may be null.
int lissome_decoder_part(const lissome_decoder *, lissome_pool *, int64_t rows, const int32_t *token, const int32_t *slot, const int32_t *position,
                         int64_t wanted, const int32_t *which, float *logits, const float *begin, float *end);

#ifdef __cplusplus
}
#endif
