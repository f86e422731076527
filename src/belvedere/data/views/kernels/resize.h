/* Crop and resize with antialiasing, across and then down, in Pillow's fixed point of 22 bits.

   The decoded image is transposed once for all its views: then every weight of the pass across meets a run of
   neighbouring rows, as every weight of the pass down meets a run of neighbouring columns. */

#define BITS 22

/* Weights from `length` pixels (a box of the line between in0 and in1) to px: for output i, count[i] weights from
   pixel first[i] on; weight t of output i is weights[t * px + i]. */
typedef struct {
    int32_t *first, *count, *weights;
    double *scratch; /* [2, px]: centres, sums of weights */
} Axis;

INLINE double triangle(double x) { return 1.0 - x > 0.0 ? 1.0 - x : 0.0; }

INLINE double cubic(double x)
{
    double near = (1.5 * x - 2.5) * x * x + 1.0, far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5;
    return x < 1.0 ? near : x < 2.0 ? far : 0.0;
}

INLINE void weigh(const Axis *axis, double *raw, int64_t px, int64_t taps, double shrink, int bicubic)
{
    const int32_t *restrict first = axis->first, *restrict count = axis->count;
    const double *restrict center = axis->scratch;
    double *restrict sum = axis->scratch + px;
    for (int64_t i = 0; i < px; i++)
        sum[i] = 0.0;
    for (int64_t t = 0; t < taps; t++) {
        double *restrict one = raw + t * px;
        for (int64_t i = 0; i < px; i++) {
            double x = ((double)(first[i] + (int32_t)t) - center[i] + 0.5) * shrink;
            x = x < 0.0 ? -x : x;
            double w = bicubic ? cubic(x) : triangle(x);
            w = t < count[i] ? w : 0.0;
            one[i] = w;
            sum[i] += w;
        }
    }
    for (int64_t t = 0; t < taps; t++) {
        const double *restrict one = raw + t * px;
        int32_t *restrict weights = axis->weights + t * px;
        for (int64_t i = 0; i < px; i++) {
            double scaled = one[i] / sum[i] * (double)(1 << BITS);
            weights[i] = (int32_t)(scaled < 0.0 ? scaled - 0.5 : scaled + 0.5);
        }
    }
}

/* Most weights of one output when `length` pixels become px. */
INLINE int64_t most_taps(double length, int64_t px, int bicubic)
{
    double scale = length / (double)px;
    double support = (bicubic ? 2.0 : 1.0) * (scale > 1.0 ? scale : 1.0);
    return 2 * (int64_t)(support + 1.0) + 1;
}

/* Fill `axis` for px outputs from the pixels in0..in1 of a line of `length`; raw holds [taps, px]. */
static void axis_weights(const Axis *axis, double *raw, float in0, float in1, int64_t length, int64_t px,
                         int bicubic)
{
    double scale = (double)(in1 - in0) / (double)px; /* the difference in single precision, as in Pillow */
    double stretch = scale > 1.0 ? scale : 1.0, support = (bicubic ? 2.0 : 1.0) * stretch;
    int64_t taps = 0;
    for (int64_t i = 0; i < px; i++) {
        double center = (double)in0 + ((double)i + 0.5) * scale;
        int64_t first = (int64_t)(center - support + 0.5), last = (int64_t)(center + support + 0.5);
        first = first < 0 ? 0 : first;
        last = last > length ? length : last;
        axis->scratch[i] = center;
        axis->first[i] = (int32_t)first;
        axis->count[i] = (int32_t)(last - first);
        taps = last - first > taps ? last - first : taps;
    }
    if (bicubic)
        weigh(axis, raw, px, taps, 1.0 / stretch, 1);
    else
        weigh(axis, raw, px, taps, 1.0 / stretch, 0);
}

/* vectors * LANES sums of `count` runs of bytes that lie `step` apart, rounded and cut to 0..255. */
INLINE void weighted_run(const uint8_t *from, ptrdiff_t step, const int32_t *weights, ptrdiff_t weight_step,
                         int32_t count, uint8_t *to, const int vectors)
{
    Ints sums[4];
    for (int v = 0; v < vectors; v++)
        sums[v] = all_ints(1 << (BITS - 1));
    for (int32_t t = 0; t < count; t++) {
        Ints weight = all_ints(weights[t * weight_step]);
        for (int v = 0; v < vectors; v++)
            sums[v] += load(from + t * step + v * LANES) * weight;
    }
    for (int v = 0; v < vectors; v++)
        store(to + v * LANES, least_ints(most_ints(sums[v] >> BITS, all_ints(0)), all_ints(255)));
}

/* n sums, rounded up to LANES. */
INLINE void weighted(const uint8_t *from, ptrdiff_t step, const int32_t *weights, ptrdiff_t weight_step,
                     int32_t count, uint8_t *to, int64_t n)
{
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        weighted_run(from + i, step, weights, weight_step, count, to + i, 4);
    for (; i + 2 * LANES <= n; i += 2 * LANES)
        weighted_run(from + i, step, weights, weight_step, count, to + i, 2);
    for (; i < n; i += LANES)
        weighted_run(from + i, step, weights, weight_step, count, to + i, 1);
}

/* Lines across: `columns` points at the box's first pixel of one channel in the transposed image, whose pixels lie
   `step` apart; to `wide` [height, px] with rows `pitch` apart. height and pitch are multiples of 16; lines has
   room for [16, height]. */
static void resize_across(const uint8_t *columns, ptrdiff_t step, const Axis *axis, int64_t height, int64_t px,
                          uint8_t *lines, uint8_t *wide, int64_t pitch)
{
    for (int64_t x = 0; x < px; x += 16) {
        int64_t outputs = px - x < 16 ? px - x : 16;
        for (int64_t i = 0; i < outputs; i++)
            weighted(columns + axis->first[x + i] * step, step, axis->weights + x + i, px, axis->count[x + i],
                     lines + i * height, height);
        for (int64_t y = 0; y < height; y += 16)
            transpose16(lines + y, height, wide + y * pitch + x, pitch);
    }
}

/* Down: wide [height, px] to out [px, px]. */
static void resize_down(const uint8_t *wide, int64_t pitch, const Axis *axis, int64_t px, uint8_t *out)
{
    int64_t whole = px / LANES * LANES;
    for (int64_t y = 0; y < px; y++) {
        const uint8_t *from = wide + axis->first[y] * pitch;
        const int32_t *weights = axis->weights + y;
        uint8_t *to = out + y * px;
        weighted(from, pitch, weights, px, axis->count[y], to, whole);
        if (whole < px) {
            uint8_t rest[LANES];
            weighted(from + whole, pitch, weights, px, axis->count[y], rest, LANES);
            memcpy(to + whole, rest, (size_t)(px - whole));
        }
    }
}

/* A box in whole pixels around a fractional one, and where the box lies in it. */
typedef struct {
    int64_t start, length;
    float in0, in1;
} Span;

static Span span(double start, double length, int64_t limit)
{
    Span result;
    double end = start + length;
    int64_t last = (int64_t)end;
    last += (double)last < end;
    last = last > limit ? limit : last;
    result.start = (int64_t)start;
    result.length = last - result.start;
    result.in0 = (float)(start - (double)result.start);
    result.in1 = (float)(end - (double)result.start);
    return result;
}

typedef struct {
    uint8_t *image; /* transposed: [width * step, stride] */
    int64_t stride, top, left;
    uint8_t *lines, *wide;
    Axis axis;
    double *raw;
} Scratch;

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

static void crop_view(const Image *image, const Job *job, int64_t view, const Scratch *scratch)
{
    const double *box = job->boxes + 4 * view;
    Span down = span(box[0], box[2], image->height), across = span(box[1], box[3], image->width);
    int64_t px = job->px, channels = image->step == 1 ? 1 : 3;
    int64_t pitch = round_up(px, 16), height = round_up(down.length, 16);
    const uint8_t *corner =
        scratch->image + (across.start - scratch->left) * image->step * scratch->stride + down.start - scratch->top;
    axis_weights(&scratch->axis, scratch->raw, across.in0, across.in1, across.length, px, job->bicubic);
    for (int64_t c = 0; c < channels; c++)
        resize_across(corner + c * scratch->stride, image->step * scratch->stride, &scratch->axis, height, px,
                      scratch->lines, scratch->wide + c * height * pitch, pitch);
    axis_weights(&scratch->axis, scratch->raw, down.in0, down.in1, down.length, px, job->bicubic);
    for (int64_t c = 0; c < channels; c++)
        resize_down(scratch->wide + c * height * pitch, pitch, &scratch->axis, px,
                    job->out + view * job->out_stride + c * px * px);
}

/* The smallest rectangle with all boxes, and the sizes of scratch memory. */
typedef struct {
    int64_t top, left, bottom, right, wide, weights, px;
} Needs;

static Needs needs(const Image *image, const Job *jobs, int64_t count)
{
    Needs n = {image->height, image->width, 0, 0, 0, 0, 0};
    for (int64_t j = 0; j < count; j++) {
        int64_t px = jobs[j].px, pitch = round_up(px, 16);
        for (int64_t v = 0; v < jobs[j].views; v++) {
            const double *box = jobs[j].boxes + 4 * v;
            Span down = span(box[0], box[2], image->height), across = span(box[1], box[3], image->width);
            double longer = box[2] > box[3] ? box[2] : box[3];
            int64_t wide = 3 * round_up(down.length, 16) * pitch;
            int64_t weights = most_taps(longer, px, jobs[j].bicubic) * px;
            n.top = down.start < n.top ? down.start : n.top;
            n.left = across.start < n.left ? across.start : n.left;
            n.bottom = down.start + down.length > n.bottom ? down.start + down.length : n.bottom;
            n.right = across.start + across.length > n.right ? across.start + across.length : n.right;
            n.wide = wide > n.wide ? wide : n.wide;
            n.weights = weights > n.weights ? weights : n.weights;
            n.px = px > n.px ? px : n.px;
        }
    }
    return n;
}

/* All views of one image. Returns 1 when memory ran out. */
static int crop_views(const Image *image, const Job *jobs, int64_t count)
{
    Needs n = needs(image, jobs, count);
    if (n.bottom == 0)
        return 0;
    int64_t width = (n.right - n.left) * image->step, height = n.bottom - n.top;
    /* a run of rows may begin at the last row and is then 16 long; an odd number of cache lines between columns,
       or they would all fall on the same few places of the cache */
    int64_t stride = round_up(height + 16, 64);
    stride += stride / 64 % 2 ? 0 : 64;
    int64_t bytes = width * stride + n.wide + 16 * stride + (n.weights + 2 * n.px) * 4 + (n.weights + 2 * n.px) * 8 + 4 * 64;
    uint8_t *memory = malloc((size_t)bytes);
    if (!memory)
        return 1;
    Scratch scratch = {.stride = stride, .top = n.top, .left = n.left};
    scratch.raw = (double *)memory;
    scratch.axis.scratch = scratch.raw + n.weights;
    scratch.axis.weights = (int32_t *)(scratch.axis.scratch + 2 * n.px);
    scratch.axis.first = scratch.axis.weights + n.weights;
    scratch.axis.count = scratch.axis.first + n.px;
    scratch.wide = (uint8_t *)(scratch.axis.count + n.px);
    scratch.lines = scratch.wide + n.wide;
    scratch.image = scratch.lines + 16 * stride;
    scratch.image += (64 - (uintptr_t)scratch.image % 64) % 64;
    transpose(image->pixels + n.top * image->row_bytes + n.left * image->step, height, width, image->row_bytes,
              scratch.image, stride);
    for (int64_t j = 0; j < count; j++)
        for (int64_t v = 0; v < jobs[j].views; v++)
            crop_view(image, &jobs[j], v, &scratch);
    free(memory);
    return 0;
}
