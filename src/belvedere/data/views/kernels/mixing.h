/* Pixels blended with their gray or with their neighbours. */

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BYTE_OF_WORD(c) (24 - 8 * (c))
#else
#define BYTE_OF_WORD(c) (8 * (c))
#endif

/* Blend LANES pixels of four bytes with their gray. */
INLINE void color_lanes(const uint8_t *from, uint8_t *to, Floats factor)
{
    Ints words, level = all_ints(255);
    memcpy(&words, from, sizeof words);
    Colors x = {as_floats(words >> BYTE_OF_WORD(0) & level), as_floats(words >> BYTE_OF_WORD(1) & level),
                as_floats(words >> BYTE_OF_WORD(2) & level)};
    Floats gray = luma(x);
    words = as_ints(blended(gray, x.red, factor)) << BYTE_OF_WORD(0) |
            as_ints(blended(gray, x.green, factor)) << BYTE_OF_WORD(1) |
            as_ints(blended(gray, x.blue, factor)) << BYTE_OF_WORD(2) | level << BYTE_OF_WORD(3);
    memcpy(to, &words, sizeof words);
}

/* Blend each pixel with its gray. */
static void color(const Part *in, uint8_t *out, const Part *wanted, float factor)
{
    for (int64_t y = wanted->top; y < wanted->top + wanted->height; y++, out += 4 * wanted->width) {
        const uint8_t *from = pixel_at(in, y, wanted->left);
        int64_t x = 0;
        for (; x + LANES <= wanted->width; x += LANES)
            color_lanes(from + 4 * x, out + 4 * x, all(factor));
        if (x < wanted->width) {
            uint8_t rest[4 * LANES] = {0};
            memcpy(rest, from + 4 * x, (size_t)(4 * (wanted->width - x)));
            color_lanes(rest, rest, all(factor));
            memcpy(out + 4 * x, rest, (size_t)(4 * (wanted->width - x)));
        }
    }
}

/* Blend n bytes of a row with the mean of the nine around each, of which it counts five times itself. The mean is
   never half way between two levels: 13 is odd. */
static void sharpen_run(const uint8_t *from, ptrdiff_t row, uint8_t *to, int64_t n, float factor)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const uint8_t *at = from + i;
        Ints here = load(at), sum = 5 * here + load(at - 4) + load(at + 4);
        for (int side = -1; side <= 1; side += 2)
            sum += load(at + side * row - 4) + load(at + side * row) + load(at + side * row + 4);
        Ints mean = (2 * sum + 13) * 20165 >> 19; /* by 26, of at most 6643 */
        store(to + i, as_ints(blended(as_floats(mean), as_floats(here), all(factor))));
    }
    for (; i < n; i++) {
        const uint8_t *here = from + i, *above = here - row, *below = here + row;
        int32_t sum = 5 * here[0] + here[-4] + here[4];
        sum += above[-4] + above[0] + above[4] + below[-4] + below[0] + below[4];
        to[i] = blended_level((float)((2 * sum + 13) / 26), (float)here[0], factor);
    }
}

/* Pixels at the edge of the image stay as they are. */
static void sharpen(const Part *in, uint8_t *out, const Part *wanted, int64_t height, int64_t width, float factor)
{
    int64_t right = wanted->left + wanted->width, first = wanted->left > 0 ? 0 : 1;
    int64_t inner = wanted->width - first - (right < width ? 0 : 1);
    for (int64_t y = wanted->top; y < wanted->top + wanted->height; y++, out += 4 * wanted->width) {
        const uint8_t *from = pixel_at(in, y, wanted->left);
        memcpy(out, from, (size_t)(4 * wanted->width));
        if (y > 0 && y < height - 1 && inner > 0)
            sharpen_run(from + 4 * first, in->row, out + 4 * first, 4 * inner, factor);
    }
}
