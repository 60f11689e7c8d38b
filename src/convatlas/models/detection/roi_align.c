/* RoIAlign (He et al. 2017) of several feature maps at once, and its gradient, as torchvision computes them.

   Maps and their gradients are channels_last (images, height, width, channels); the maps in float or bfloat16. Pooled
   maps are (RoIs, channels, bins). Every sum has one order, that of torchvision's kernel, so the results do not depend
   on the number of threads. Compiled without contraction of products and sums, they equal torchvision's to the bit
   where the number of samples of a bin is a power of two.

   This file includes itself once for each type. roi_align.py compiles and calls it. */

#ifndef TYPE

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../../system/bfloat16.h"

#define SIMD _Pragma("omp simd")

#define BLOCK 64 /* channels that are computed together: the values of their bins stay in the cache */

/* A feature map: data (images, height, width, channels). */
typedef struct { void *data; long height, width; float scale; } map;

/* One sample of a bin: the four pixels around it, as offsets in pixels, and their weights. */
typedef struct { long at[4]; float weight[4]; } sample;

/* The samples of one RoI: bins x (rows x columns) of them. */
typedef struct { sample *samples; long capacity, per_bin; } grid;

/* roi: x1, y1, x2, y2 in pixels of the image. sampling: samples per bin and axis; 0: one per pixel of the map.
   Returns 0, or 1 if out of memory. */
static int place_samples(grid *g, const map *m, const float *roi, int bin_rows, int bin_columns, int sampling,
                         int aligned) {
    float offset = aligned ? 0.5f : 0.0f;
    float left = roi[0] * m->scale - offset, top = roi[1] * m->scale - offset;
    float width = roi[2] * m->scale - offset - left, height = roi[3] * m->scale - offset - top;
    if (!aligned) {
        width = width > 1 ? width : 1;
        height = height > 1 ? height : 1;
    }
    float bin_height = height / bin_rows, bin_width = width / bin_columns;
    long rows = sampling > 0 ? sampling : (long)ceilf(height / bin_rows);
    long columns = sampling > 0 ? sampling : (long)ceilf(width / bin_columns);
    g->per_bin = rows > 0 && columns > 0 ? rows * columns : 0;
    long count = g->per_bin * bin_rows * bin_columns;
    if (count > g->capacity) {
        free(g->samples);
        g->capacity = 0;
        g->samples = malloc(count * sizeof(sample));
        if (!g->samples) return 1;
        g->capacity = count;
    }
    sample *to = g->samples;
    for (int bin_row = 0; g->per_bin && bin_row < bin_rows; bin_row++)
        for (int bin_column = 0; bin_column < bin_columns; bin_column++)
            for (long row = 0; row < rows; row++)
                for (long column = 0; column < columns; column++, to++) {
                    float y = top + bin_row * bin_height + (row + .5f) * bin_height / rows;
                    float x = left + bin_column * bin_width + (column + .5f) * bin_width / columns;
                    memset(to, 0, sizeof *to);
                    if (!(y >= -1 && y <= m->height && x >= -1 && x <= m->width)) {
                        to->at[0] = -1; /* outside of the map */
                        continue;
                    }
                    y = y > 0 ? y : 0;
                    x = x > 0 ? x : 0;
                    long above = (long)y, before = (long)x, below = above + 1, behind = before + 1;
                    if (above >= m->height - 1) y = below = above = m->height - 1;
                    if (before >= m->width - 1) x = behind = before = m->width - 1;
                    float down = y - above, right = x - before, up = 1 - down, to_left = 1 - right;
                    to->at[0] = above * m->width + before;
                    to->at[1] = above * m->width + behind;
                    to->at[2] = below * m->width + before;
                    to->at[3] = below * m->width + behind;
                    to->weight[0] = up * to_left;
                    to->weight[1] = up * right;
                    to->weight[2] = down * to_left;
                    to->weight[3] = down * right;
                }
    return 0;
}

#define TYPE float
#define NAME(what) what##_float32
#define LOAD identity
#define STORE identity
#include "roi_align.c"
#undef TYPE
#undef NAME
#undef LOAD
#undef STORE
#define TYPE uint16_t
#define NAME(what) what##_bfloat16
#define LOAD from_bfloat16
#define STORE to_bfloat16
#include "roi_align.c"

#else

/* pooled (count, channels, bins) of the RoIs (count, 5): index of the image, x1, y1, x2, y2; RoI i is pooled from the
   map levels[i]. Returns 0, or 1 if out of memory. */
int NAME(forward)(const map *maps, const float *rois, const int64_t *levels, TYPE *pooled, long count, long channels,
                  int bin_rows, int bin_columns, int sampling, int aligned, int threads) {
    long bins = (long)bin_rows * bin_columns;
    int failed = 0;
    #pragma omp parallel num_threads(threads)
    {
        grid g = {0};
        float *sums = malloc(bins * BLOCK * sizeof(float));
        int broken = !sums;
        #pragma omp for schedule(dynamic, 8)
        for (long i = 0; i < count; i++) {
            const float *roi = rois + 5 * i;
            const map *m = maps + levels[i];
            if (broken || (broken = place_samples(&g, m, roi + 1, bin_rows, bin_columns, sampling, aligned))) continue;
            const TYPE *image = (const TYPE *)m->data + (long)roi[0] * m->height * m->width * channels;
            float divisor = g.per_bin > 1 ? g.per_bin : 1;
            for (long first = 0; first < channels; first += BLOCK) {
                long size = channels - first < BLOCK ? channels - first : BLOCK;
                const sample *s = g.samples;
                for (long bin = 0; bin < bins; bin++) {
                    float *restrict sum = sums + bin * BLOCK;
                    for (long c = 0; c < size; c++) sum[c] = 0;
                    for (long k = 0; k < g.per_bin; k++, s++) {
                        if (s->at[0] < 0) continue;
                        const TYPE *restrict p = image + s->at[0] * channels + first;
                        const TYPE *restrict q = image + s->at[1] * channels + first;
                        const TYPE *restrict r = image + s->at[2] * channels + first;
                        const TYPE *restrict t = image + s->at[3] * channels + first;
                        float a = s->weight[0], b = s->weight[1], d = s->weight[2], e = s->weight[3];
                        SIMD for (long c = 0; c < size; c++)
                            sum[c] += a * LOAD(p[c]) + b * LOAD(q[c]) + d * LOAD(r[c]) + e * LOAD(t[c]);
                    }
                    SIMD for (long c = 0; c < size; c++) sum[c] /= divisor;
                }
                TYPE *restrict to = pooled + (i * channels + first) * bins;
                for (long c = 0; c < size; c++)
                    for (long bin = 0; bin < bins; bin++) to[c * bins + bin] = STORE(sums[bin * BLOCK + c]);
            }
        }
        if (broken) {
            #pragma omp atomic write
            failed = 1;
        }
        free(sums);
        free(g.samples);
    }
    return failed;
}

/* Adds the gradients of the maps to `maps`, whose data are float in any case; each thread adds those of some channels.
   grad_pooled (count, channels, bins). Returns 0, or 1 if out of memory. */
int NAME(backward)(const map *maps, const float *rois, const int64_t *levels, const TYPE *grad_pooled, long count,
                   long channels, int bin_rows, int bin_columns, int sampling, int aligned, int threads) {
    long bins = (long)bin_rows * bin_columns, blocks = (channels + BLOCK - 1) / BLOCK;
    int failed = 0;
    #pragma omp parallel num_threads(threads)
    {
        grid g = {0};
        float *grads = malloc(bins * BLOCK * sizeof(float));
        int broken = !grads;
        #pragma omp for schedule(dynamic, 1)
        for (long block = 0; block < blocks; block++) {
            long first = block * BLOCK, size = channels - first < BLOCK ? channels - first : BLOCK;
            for (long i = 0; i < count; i++) {
                const float *roi = rois + 5 * i;
                const map *m = maps + levels[i];
                if (broken || (broken = place_samples(&g, m, roi + 1, bin_rows, bin_columns, sampling, aligned)))
                    continue;
                float *image = (float *)m->data + (long)roi[0] * m->height * m->width * channels;
                float share = 1 / (float)(g.per_bin > 1 ? g.per_bin : 1);
                const TYPE *restrict from = grad_pooled + (i * channels + first) * bins;
                for (long c = 0; c < size; c++)
                    for (long bin = 0; bin < bins; bin++) grads[bin * BLOCK + c] = LOAD(from[c * bins + bin]);
                const sample *s = g.samples;
                for (long bin = 0; bin < bins; bin++) {
                    const float *restrict grad = grads + bin * BLOCK;
                    for (long k = 0; k < g.per_bin; k++, s++) {
                        if (s->at[0] < 0) continue;
                        for (int corner = 0; corner < 4; corner++) {
                            float *restrict to = image + s->at[corner] * channels + first;
                            float weight = s->weight[corner];
                            SIMD for (long c = 0; c < size; c++) to[c] += grad[c] * weight * share;
                        }
                    }
                }
            }
        }
        if (broken) {
            #pragma omp atomic write
            failed = 1;
        }
        free(grads);
        free(g.samples);
    }
    return failed;
}

#endif
