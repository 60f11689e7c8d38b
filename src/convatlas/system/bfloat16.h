/* Numbers in the kernels: float, and bfloat16 as uint16_t, which is read and written as float. */

#ifndef CONVATLAS_BFLOAT16_H
#define CONVATLAS_BFLOAT16_H

#include <stdint.h>

typedef union { float value; uint32_t bits; } word;

static inline float from_bfloat16(uint16_t x) {
    word w = {.bits = (uint32_t)x << 16};
    return w.value;
}

static inline uint16_t to_bfloat16(float x) { /* rounds to nearest even; NaN propagates */
    word w = {.value = x};
    uint32_t rounded = (w.bits + 0x7fff + (w.bits >> 16 & 1)) >> 16;
    return x != x ? 0x7fc0 : rounded;
}

static inline float identity(float x) { return x; }

#endif
