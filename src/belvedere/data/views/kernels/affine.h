/* Images turned, sheared and moved as Pillow does it: each pixel is taken from a place in the old image, between
   the four or sixteen pixels around it, in double precision, and cut to a whole number. */

typedef double Quad __attribute__((vector_size(32)));
typedef int32_t QuadInts __attribute__((vector_size(16)));

/* A part of an image [height, width], pixels of four bytes, rows `row` bytes apart: `pixels` is its first one, `top`
   and `left` say where in the image that is. */
typedef struct {
    const uint8_t *pixels;
    int64_t top, left, height, width;
    ptrdiff_t row;
} Part;

INLINE const uint8_t *pixel_at(const Part *part, int64_t y, int64_t x)
{
    return part->pixels + (y - part->top) * part->row + 4 * (x - part->left);
}

INLINE Quad quad(const uint8_t *pixel)
{
#if defined(LANES_AVX512) || defined(LANES_AVX2)
    int32_t word;
    memcpy(&word, pixel, 4);
    return (Quad)_mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(word)));
#else
    return (Quad){pixel[0], pixel[1], pixel[2], pixel[3]};
#endif
}

/* Cut to 0..255 and towards zero. */
INLINE void store_quad(uint8_t *to, Quad x)
{
#if defined(LANES_AVX512) || defined(LANES_AVX2)
    __m128i words = _mm256_cvttpd_epi32((__m256d)x);
    words = _mm_packus_epi32(words, words);
    int32_t word = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    memcpy(to, &word, 4);
#else
    for (int c = 0; c < 4; c++)
        to[c] = x[c] <= 0.0 ? 0 : x[c] >= 255.0 ? 255 : (uint8_t)x[c];
#endif
}

INLINE Quad cubic_between(Quad a, Quad b, Quad c, Quad d, double at)
{
    Quad one = c - a, two = 2.0 * (a - b) + c - d, three = b - a - c + d;
    return b + at * (one + at * (two + at * three));
}

INLINE int64_t inside(int64_t i, int64_t last) { return i < 0 ? 0 : i > last ? last : i; }

INLINE Quad cubic_row(const uint8_t *row, const ptrdiff_t columns[4], double at)
{
    if (at == 0.0) /* as when an image is moved up or down: the other pixels weigh nothing */
        return quad(row + columns[1]);
    return cubic_between(quad(row + columns[0]), quad(row + columns[1]), quad(row + columns[2]),
                         quad(row + columns[3]), at);
}

/* The pixel at (x, y), which counts from the centre of the first pixel; last_x, last_y: of the whole image. */
INLINE Quad bicubic_at(const Part *in, double x, double y, int64_t last_x, int64_t last_y)
{
    int64_t left = (int64_t)__builtin_floor(x), top = (int64_t)__builtin_floor(y);
    double across = x - (double)left, down = y - (double)top;
    ptrdiff_t columns[4];
    for (int i = 0; i < 4; i++)
        columns[i] = 4 * inside(left - 1 + i, last_x);
    const uint8_t *first = pixel_at(in, 0, 0);
    Quad middle = cubic_row(first + inside(top, last_y) * in->row, columns, across);
    if (down == 0.0)
        return middle;
    Quad above = cubic_row(first + inside(top - 1, last_y) * in->row, columns, across);
    Quad below = cubic_row(first + inside(top + 1, last_y) * in->row, columns, across);
    Quad last = cubic_row(first + inside(top + 2, last_y) * in->row, columns, across);
    return cubic_between(above, middle, below, last, down);
}

INLINE Quad bilinear_at(const Part *in, double x, double y, int64_t last_x, int64_t last_y)
{
    int64_t left = (int64_t)__builtin_floor(x), top = (int64_t)__builtin_floor(y);
    double across = x - (double)left, down = y - (double)top;
    ptrdiff_t one = 4 * inside(left, last_x), other = 4 * inside(left + 1, last_x);
    const uint8_t *first = pixel_at(in, 0, 0);
    const uint8_t *upper = first + inside(top, last_y) * in->row, *lower = first + inside(top + 1, last_y) * in->row;
    Quad above = quad(upper + one), below = quad(lower + one);
    above = above + (quad(upper + other) - above) * across;
    below = below + (quad(lower + other) - below) * across;
    return above + (below - above) * down;
}

INLINE void move_pixels(const Part *in, uint8_t *out, const Part *wanted, const double m[6], int64_t height,
                        int64_t width, const uint8_t fill[4], const int bicubic)
{
    for (int64_t y = wanted->top; y < wanted->top + wanted->height; y++) {
        double from_y = (double)y + 0.5;
        for (int64_t x = wanted->left; x < wanted->left + wanted->width; x++, out += 4) {
            double from_x = (double)x + 0.5;
            double at_x = m[0] * from_x + m[1] * from_y + m[2], at_y = m[3] * from_x + m[4] * from_y + m[5];
            if (at_x < 0.0 || at_x >= (double)width || at_y < 0.0 || at_y >= (double)height) {
                memcpy(out, fill, 4);
                continue;
            }
            at_x -= 0.5;
            at_y -= 0.5;
            if (bicubic)
                store_quad(out, bicubic_at(in, at_x, at_y, width - 1, height - 1));
            else
                store_quad(out, bilinear_at(in, at_x, at_y, width - 1, height - 1));
        }
    }
}

/* What of the old image [height, width] the part `wanted` of the new one is taken from, with a margin. */
static Part source_of(const Part *wanted, const double m[6], int64_t height, int64_t width)
{
    double low_x = 1e300, low_y = 1e300, high_x = -1e300, high_y = -1e300;
    for (int corner = 0; corner < 4; corner++) {
        double x = (double)wanted->left + (corner & 1 ? (double)wanted->width : 0.0);
        double y = (double)wanted->top + (corner & 2 ? (double)wanted->height : 0.0);
        double at_x = m[0] * x + m[1] * y + m[2], at_y = m[3] * x + m[4] * y + m[5];
        low_x = at_x < low_x ? at_x : low_x;
        low_y = at_y < low_y ? at_y : low_y;
        high_x = at_x > high_x ? at_x : high_x;
        high_y = at_y > high_y ? at_y : high_y;
    }
    int64_t left = inside((int64_t)__builtin_floor(low_x) - 3, width - 1);
    int64_t top = inside((int64_t)__builtin_floor(low_y) - 3, height - 1);
    int64_t right = inside((int64_t)__builtin_floor(high_x) + 3, width - 1);
    int64_t bottom = inside((int64_t)__builtin_floor(high_y) + 3, height - 1);
    return (Part){.top = top, .left = left, .height = bottom - top + 1, .width = right - left + 1};
}
