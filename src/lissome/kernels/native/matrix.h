// Weight matrices as the decoder reads them: floats, or codes of 4 or 8 bits with a scale and an offset for a group of columns of each row.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LISSOME_ROWS = 16, LISSOME_GROUP_MIN = 32 };

// [rows, columns], the weight of y = W x, in tiles of 16 rows (the last one padded with zeros), so that a row is a lane of a vector.
//
// bits 32: of a tile, columns x 16 floats. bits 4 and 8: for each group of `group` columns (32, 64 or 128; a multiple of 32 that divides `columns`) 16
// scales and 16 offsets in half precision, then words of 32 bits, 16 beside each other, one of each row: eight codes of 4 bits (0..15, column c in bits 4c)
// or four of 8 bits (-128..127, column c in bits 8c). A weight is scale * code + offset.
typedef struct {
    int64_t rows, columns;
    int32_t bits, group;
    int32_t inputs;  // bits that its inputs may be rounded to where several rows share the weights: 8, 16, or 32 for none
    const void *data;
} lissome_matrix;

#ifdef __cplusplus
}
#endif
