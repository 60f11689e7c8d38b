/* Batch norm fused with the activation behind it: forward and backward each read their input from memory once.

   x and y are channels_last, that is rows x channels, in float or bfloat16; everything else is float. Each thread
   computes a block of rows, so the results depend on the number of threads, and on nothing else.

   This file includes itself once for each type. fused_norm.py compiles and calls it. */

#ifndef TYPE

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../system/bfloat16.h"

enum { NONE, RELU, RELU6, HARDSWISH, SILU };

#define SIMD _Pragma("omp simd")

#define ROW_BLOCK 64 /* rows that are summed directly; sums of blocks are merged, which limits rounding errors */

static inline float fast_exp(float x) { /* 2^n * polynomial(rest), |rest| <= ln(2) / 2 */
    x = x > -80.0f ? x : -80.0f;
    x = x < 80.0f ? x : 80.0f;
    float scaled = x * 1.44269504f, whole = (scaled + 12582912.0f) - 12582912.0f;
    float rest = (scaled - whole) * 0.693147181f;
    float series = 1 + rest * (1 + rest * (0.5f + rest * (0.166666667f + rest * (0.0416666667f +
        rest * (0.00833333333f + rest * 0.00138888889f)))));
    word w = {.bits = (uint32_t)((int32_t)whole + 127) << 23};
    return series * w.value;
}

static inline float sigmoid(float x) { return 1 / (1 + fast_exp(-x)); }

/* comparisons are written so that NaN propagates */
static inline float activate(int activation, float z) {
    if (activation == RELU) return z < 0 ? 0 : z;
    if (activation == RELU6) { z = z < 0 ? 0 : z; return z > 6 ? 6 : z; }
    if (activation == HARDSWISH) { float gate = z + 3; gate = gate < 0 ? 0 : gate; gate = gate > 6 ? 6 : gate;
        return z * gate * (1.0f / 6); }
    if (activation == SILU) return z * sigmoid(z);
    return z;
}

static inline float activate_grad(int activation, float z) {
    if (activation == RELU) return z <= 0 ? 0 : 1;
    if (activation == RELU6) { float inner = z <= 0 ? 0 : 1; return z >= 6 ? 0 : inner; }
    if (activation == HARDSWISH) { float inner = z * (1.0f / 3) + 0.5f; inner = z <= -3 ? 0 : inner;
        return z >= 3 ? 1 : inner; }
    if (activation == SILU) { float s = sigmoid(z); return s * (1 + z * (1 - s)); }
    return 1;
}

#define TYPE float
#define NAME(what) what##_float32
#define LOAD identity
#define STORE identity
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

/* Mean and sum of squared deviations of each channel over rows [first, last) (Chan et al. 1983).
   scratch: 3 * channels. */
static void NAME(moments)(const TYPE *restrict x, long first, long last, long channels, float *restrict mean,
                          float *restrict sq_dev, float *restrict scratch) {
    float *restrict shift = scratch, *restrict sum = scratch + channels, *restrict sum_sq = scratch + 2 * channels;
    memset(mean, 0, channels * sizeof(float));
    memset(sq_dev, 0, channels * sizeof(float));
    for (long row = first; row < last; row += ROW_BLOCK) {
        long stop = row + ROW_BLOCK < last ? row + ROW_BLOCK : last;
        for (long c = 0; c < channels; c++) {
            shift[c] = LOAD(x[row * channels + c]);
            sum[c] = sum_sq[c] = 0;
        }
        long r = row;
        for (; r + 4 <= stop; r += 4) {
            const TYPE *restrict at = x + r * channels;
            SIMD for (long c = 0; c < channels; c++) {
                float d = LOAD(at[c]) - shift[c], e = LOAD(at[channels + c]) - shift[c];
                float f = LOAD(at[2 * channels + c]) - shift[c], g = LOAD(at[3 * channels + c]) - shift[c];
                sum[c] += (d + e) + (f + g);
                sum_sq[c] += (d * d + e * e) + (f * f + g * g);
            }
        }
        for (; r < stop; r++)
            SIMD for (long c = 0; c < channels; c++) {
                float d = LOAD(x[r * channels + c]) - shift[c];
                sum[c] += d;
                sum_sq[c] += d * d;
            }
        float count = stop - row, before = row - first;
        for (long c = 0; c < channels; c++) {
            float delta = shift[c] + sum[c] / count - mean[c];
            sq_dev[c] += sum_sq[c] - sum[c] * sum[c] / count + delta * delta * (before * count / (before + count));
            mean[c] += delta * (count / (before + count));
        }
    }
}

/* y = activation(x * scale + offset) for rows [first, last). */
static inline __attribute__((always_inline)) void NAME(apply)(int activation, const TYPE *restrict x, TYPE *restrict y,
        long first, long last, long channels, const float *restrict scale, const float *restrict offset) {
    for (long r = first; r < last; r++) {
        const TYPE *restrict from = x + r * channels;
        TYPE *restrict to = y + r * channels;
        SIMD for (long c = 0; c < channels; c++)
            to[c] = STORE(activate(activation, LOAD(from[c]) * scale[c] + offset[c]));
    }
}

/* With g = grad_y * activate_grad, the gradient of the norm's output: sum_grad = sum of g and
   sum_grad_dev = sum of g * (x - mean) over rows [first, last). scratch: 2 * channels. */
static inline __attribute__((always_inline)) void NAME(reduce_grads)(int activation, const TYPE *restrict x,
        const TYPE *restrict grad_y, long first, long last, long channels, const float *restrict scale,
        const float *restrict offset, const float *restrict mean, float *restrict sum_grad,
        float *restrict sum_grad_dev, float *restrict scratch) {
    float *restrict a = scratch, *restrict b = scratch + channels;
    memset(sum_grad, 0, channels * sizeof(float));
    memset(sum_grad_dev, 0, channels * sizeof(float));
    for (long row = first; row < last; row += ROW_BLOCK) {
        long stop = row + ROW_BLOCK < last ? row + ROW_BLOCK : last;
        memset(scratch, 0, 2 * channels * sizeof(float));
        long r = row;
        for (; r + 2 <= stop; r += 2) {
            const TYPE *restrict at = x + r * channels, *restrict by = grad_y + r * channels;
            SIMD for (long c = 0; c < channels; c++) {
                float v = LOAD(at[c]), w = LOAD(at[channels + c]);
                float g = LOAD(by[c]) * activate_grad(activation, v * scale[c] + offset[c]);
                float h = LOAD(by[channels + c]) * activate_grad(activation, w * scale[c] + offset[c]);
                a[c] += g + h;
                b[c] += g * (v - mean[c]) + h * (w - mean[c]);
            }
        }
        for (; r < stop; r++)
            SIMD for (long c = 0; c < channels; c++) {
                float v = LOAD(x[r * channels + c]);
                float g = LOAD(grad_y[r * channels + c]) * activate_grad(activation, v * scale[c] + offset[c]);
                a[c] += g;
                b[c] += g * (v - mean[c]);
            }
        for (long c = 0; c < channels; c++) {
            sum_grad[c] += a[c];
            sum_grad_dev[c] += b[c];
        }
    }
}

/* grad_x = scale * g - (x - mean) * grad_slope - grad_offset for rows [first, last). */
static inline __attribute__((always_inline)) void NAME(input_grad)(int activation, const TYPE *restrict x,
        const TYPE *restrict grad_y, TYPE *restrict grad_x, long first, long last, long channels,
        const float *restrict scale, const float *restrict offset, const float *restrict mean,
        const float *restrict grad_slope, const float *restrict grad_offset) {
    for (long r = first; r < last; r++)
        SIMD for (long c = 0; c < channels; c++) {
            float value = LOAD(x[r * channels + c]);
            float g = LOAD(grad_y[r * channels + c]) * activate_grad(activation, value * scale[c] + offset[c]);
            grad_x[r * channels + c] = STORE(scale[c] * g - (value - mean[c]) * grad_slope[c] - grad_offset[c]);
        }
}

#define FOR_ACTIVATION(call) switch (activation) { case RELU: call(RELU); break; case RELU6: call(RELU6); break; \
    case HARDSWISH: call(HARDSWISH); break; case SILU: call(SILU); break; default: call(NONE); }

/* y = activation((x - mean) * inv_std * weight + bias), where inv_std = 1 / sqrt(variance + eps). Writes mean and
   inv_std, and updates running_mean and running_var. Returns 0, or 1 if out of memory. */
int NAME(forward)(int activation, const TYPE *x, TYPE *y, long rows, long channels, const float *weight,
                  const float *bias, float *mean, float *inv_std, float *running_mean, float *running_var,
                  float momentum, float eps, int threads) {
    float *memory = malloc(sizeof(float) * channels * (5L * threads + 2));
    if (!memory) return 1;
    float *scale = memory + 5L * threads * channels, *offset = scale + channels;
    #pragma omp parallel num_threads(threads)
    {
        long thread = omp_get_thread_num(), count = omp_get_num_threads();
        long first = rows * thread / count, last = rows * (thread + 1) / count;
        float *own = memory + 5 * thread * channels;
        NAME(moments)(x, first, last, channels, own, own + channels, own + 2 * channels);
        #pragma omp barrier
        #pragma omp single
        {
            for (long other = 1; other < count; other++) {
                float *part = memory + 5 * other * channels;
                float before = rows * other / count, more = rows * (other + 1) / count - rows * other / count;
                for (long c = 0; more > 0 && c < channels; c++) {
                    float delta = part[c] - memory[c];
                    memory[channels + c] += part[channels + c] + delta * delta * (before * more / (before + more));
                    memory[c] += delta * (more / (before + more));
                }
            }
            for (long c = 0; c < channels; c++) {
                float variance = memory[channels + c] / rows;
                mean[c] = memory[c];
                inv_std[c] = 1 / sqrtf(variance + eps);
                running_mean[c] += momentum * (mean[c] - running_mean[c]);
                running_var[c] += momentum * (variance * rows / (rows - 1) - running_var[c]);
                scale[c] = weight[c] * inv_std[c];
                offset[c] = bias[c] - mean[c] * scale[c];
            }
        }
        #define CALL(activation) NAME(apply)(activation, x, y, first, last, channels, scale, offset)
        FOR_ACTIVATION(CALL)
        #undef CALL
    }
    free(memory);
    return 0;
}

/* Writes grad_x, grad_weight and grad_bias from grad_y. Returns 0, or 1 if out of memory. */
int NAME(backward)(int activation, const TYPE *x, const TYPE *grad_y, TYPE *grad_x, long rows, long channels,
                   const float *weight, const float *bias, const float *mean, const float *inv_std,
                   float *grad_weight, float *grad_bias, int threads) {
    float *memory = malloc(sizeof(float) * channels * (4L * threads + 4));
    if (!memory) return 1;
    float *scale = memory + 4L * threads * channels, *offset = scale + channels;
    float *grad_slope = offset + channels, *grad_offset = grad_slope + channels;
    for (long c = 0; c < channels; c++) {
        scale[c] = weight[c] * inv_std[c];
        offset[c] = bias[c] - mean[c] * scale[c];
    }
    #pragma omp parallel num_threads(threads)
    {
        long thread = omp_get_thread_num(), count = omp_get_num_threads();
        long first = rows * thread / count, last = rows * (thread + 1) / count;
        float *own = memory + 4 * thread * channels;
        #define CALL(activation) NAME(reduce_grads)(activation, x, grad_y, first, last, channels, scale, offset, mean, \
                                                    own, own + channels, own + 2 * channels)
        FOR_ACTIVATION(CALL)
        #undef CALL
        #pragma omp barrier
        #pragma omp single
        for (long c = 0; c < channels; c++) {
            float sum_grad = 0, sum_grad_dev = 0;
            for (long other = 0; other < count; other++) {
                sum_grad += memory[4 * other * channels + c];
                sum_grad_dev += memory[(4 * other + 1) * channels + c];
            }
            grad_bias[c] = sum_grad;
            grad_weight[c] = sum_grad_dev * inv_std[c];
            grad_slope[c] = scale[c] * inv_std[c] * inv_std[c] * sum_grad_dev / rows;
            grad_offset[c] = scale[c] * sum_grad / rows;
        }
        #define CALL(activation) NAME(input_grad)(activation, x, grad_y, grad_x, first, last, channels, scale, offset, \
                                                  mean, grad_slope, grad_offset)
        FOR_ACTIVATION(CALL)
        #undef CALL
    }
    free(memory);
    return 0;
}

#undef FOR_ACTIVATION

#endif
