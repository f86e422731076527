/* Views on the CPU: crops of a decoded image, and what happens to crops after their geometry.

   Every operation has the bytes of Pillow, as the portable renderer (geometry.py, photometry.py) has them:
   whole numbers where Pillow uses them, else float32 or double with one rounding per operation, so never
   compiled with contracted or reordered floating point. Sizes are checked by native.py, never here. */

#ifndef BELVEDERE_VIEWS_H
#define BELVEDERE_VIEWS_H

#include <stddef.h>
#include <stdint.h>

/* Columns of a row of view parameters, by their numbers in draw.Column. */
enum {
    FLIP = 4,
    JITTER = 5,
    BRIGHTNESS = 6, /* the factors, in the order of the operations' numbers */
    ORDER = 10,
    GRAY = 14,
    BLUR = 15,
    RADIUS = 16,
    SOLARIZE = 17
};

/* The decoded image: rows of `width` pixels of `step` bytes (1 gray, 3 RGB, 4 RGB and one unused). */
typedef struct {
    const uint8_t *pixels;
    int64_t height, width, step, row_bytes;
} Image;

/* Views of one size: boxes [views, 4] (top, left, height, width) to out [views, channels, px, px], whose views
   lie `out_stride` bytes apart. */
typedef struct {
    const double *boxes;
    uint8_t *out;
    int64_t views, px, out_stride;
    int32_t bicubic;
} Job;

/* Crops [views, channels, height, width] with their rows [views, columns]. Changed crops go to `bytes` of the same
   layout, or normalized to `floats` [views, 3, height, width]; one of the two is null. */
typedef struct {
    const uint8_t *crops;
    const double *rows;
    uint8_t *bytes;
    float *floats;
    int64_t views, channels, height, width, columns;
    float factor[3], offset[3];
} Looks;

/* One operation on a whole image, by its number in randaugment.Operation. numbers: its argument; of those that move
   pixels, the map from the new image to the old one. */
typedef struct {
    double numbers[6];
    int32_t kind, bicubic;
} Step;

#define MOST_STEPS 3

/* What happens to the whole image before one strong view is cropped: mirrored, then `count` operations. */
typedef struct {
    Step steps[MOST_STEPS];
    int32_t count, mirror;
    uint8_t fill[4];
} Augmented;

/* One set of instructions the kernels are compiled for. All return 0, or 1 when memory ran out. */
typedef struct {
    int (*crop)(const Image *image, const Job *jobs, int64_t count);
    int (*look)(const Looks *looks);
    int (*strong)(const Image *image, const Job *jobs, const Augmented *plans, int64_t count);
} Kernels;

extern const Kernels belvedere_baseline, belvedere_avx2, belvedere_avx512;

#endif
