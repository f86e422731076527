/* Colour operations on the pixels of one view, several in a row while they are in registers. Channels are floats
   with whole values in 0..255. */

enum { BLEND, SATURATE, TURN, GRAYED };

/* Brightness blends with a base of 0, contrast with the mean gray; the factor of TURN is the shift of hue in
   1/255 of the colour circle, in 0..255. */
typedef struct {
    int kind;
    float factor, base;
} Operation;

typedef struct {
    Floats red, green, blue;
} Colors;

/* base + factor * (x - base), cut to 0..255 and truncated. */
INLINE Floats blended(Floats base, Floats x, Floats factor)
{
    return truncated(least(most((x - base) * factor + base, all(0.0f)), all(255.0f)));
}

/* ITU-R 601 gray in Pillow's 16-bit fixed point; below 2**24, so that floats hold it exactly. */
INLINE Floats luma(Colors x)
{
    Floats sum = x.red * all(19595.0f) + x.green * all(38470.0f) + x.blue * all(7471.0f) + all(32768.0f);
    return truncated(sum * all(1.0f / 65536.0f));
}

/* LANES pixels of the three channels, `plane` bytes apart. */
INLINE Colors load_colors(const uint8_t *from, int64_t plane)
{
    Colors x = {as_floats(load(from)), as_floats(load(from + plane)), as_floats(load(from + 2 * plane))};
    return x;
}

INLINE void store_colors(uint8_t *to, int64_t plane, Colors x)
{
    store(to, as_ints(x.red));
    store(to + plane, as_ints(x.green));
    store(to + 2 * plane, as_ints(x.blue));
}

/* Change n <= BLOCK pixels; n is a multiple of LANES. */
static void change_block(uint8_t *pixels, int64_t plane, int64_t n, const Operation *operations, int count)
{
    for (int k = 0; k < count; k++) {
        Operation operation = operations[k];
        Floats base = all(operation.base), factor = all(operation.factor);
        if (operation.kind == TURN) {
            turn_hue(pixels, pixels + plane, pixels + 2 * plane, n, (uint8_t)operation.factor);
            continue;
        }
        for (int64_t i = 0; i < n; i += LANES) {
            Colors x = load_colors(pixels + i, plane);
            if (operation.kind != BLEND)
                base = luma(x);
            if (operation.kind == GRAYED) {
                x.red = x.green = x.blue = base;
            } else {
                x.red = blended(base, x.red, factor);
                x.green = blended(base, x.green, factor);
                x.blue = blended(base, x.blue, factor);
            }
            store_colors(pixels + i, plane, x);
        }
    }
}

/* Change `plane` pixels of three channels in place, block by block. */
static void change_colors(uint8_t *pixels, int64_t plane, const Operation *operations, int count)
{
    int64_t whole = plane / LANES * LANES, left = plane - whole;
    for (int64_t i = 0; i < whole; i += BLOCK)
        change_block(pixels + i, plane, whole - i < BLOCK ? whole - i : BLOCK, operations, count);
    if (left > 0) {
        uint8_t rest[3 * LANES] = {0};
        for (int c = 0; c < 3; c++)
            memcpy(rest + c * LANES, pixels + c * plane + whole, (size_t)left);
        change_block(rest, LANES, LANES, operations, count);
        for (int c = 0; c < 3; c++)
            memcpy(pixels + c * plane + whole, rest + c * LANES, (size_t)left);
    }
}

/* The sum of the luma of `plane` pixels; plane is at most 2**26, so that a lane's sum stays below 2**31. */
static int64_t sum_of_luma(const uint8_t *pixels, int64_t plane, int64_t channels)
{
    Ints sums = all_ints(0);
    int64_t i = 0, total = 0;
    if (channels == 1) {
        for (; i < plane; i++)
            total += pixels[i];
        return total;
    }
    for (; i + LANES <= plane; i += LANES)
        sums += as_ints(luma(load_colors(pixels + i, plane)));
    for (int lane = 0; lane < LANES; lane++)
        total += sums[lane];
    for (; i < plane; i++)
        total += (pixels[i] * 19595 + pixels[i + plane] * 38470 + pixels[i + 2 * plane] * 7471 + 32768) >> 16;
    return total;
}

/* Blend `plane` pixels of one channel with `base`, in place. */
static void change_gray(uint8_t *pixels, int64_t plane, Operation operation)
{
    int64_t i = 0;
    Floats base = all(operation.base), factor = all(operation.factor);
    for (; i + LANES <= plane; i += LANES)
        store(pixels + i, as_ints(blended(base, as_floats(load(pixels + i)), factor)));
    if (i < plane) {
        uint8_t rest[LANES] = {0};
        memcpy(rest, pixels + i, (size_t)(plane - i));
        store(rest, as_ints(blended(base, as_floats(load(rest)), factor)));
        memcpy(pixels + i, rest, (size_t)(plane - i));
    }
}
