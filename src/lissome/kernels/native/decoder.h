// A Llama-shaped decoder: one call runs all layers for some tokens of some sequences. The C interface; all pointers are the caller's.
#pragma once
#include "matrix.h"

#ifdef __cplusplus
extern "C" {
#endif

// Feed-forward parts. GATED: down (act(gate x) * up x). Three kinds skip neurons whose value is at most `threshold` away from zero: GATE_FIRST asks
// act(gate x), PRODUCT act(gate x) * up x, PLAIN (no gate) act(up x). EXPERTS: each row goes through some experts, gated ones, and the layer's gate, up and
// down are those of a shared expert, or without data.
enum { LISSOME_GATED, LISSOME_GATE_FIRST, LISSOME_PRODUCT, LISSOME_PLAIN, LISSOME_EXPERTS };
enum { LISSOME_SILU, LISSOME_RELU, LISSOME_RELU2 };
enum { LISSOME_SCORES, LISSOME_NORMALISED, LISSOME_ONES };  // an expert's weight: its score, its share of the chosen ones' scores, 1

// Where neurons are skipped, `down` is transposed [neurons, hidden] and laid out by neuron, and so is `up` [neurons, hidden] for GATE_FIRST. By neuron: rows
// one after the other; of each, bits 32: floats; bits 4 and 8: the scales of its groups, their offsets (half precision), then for every 64 columns 16 words
// of 16 or 32 bits, of which word l holds the columns 16c + l in bits 4c or 8c; a last block of 32 columns has words for 64.
typedef struct {
    int64_t count, active;
    int32_t sigmoid, weights;   // scores: softmax over all, or sigmoid of each; how the chosen ones weigh
    float scale;                // of the weights
    const float *bias, *offset; // [count] or none: added to the scores for choosing alone; to the logits
    lissome_matrix router;      // [count, hidden], floats
    const lissome_matrix *gate, *up, *down;  // [count]
} lissome_experts;

typedef struct {
    const float *attention_norm, *ffn_norm;  // [hidden]
    lissome_matrix q, k, v, o, gate, up, down;
    int32_t ffn, activation;
    float threshold;
    const lissome_experts *experts;
} lissome_layer;

typedef struct {
    int64_t layers, hidden, heads, kv_heads, dim, ffn, vocabulary;  // ffn: neurons of the widest layer
    int64_t slots, capacity;  // sequences that are kept, and tokens of each
    float epsilon, scale;     // of the norms; of the attention scores
    int32_t half;             // keys and values: 0 float32, 1 bfloat16
    int32_t inputs;           // 8, 16, 32: of all matrices, whatever each says; 0: what each says
    const lissome_layer *layer;
    lissome_matrix embedding, head;
    const float *norm;        // [hidden], before the head
    const float *cosine, *sine;  // [capacity, dim / 2], the rotation of each position (halves rotated, as in transformers)
    void *keys, *values;      // [layers, slots, kv_heads, capacity, dim]
} lissome_decoder;

typedef struct lissome_pool lissome_pool;
lissome_pool *lissome_pool_new(int threads);
void lissome_pool_free(lissome_pool *);

// y [n, rows rounded up to 16] = x [n, columns] W^T, float32; x and y contiguous. inputs: as in lissome_decoder. 0, 1 or 2 as below.
int lissome_matrix_multiply(const lissome_matrix *, lissome_pool *, int32_t inputs, int64_t n, const float *x, float *y);

// Runs `rows` tokens: token[i] stands at position[i] of the sequence in slot[i]; what came before it there is read from the cache, or stands before it in
// this call. Rows of one slot are neighbours, in rising order of position. logits: [wanted, rows of the head] of the rows which[0..wanted).
// begin: [rows, hidden], what the rows are before the first layer, instead of embeddings; end: room for what they are after the last layer, before the
// norm; either may be null. With them a decoder can be a part of a larger one, whose layers, keys and values its structure points into.
// One call at a time runs on a pool; another one waits. 0, or 1 for arguments that make no sense, 2 without memory.
int lissome_decoder_step(const lissome_decoder *, lissome_pool *, int64_t rows, const int32_t *token, const int32_t *slot, const int32_t *position,
                         int64_t wanted, const int32_t *which, float *logits, const float *begin, float *end);

#ifdef __cplusplus
}
#endif
