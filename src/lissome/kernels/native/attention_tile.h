// One tile of attention's forward pass, for kernels that share their work among threads of their own.
#pragma once
#include <stddef.h>

#include "attention.h"

void attention_tile(const lissome_attention &, int64_t head, int64_t tile, void *scratch);  // of the first batch
size_t attention_scratch();  // bytes that a thread needs, aligned to 64
