/* Pillow's Gaussian blur: three passes of a box with fractional edges, across and then down.

   A pass weighs the sum of the 2 * whole + 1 pixels around each one by `inner`, and the two beyond them by
   `outer`, in fixed point of 24 bits; edges are replicated. */

#define BLUR_BITS 24
#define STRIP 32   /* columns, or lines, at a time */
#define WIDEST 63  /* up to here a sum of pixels fits 15 bits */

typedef struct {
    int64_t whole;
    int32_t inner, outer;
} Box;

static Box blur_box(double radius_)
{
    float radius = (float)radius_, variance = radius * radius / 3.0f;
    float length = (float)__builtin_sqrt(12.0 * (double)variance + 1.0);
    float whole = (float)(int64_t)(((double)length - 1.0) / 2.0);
    float edge = (2.0f * whole + 1.0f) * (whole * (whole + 1.0f) - 3.0f * variance);
    float half = whole + edge / (6.0f * (variance - (whole + 1.0f) * (whole + 1.0f)));
    Box box = {(int64_t)half, (int32_t)((float)(1 << BLUR_BITS) / (2.0f * half + 1.0f)), 0};
    box.outer = (int32_t)(((1 << BLUR_BITS) - (2 * box.whole + 1) * box.inner) >> 1);
    return box;
}

/* out[i] from the pixels that lie `step` apart around in[i]; n is a multiple of STRIP. */
INLINE void box_sums(const uint16_t *restrict in, ptrdiff_t step, uint16_t *restrict out, int64_t n, Box box,
                     const int64_t whole)
{
    ptrdiff_t end = (whole + 1) * step;
#if defined(LANES_AVX512)
    __m512i low = _mm512_set1_epi32((box.inner & 0x7fff) | (box.outer & 0x7fff) << 16);
    __m512i high = _mm512_set1_epi32(((box.inner >> 15) & 0xffff) | (int32_t)((uint32_t)(box.outer >> 15) << 16));
    __m512i half = _mm512_set1_epi32(1 << (BLUR_BITS - 1));
    for (int64_t i = 0; i < n; i += 32) {
        __m512i sum = _mm512_loadu_si512(in + i);
        for (int64_t k = 1; k <= whole; k++) {
            sum = _mm512_add_epi16(sum, _mm512_loadu_si512(in + i - k * step));
            sum = _mm512_add_epi16(sum, _mm512_loadu_si512(in + i + k * step));
        }
        __m512i ends = _mm512_add_epi16(_mm512_loadu_si512(in + i - end), _mm512_loadu_si512(in + i + end));
        __m512i a = _mm512_unpacklo_epi16(sum, ends), b = _mm512_unpackhi_epi16(sum, ends);
        __m512i a_low = _mm512_add_epi32(_mm512_madd_epi16(a, low), half);
        __m512i b_low = _mm512_add_epi32(_mm512_madd_epi16(b, low), half);
        a = _mm512_add_epi32(_mm512_slli_epi32(_mm512_madd_epi16(a, high), 15), a_low);
        b = _mm512_add_epi32(_mm512_slli_epi32(_mm512_madd_epi16(b, high), 15), b_low);
        a = _mm512_packus_epi32(_mm512_srli_epi32(a, BLUR_BITS), _mm512_srli_epi32(b, BLUR_BITS));
        _mm512_storeu_si512(out + i, a);
    }
#elif defined(LANES_AVX2)
    __m256i low = _mm256_set1_epi32((box.inner & 0x7fff) | (box.outer & 0x7fff) << 16);
    __m256i high = _mm256_set1_epi32(((box.inner >> 15) & 0xffff) | (int32_t)((uint32_t)(box.outer >> 15) << 16));
    __m256i half = _mm256_set1_epi32(1 << (BLUR_BITS - 1));
    for (int64_t i = 0; i < n; i += 16) {
        __m256i sum = _mm256_loadu_si256((const __m256i *)(in + i));
        for (int64_t k = 1; k <= whole; k++) {
            sum = _mm256_add_epi16(sum, _mm256_loadu_si256((const __m256i *)(in + i - k * step)));
            sum = _mm256_add_epi16(sum, _mm256_loadu_si256((const __m256i *)(in + i + k * step)));
        }
        __m256i ends = _mm256_add_epi16(_mm256_loadu_si256((const __m256i *)(in + i - end)),
                                        _mm256_loadu_si256((const __m256i *)(in + i + end)));
        __m256i a = _mm256_unpacklo_epi16(sum, ends), b = _mm256_unpackhi_epi16(sum, ends);
        __m256i a_low = _mm256_add_epi32(_mm256_madd_epi16(a, low), half);
        __m256i b_low = _mm256_add_epi32(_mm256_madd_epi16(b, low), half);
        a = _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(a, high), 15), a_low);
        b = _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(b, high), 15), b_low);
        a = _mm256_packus_epi32(_mm256_srli_epi32(a, BLUR_BITS), _mm256_srli_epi32(b, BLUR_BITS));
        _mm256_storeu_si256((__m256i *)(out + i), a);
    }
#else
    for (int64_t i = 0; i < n; i++) {
        uint32_t sum = in[i];
        for (int64_t k = 1; k <= whole; k++)
            sum += (uint32_t)in[i - k * step] + in[i + k * step];
        uint32_t ends = (uint32_t)in[i - end] + in[i + end];
        out[i] = (uint16_t)((sum * (uint32_t)box.inner + ends * (uint32_t)box.outer + (1u << (BLUR_BITS - 1))) >>
                            BLUR_BITS);
    }
#endif
}

static void box_pass(const uint16_t *in, ptrdiff_t step, uint16_t *out, int64_t n, Box box)
{
    if (box.whole == 0)
        box_sums(in, step, out, n, box, 0);
    else if (box.whole == 1)
        box_sums(in, step, out, n, box, 1);
    else
        box_sums(in, step, out, n, box, box.whole);
}

/* Replicate the ends of a strip [pad + length + pad, STRIP] of lines into its padding. */
static void pad_strip(uint16_t *strip, int64_t length, int64_t pad)
{
    uint16_t *last = strip + (pad + length - 1) * STRIP;
    for (int64_t i = 0; i < pad; i++) {
        memcpy(strip + i * STRIP, strip + pad * STRIP, STRIP * sizeof *strip);
        memcpy(last + (i + 1) * STRIP, last, STRIP * sizeof *strip);
    }
}

/* Three passes down a strip in `one`; the result is in `other`. */
static void blur_strip(uint16_t *one, uint16_t *other, int64_t length, Box box)
{
    int64_t pad = box.whole + 1;
    for (int pass = 0; pass < 3; pass++) {
        pad_strip(one, length, pad);
        box_pass(one + pad * STRIP, STRIP, other + pad * STRIP, length * STRIP, box);
        uint16_t *swap = one;
        one = other;
        other = swap;
    }
}

/* Blur the columns of one channel. */
static void blur_down(uint8_t *pixels, int64_t height, int64_t width, uint16_t *strips, Box box)
{
    int64_t pad = box.whole + 1;
    uint16_t *other = strips + (height + 2 * pad) * STRIP;
    for (int64_t x = 0; x < width; x += STRIP) {
        int64_t columns = width - x < STRIP ? width - x : STRIP;
        for (int64_t y = 0; y < height; y++) {
            const uint8_t *restrict from = pixels + y * width + x;
            uint16_t *restrict to = strips + (pad + y) * STRIP;
            if (columns == STRIP)
                for (int i = 0; i < STRIP; i++)
                    to[i] = from[i];
            else
                for (int i = 0; i < STRIP; i++)
                    to[i] = i < columns ? from[i] : 0;
        }
        blur_strip(strips, other, height, box);
        for (int64_t y = 0; y < height; y++) {
            const uint16_t *restrict from = other + (pad + y) * STRIP;
            uint8_t *restrict to = pixels + y * width + x;
            if (columns == STRIP)
                for (int i = 0; i < STRIP; i++)
                    to[i] = (uint8_t)from[i];
            else
                for (int64_t i = 0; i < columns; i++)
                    to[i] = (uint8_t)from[i];
        }
    }
}

#define LINES 8

/* Blur the rows of one channel, a few at a time, side by side in one padded line. */
static void blur_across(uint8_t *pixels, int64_t height, int64_t width, uint16_t *lines, Box box)
{
    int64_t pad = box.whole + 1, pitch = width + 2 * pad;
    uint16_t *one, *other;
    for (int64_t y = 0; y < height; y += LINES) {
        int64_t rows = height - y < LINES ? height - y : LINES;
        one = lines + STRIP;
        other = one + round_up(LINES * pitch, STRIP) + 3 * STRIP + pad;
        for (int64_t r = 0; r < rows; r++) {
            const uint8_t *restrict from = pixels + (y + r) * width;
            uint16_t *restrict to = one + r * pitch + pad;
            for (int64_t i = 0; i < width; i++)
                to[i] = from[i];
        }
        for (int pass = 0; pass < 3; pass++) {
            for (int64_t r = 0; r < rows; r++) {
                uint16_t *line = one + r * pitch;
                for (int64_t i = 0; i < pad; i++) {
                    line[i] = line[pad];
                    line[pad + width + i] = line[pad + width - 1];
                }
            }
            box_pass(one + pad, 1, other + pad, round_up(rows * pitch - 2 * pad, STRIP), box);
            uint16_t *swap = one;
            one = other;
            other = swap;
        }
        for (int64_t r = 0; r < rows; r++) {
            const uint16_t *restrict from = one + r * pitch + pad;
            uint8_t *restrict to = pixels + (y + r) * width;
            for (int64_t i = 0; i < width; i++)
                to[i] = (uint8_t)from[i];
        }
    }
}

/* The sums of wide boxes, kept up from pixel to pixel: one line of pixels that lie `step` apart. */
static void blur_line(uint8_t *pixels, ptrdiff_t step, int64_t length, uint16_t *line, Box box)
{
    int64_t last = length - 1, whole = box.whole;
    for (int pass = 0; pass < 3; pass++) {
        for (int64_t i = 0; i < length; i++)
            line[i] = pixels[i * step];
        int64_t reach = whole < last ? whole : last;
        uint32_t sum = (uint32_t)(whole + 1) * line[0] + (uint32_t)(whole - reach) * line[last];
        for (int64_t i = 1; i <= reach; i++)
            sum += line[i];
        for (int64_t i = 0; i < length; i++) {
            uint32_t before = line[i > whole ? i - whole - 1 : 0], after = line[i + whole < last ? i + whole + 1 : last];
            uint32_t weighed = sum * (uint32_t)box.inner + (before + after) * (uint32_t)box.outer;
            pixels[i * step] = (uint8_t)((weighed + (1u << (BLUR_BITS - 1))) >> BLUR_BITS);
            sum += after - line[i >= whole ? i - whole : 0];
        }
    }
}

/* The 16-bit numbers that `blur` needs for channels of this size. */
static int64_t blur_memory(int64_t height, int64_t width, Box box)
{
    int64_t pad = box.whole + 1;
    if (box.whole > WIDEST)
        return height > width ? height : width;
    int64_t down = 2 * (height + 2 * pad) * STRIP;
    int64_t across = 2 * (round_up(LINES * (width + 2 * pad), STRIP) + 4 * STRIP + 2 * pad);
    return down > across ? down : across;
}

/* Blur one channel in place. */
static void blur(uint8_t *pixels, int64_t height, int64_t width, uint16_t *memory, Box box)
{
    if (box.whole <= WIDEST) {
        blur_across(pixels, height, width, memory, box);
        blur_down(pixels, height, width, memory, box);
        return;
    }
    for (int64_t y = 0; y < height; y++)
        blur_line(pixels + y * width, 1, width, memory, box);
    for (int64_t x = 0; x < width; x++)
        blur_line(pixels + x, width, height, memory, box);
}
