/* Transforms of Winograd's algorithm F(2 x 2, 3 x 3) for convolutions (Lavin and Gray 2016, section 4.1).

   Maps are channels_last: images x height x width x channels, of at least LANES channels. Tile (i, j) of an image is its
   pixels 2i, 2i + 1 by 2j, 2j + 1. It has 4 x 4 values of each channel, in 16 arrays of images x count x tiles of a row x
   channels: those of the rows of tiles [first, first + count). Maps and values are float or bfloat16, sums are float. Each
   thread computes whole rows of tiles, so the results do not depend on the number of threads.

   This file includes itself once for each type. winograd.py compiles and calls it. */

#ifndef TYPE

#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "../../system/bfloat16.h"

#define LANES 16

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static inline vector load_float32(const float *from) {
    vector x;
    memcpy(&x, from, sizeof x);
    return x;
}

static inline void store_float32(float *to, vector x) { memcpy(to, &x, sizeof x); }

static inline vector load_bfloat16(const uint16_t *from) {
    halves x;
    memcpy(&x, from, sizeof x);
    return (vector)(__builtin_convertvector(x, words) << 16);
}

static inline void store_bfloat16(uint16_t *to, vector x) { /* rounds to nearest even; NaN propagates */
#ifdef __AVX512BF16__
    __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
#else
    words bits = (words)x, nan = (words)(x != x);
    halves rounded = __builtin_convertvector((nan & 0x7fc0) | (~nan & (bits + 0x7fff + (bits >> 16 & 1)) >> 16), halves);
#endif
    memcpy(to, &rounded, sizeof rounded);
}

#define TYPE float
#define NAME(what) what##_float32
#include "winograd.c"
#undef TYPE
#undef NAME
#define TYPE uint16_t
#define NAME(what) what##_bfloat16
#include "winograd.c"

#else

/* The functions return 1 if out of memory. In their loops, `at` is a row of tiles, and `c` the first of LANES channels:
   the last ones overlap with those before. */

#define FOR_EACH_TILE \
    long tiles = (width + 1) / 2; \
    TYPE *zeros = calloc(channels, sizeof(TYPE)); \
    if (!zeros) return 1; \
    _Pragma("omp parallel for num_threads(threads) schedule(static)") \
    for (long at = 0; at < images * count; at++) \
        for (long tile = 0; tile < tiles; tile++) { \
            long image = at / count, row = first + at % count, place = (at * tiles + tile) * channels;

#define FOR_EACH_CHANNEL for (long c = 0; c < channels; c = c + LANES < channels && c + 2 * LANES > channels \
                              ? channels - LANES : c + LANES)

#define END } free(zeros); return 0;

#define IS_INSIDE(y, x) ((y) >= 0 && (y) < height && (x) >= 0 && (x) < width)
#define PIXEL(y, x) (maps + ((image * height + (y)) * width + (x)) * channels)

/* B^T d B of the 4 x 4 pixels around a tile. */
int NAME(split_input)(const TYPE *maps, TYPE *const *values, long images, long height, long width, long channels,
                      long first, long count, int threads) {
    FOR_EACH_TILE
        const TYPE *pixels[4][4];
        for (int k = 0; k < 4; k++)
            for (int l = 0; l < 4; l++) {
                long y = 2 * row - 1 + k, x = 2 * tile - 1 + l;
                pixels[k][l] = IS_INSIDE(y, x) ? PIXEL(y, x) : zeros;
            }
        FOR_EACH_CHANNEL {
            vector d[4][4];
            for (int l = 0; l < 4; l++) {
                vector e = NAME(load)(pixels[0][l] + c), f = NAME(load)(pixels[1][l] + c);
                vector g = NAME(load)(pixels[2][l] + c), h = NAME(load)(pixels[3][l] + c);
                d[0][l] = e - g, d[1][l] = f + g, d[2][l] = g - f, d[3][l] = f - h;
            }
            for (int k = 0; k < 4; k++) {
                NAME(store)(values[4 * k] + place + c, d[k][0] - d[k][2]);
                NAME(store)(values[4 * k + 1] + place + c, d[k][1] + d[k][2]);
                NAME(store)(values[4 * k + 2] + place + c, d[k][2] - d[k][1]);
                NAME(store)(values[4 * k + 3] + place + c, d[k][1] - d[k][3]);
            }
        }
    END
}

/* A g A^T of the 2 x 2 pixels of a tile. */
int NAME(split_grad)(const TYPE *maps, TYPE *const *values, long images, long height, long width, long channels,
                     long first, long count, int threads) {
    FOR_EACH_TILE
        const TYPE *pixels[2][2];
        for (int k = 0; k < 2; k++)
            for (int l = 0; l < 2; l++) {
                long y = 2 * row + k, x = 2 * tile + l;
                pixels[k][l] = IS_INSIDE(y, x) ? PIXEL(y, x) : zeros;
            }
        FOR_EACH_CHANNEL {
            vector g[4][2];
            for (int l = 0; l < 2; l++) {
                vector e = NAME(load)(pixels[0][l] + c), f = NAME(load)(pixels[1][l] + c);
                g[0][l] = e, g[1][l] = e + f, g[2][l] = e - f, g[3][l] = -f;
            }
            for (int k = 0; k < 4; k++) {
                NAME(store)(values[4 * k] + place + c, g[k][0]);
                NAME(store)(values[4 * k + 1] + place + c, g[k][0] + g[k][1]);
                NAME(store)(values[4 * k + 2] + place + c, g[k][0] - g[k][1]);
                NAME(store)(values[4 * k + 3] + place + c, -g[k][1]);
            }
        }
    END
}

/* A^T m A: the 2 x 2 pixels of a tile. */
int NAME(join_output)(TYPE *maps, TYPE *const *values, long images, long height, long width, long channels, long first,
                      long count, int threads) {
    FOR_EACH_TILE
        FOR_EACH_CHANNEL {
            vector m[2][4];
            for (int l = 0; l < 4; l++) {
                vector e = NAME(load)(values[l] + place + c), f = NAME(load)(values[4 + l] + place + c);
                vector g = NAME(load)(values[8 + l] + place + c), h = NAME(load)(values[12 + l] + place + c);
                m[0][l] = e + f + g, m[1][l] = f - g - h;
            }
            for (int k = 0; k < 2; k++) {
                long y = 2 * row + k, x = 2 * tile;
                if (IS_INSIDE(y, x)) NAME(store)(PIXEL(y, x) + c, m[k][0] + m[k][1] + m[k][2]);
                if (IS_INSIDE(y, x + 1)) NAME(store)(PIXEL(y, x + 1) + c, m[k][1] - m[k][2] - m[k][3]);
            }
        }
    END
}

#undef FOR_EACH_TILE
#undef FOR_EACH_CHANNEL
#undef END
#undef IS_INSIDE
#undef PIXEL

#endif
