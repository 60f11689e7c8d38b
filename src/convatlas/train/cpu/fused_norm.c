/* Batch norm and the activation behind it, forward and backward, each reading its input from memory once.

   Activations are rows of channels (channels_last), of float or bfloat16; everything else is float. Each thread has a
   block of rows, so results depend on the number of threads, and on nothing else.

   This file is compiled once for each type: it includes itself. `norms.py` compiles and calls it. */

#ifndef TYPE

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { NONE, RELU, RELU6, HARDSWISH, SILU };

#define SIMD _Pragma("omp simd")

#define GROUP 64 /* rows whose sums are taken plainly, before they are added to those of the others */

typedef union { float value; uint32_t bits; } word;

static inline float from_bfloat16(uint16_t x) {
    word w = {.bits = (uint32_t)x << 16};
    return w.value;
}

static inline uint16_t to_bfloat16(float x) { /* to the nearest, to even between two; what is no number stays none */
    word w = {.value = x};
    uint32_t rounded = (w.bits + 0x7fff + (w.bits >> 16 & 1)) >> 16;
    return x != x ? 0x7fc0 : rounded;
}

static inline float as_it_is(float x) { return x; }

static inline float power_of_e(float x) { /* 2^n times a polynomial for the rest, of at most half a power of two */
    x = x > -80.0f ? x : -80.0f;
    x = x < 80.0f ? x : 80.0f;
    float scaled = x * 1.44269504f, whole = (scaled + 12582912.0f) - 12582912.0f;
    float rest = (scaled - whole) * 0.693147181f;
    float series = 1 + rest * (1 + rest * (0.5f + rest * (0.166666667f + rest * (0.0416666667f +
        rest * (0.00833333333f + rest * 0.00138888889f)))));
    word w = {.bits = (uint32_t)((int32_t)whole + 127) << 23};
    return series * w.value;
}

static inline float sigmoid(float x) { return 1 / (1 + power_of_e(-x)); }

/* comparisons are written so that what is no number stays none */
static inline float active(int kind, float z) {
    if (kind == RELU) return z < 0 ? 0 : z;
    if (kind == RELU6) { z = z < 0 ? 0 : z; return z > 6 ? 6 : z; }
    if (kind == HARDSWISH) { float gate = z + 3; gate = gate < 0 ? 0 : gate; gate = gate > 6 ? 6 : gate;
        return z * gate * (1.0f / 6); }
    if (kind == SILU) return z * sigmoid(z);
    return z;
}

static inline float slope(int kind, float z) {
    if (kind == RELU) return z <= 0 ? 0 : 1;
    if (kind == RELU6) { float inner = z <= 0 ? 0 : 1; return z >= 6 ? 0 : inner; }
    if (kind == HARDSWISH) { float inner = z * (1.0f / 3) + 0.5f; inner = z <= -3 ? 0 : inner;
        return z >= 3 ? 1 : inner; }
    if (kind == SILU) { float s = sigmoid(z); return s * (1 + z * (1 - s)); }
    return 1;
}

#define TYPE float
#define NAME(what) what##_float32
#define LOAD as_it_is
#define STORE as_it_is
#include "fused_norm.c"
#undef TYPE
#undef NAME
#undef LOAD
#undef STORE
#define TYPE uint16_t
#define NAME(what) what##_bfloat16
#define LOAD from_bfloat16
#define STORE to_bfloat16
#include "fused_norm.c"

#else

/* Mean and sum of squared deviations of rows first to last of each channel (Chan et al. 1983). */
static void NAME(moments)(const TYPE *restrict x, long first, long last, long channels, float *restrict mean,
                          float *restrict square, float *restrict scratch) {
    float *restrict shift = scratch, *restrict sum = scratch + channels, *restrict power = scratch + 2 * channels;
    memset(mean, 0, channels * sizeof(float));
    memset(square, 0, channels * sizeof(float));
    for (long row = first; row < last; row += GROUP) {
        long stop = row + GROUP < last ? row + GROUP : last;
        for (long c = 0; c < channels; c++) {
            shift[c] = LOAD(x[row * channels + c]);
            sum[c] = power[c] = 0;
        }
        long r = row;
        for (; r + 4 <= stop; r += 4) {
            const TYPE *restrict at = x + r * channels;
            SIMD for (long c = 0; c < channels; c++) {
                float d = LOAD(at[c]) - shift[c], e = LOAD(at[channels + c]) - shift[c];
                float f = LOAD(at[2 * channels + c]) - shift[c], g = LOAD(at[3 * channels + c]) - shift[c];
                sum[c] += (d + e) + (f + g);
                power[c] += (d * d + e * e) + (f * f + g * g);
            }
        }
        for (; r < stop; r++)
            SIMD for (long c = 0; c < channels; c++) {
                float d = LOAD(x[r * channels + c]) - shift[c];
                sum[c] += d;
                power[c] += d * d;
            }
        float count = stop - row, before = row - first;
        for (long c = 0; c < channels; c++) {
            float away = shift[c] + sum[c] / count - mean[c];
            square[c] += power[c] - sum[c] * sum[c] / count + away * away * (before * count / (before + count));
            mean[c] += away * (count / (before + count));
        }
    }
}

static inline __attribute__((always_inline)) void NAME(apply)(int kind, const TYPE *restrict x, TYPE *restrict y,
        long first, long last, long channels, const float *restrict scale, const float *restrict offset) {
    for (long r = first; r < last; r++) {
        const TYPE *restrict from = x + r * channels;
        TYPE *restrict to = y + r * channels;
        SIMD for (long c = 0; c < channels; c++)
            to[c] = STORE(active(kind, LOAD(from[c]) * scale[c] + offset[c]));
    }
}

/* Sums over rows of the gradient behind the norm, and of its products with the deviations from the mean. */
static inline __attribute__((always_inline)) void NAME(sums)(int kind, const TYPE *restrict x,
        const TYPE *restrict gradient, long first, long last, long channels, const float *restrict scale,
        const float *restrict offset, const float *restrict mean, float *restrict plain, float *restrict product,
        float *restrict scratch) {
    float *restrict a = scratch, *restrict b = scratch + channels;
    memset(plain, 0, channels * sizeof(float));
    memset(product, 0, channels * sizeof(float));
    for (long row = first; row < last; row += GROUP) {
        long stop = row + GROUP < last ? row + GROUP : last;
        memset(scratch, 0, 2 * channels * sizeof(float));
        long r = row;
        for (; r + 2 <= stop; r += 2) {
            const TYPE *restrict at = x + r * channels, *restrict by = gradient + r * channels;
            SIMD for (long c = 0; c < channels; c++) {
                float v = LOAD(at[c]), w = LOAD(at[channels + c]);
                float g = LOAD(by[c]) * slope(kind, v * scale[c] + offset[c]);
                float h = LOAD(by[channels + c]) * slope(kind, w * scale[c] + offset[c]);
                a[c] += g + h;
                b[c] += g * (v - mean[c]) + h * (w - mean[c]);
            }
        }
        for (; r < stop; r++)
            SIMD for (long c = 0; c < channels; c++) {
                float v = LOAD(x[r * channels + c]);
                float g = LOAD(gradient[r * channels + c]) * slope(kind, v * scale[c] + offset[c]);
                a[c] += g;
                b[c] += g * (v - mean[c]);
            }
        for (long c = 0; c < channels; c++) {
            plain[c] += a[c];
            product[c] += b[c];
        }
    }
}

static inline __attribute__((always_inline)) void NAME(spread)(int kind, const TYPE *restrict x,
        const TYPE *restrict gradient, TYPE *restrict result, long first, long last, long channels,
        const float *restrict scale, const float *restrict offset, const float *restrict mean,
        const float *restrict tilt, const float *restrict level) {
    for (long r = first; r < last; r++)
        SIMD for (long c = 0; c < channels; c++) {
            float value = LOAD(x[r * channels + c]);
            float g = LOAD(gradient[r * channels + c]) * slope(kind, value * scale[c] + offset[c]);
            result[r * channels + c] = STORE(scale[c] * g - (value - mean[c]) * tilt[c] - level[c]);
        }
}

#define EACH(call) switch (kind) { case RELU: call(RELU); break; case RELU6: call(RELU6); break; \
    case HARDSWISH: call(HARDSWISH); break; case SILU: call(SILU); break; default: call(NONE); }

/* y = activation((x - mean) * deviation * weight + bias), where `deviation` is one over the square root of variance +
   eps; mean and deviation are returned, and the running ones are moved. Returns 0, or 1 if there is no memory. */
int NAME(forward)(int kind, const TYPE *x, TYPE *y, long rows, long channels, const float *weight, const float *bias,
                  float *mean, float *deviation, float *running_mean, float *running_variance, float momentum,
                  float eps, int threads) {
    float *memory = malloc(sizeof(float) * channels * (5L * threads + 2));
    if (!memory) return 1;
    float *scale = memory + 5L * threads * channels, *offset = scale + channels;
    #pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), count = omp_get_num_threads();
        long first = rows * me / count, last = rows * (me + 1) / count;
        float *mine = memory + 5 * me * channels;
        NAME(moments)(x, first, last, channels, mine, mine + channels, mine + 2 * channels);
        #pragma omp barrier
        #pragma omp single
        {
            for (long other = 1; other < count; other++) {
                float *theirs = memory + 5 * other * channels;
                float before = rows * other / count, more = rows * (other + 1) / count - rows * other / count;
                for (long c = 0; more > 0 && c < channels; c++) {
                    float away = theirs[c] - memory[c];
                    memory[channels + c] += theirs[channels + c] + away * away * (before * more / (before + more));
                    memory[c] += away * (more / (before + more));
                }
            }
            for (long c = 0; c < channels; c++) {
                float variance = memory[channels + c] / rows;
                mean[c] = memory[c];
                deviation[c] = 1 / sqrtf(variance + eps);
                running_mean[c] += momentum * (mean[c] - running_mean[c]);
                running_variance[c] += momentum * (variance * rows / (rows - 1) - running_variance[c]);
                scale[c] = weight[c] * deviation[c];
                offset[c] = bias[c] - mean[c] * scale[c];
            }
        }
        #define CALL(kind) NAME(apply)(kind, x, y, first, last, channels, scale, offset)
        EACH(CALL)
        #undef CALL
    }
    free(memory);
    return 0;
}

/* The gradients of x, weight and bias, from that of y. */
int NAME(backward)(int kind, const TYPE *x, const TYPE *gradient, TYPE *result, long rows, long channels,
                   const float *weight, const float *bias, const float *mean, const float *deviation, float *of_weight,
                   float *of_bias, int threads) {
    float *memory = malloc(sizeof(float) * channels * (4L * threads + 4));
    if (!memory) return 1;
    float *scale = memory + 4L * threads * channels, *offset = scale + channels;
    float *tilt = offset + channels, *level = tilt + channels;
    for (long c = 0; c < channels; c++) {
        scale[c] = weight[c] * deviation[c];
        offset[c] = bias[c] - mean[c] * scale[c];
    }
    #pragma omp parallel num_threads(threads)
    {
        long me = omp_get_thread_num(), count = omp_get_num_threads();
        long first = rows * me / count, last = rows * (me + 1) / count;
        float *mine = memory + 4 * me * channels;
        #define CALL(kind) NAME(sums)(kind, x, gradient, first, last, channels, scale, offset, mean, mine, \
                                      mine + channels, mine + 2 * channels)
        EACH(CALL)
        #undef CALL
        #pragma omp barrier
        #pragma omp single
        for (long c = 0; c < channels; c++) {
            float plain = 0, product = 0;
            for (long other = 0; other < count; other++) {
                plain += memory[4 * other * channels + c];
                product += memory[(4 * other + 1) * channels + c];
            }
            of_bias[c] = plain;
            of_weight[c] = product * deviation[c];
            tilt[c] = scale[c] * deviation[c] * deviation[c] * product / rows;
            level[c] = scale[c] * plain / rows;
        }
        #define CALL(kind) NAME(spread)(kind, x, gradient, result, first, last, channels, scale, offset, mean, tilt, level)
        EACH(CALL)
        #undef CALL
    }
    free(memory);
    return 0;
}

#undef EACH

#endif
