// Block-sparse attention, forward and backward: the C interface. All pointers are the caller's; nothing is kept after a call.
//
// Queries are handled in tiles of 64 rows, keys in blocks of 64. `blocks` names for every tile the key blocks it visits, `masks` for every such
// visit a row of `bits` (or -1: every query of the tile sees every key of the block). Blocks from `keys / 64`, rounded up, on are 64 of `tokens`:
// keys that are visited by themselves, wherever they lie.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LISSOME_TILE = 64, LISSOME_DIM_MAX = 256, LISSOME_VERSION = 5 };

// [batch, heads, rows, width]; strides in elements, the last dimension is contiguous.
typedef struct {
    const void *data;
    int64_t batch, head, row;
} lissome_rows;

typedef struct {
    int64_t batch, heads, kv_heads, queries, keys, extra, dim, value_dim;
    int32_t half;     // 0: float32, 1: bfloat16 (q, grad and out alike)
    int32_t kv_half;  // the same of k and v
    int32_t threads;
    float scale;      // of the scores
    int32_t lead;     // rows of the first tile that lie before the first query
    lissome_rows q, k, v, grad;
    // selection [batch or 1, heads or 1, tiles, most]; a stride is 0 where all share one
    const int32_t *blocks, *masks;
    int64_t tiles, most, selection_batch, selection_head;
    const int64_t *tokens;  // [batch or 1, heads or 1, extra]: positions of keys
    int64_t token_batch, token_head;
    const uint64_t *bits;  // [masks, 64]: bit r of [m, j]: row r of the tile sees key j of the block
    lissome_rows out;      // written: [batch, heads, queries, value_dim]
    float *lse;            // [batch, heads, queries]: log of the sum of exp(scores); -inf where a query sees no key
    const float *delta;    // [batch, heads, queries]: sum over value_dim of grad * out
    float *dq, *dk, *dv;  // contiguous float32, shaped like q, k and v
} lissome_attention;

// 0, or the number of the argument check that failed (1: sizes, 2: no memory).
int lissome_attention_forward(const lissome_attention *);
int lissome_attention_backward(const lissome_attention *);

// The instruction set that is used here: "avx512-vnni", "avx512", "avx2" or "portable"; LISSOME_ISA forces a lower one.
const char *lissome_isa(void);
int lissome_version(void);

#ifdef __cplusplus
}
#endif
