/* The hue of pixels turned, through Pillow's 8-bit HSV and back.

   Pillow computes in floating point and truncates. Its results are those of exact arithmetic but for some of the
   points where the exact hue is a whole number, where rounding errors take one away: `unlucky` knows them.
   tests/unit/test_native.py goes through all colours. So most of the work is on bytes, many at a time; a
   quotient that is within 1/1000 of a whole number is one, as the denominators are below 511. */

#define BLOCK 512 /* pixels at a time: all numbers of a block stay in the nearest cache */

/* Of each pixel: the highest channel, its distance to the lowest and the middle one's distance to the lowest.
   Hue is base + 42.5 * rise / spread, or base - that for `falls`; `sixth` is a bit for the part of the circle. */
typedef struct {
    uint8_t high[BLOCK], spread[BLOCK], rise[BLOCK], base[BLOCK], falls[BLOCK], sixth[BLOCK];
    uint8_t floor[BLOCK], ceil[BLOCK], saturation[BLOCK], slope[BLOCK], odd[BLOCK], third[BLOCK];
    uint8_t mixed[BLOCK], least[BLOCK];
} HueBlock;

/* As a byte that selects: loops without branches become vectors. */
INLINE uint8_t when(int condition) { return condition ? 255 : 0; }

INLINE uint8_t either(uint8_t which, uint8_t a, uint8_t b) { return (uint8_t)((which & a) | (~which & b)); }

static void sort_channels(const uint8_t *restrict red, const uint8_t *restrict green, const uint8_t *restrict blue,
                          int64_t n, HueBlock *restrict b)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t x = red[i], y = green[i], z = blue[i];
        uint8_t xy_high = x > y ? x : y, xy_low = x > y ? y : x;
        uint8_t high = xy_high > z ? xy_high : z, low = xy_low < z ? xy_low : z;
        uint8_t middle = (uint8_t)(x + y + z - high - low);
        uint8_t is_red = when(x == high), is_green = (uint8_t)(when(y == high) & ~is_red);
        uint8_t red_low = when(x == low), blue_low = when(z == low);
        uint8_t is_blue = (uint8_t)~(is_red | is_green);
        uint8_t falls = (uint8_t)((is_red & ~blue_low) | (is_green & blue_low) | (is_blue & red_low));
        b->high[i] = high;
        b->spread[i] = (uint8_t)(high - low);
        b->rise[i] = (uint8_t)(middle - low);
        b->base[i] = (uint8_t)((is_red & falls) | (is_green & 85) | (is_blue & 170));
        b->falls[i] = falls;
        b->sixth[i] = (uint8_t)((is_red & ~falls & 1) | (is_green & ~falls & 2) | (is_blue & falls & 4) |
                                (is_blue & ~falls & 8));
    }
}

static void divide_spreads(int64_t n, HueBlock *b)
{
    for (int64_t i = 0; i < n; i += LANES) {
        Floats spread = as_floats(load(b->spread + i)), high = as_floats(load(b->high + i));
        Floats rise = as_floats(load(b->rise + i)), one = all(1.0f), tiny = all(1e-3f);
        /* one division for both quotients */
        Floats inverse = one / (most(spread, one) * most(high, one));
        Floats part = rise * all(42.5f) * most(high, one) * inverse;
        Floats saturation = spread * spread * all(255.0f) * inverse;
        store(b->floor + i, as_ints(part + tiny));
        store(b->ceil + i, as_ints(part + (one - tiny)));
        store(b->saturation + i, as_ints(saturation + tiny));
    }
}

/* 1 where the hue is a whole number, `part` away from its base, and Pillow's is one less. */
INLINE uint8_t unlucky(uint8_t part, uint8_t sixth)
{
    uint8_t rest_1 = when((part & 3) == 1), rest_3 = when((part & 3) == 3);
    uint8_t first = 1 & when(part >= 1) & when(part <= 31);
    uint8_t second = 2 & rest_3 & when(part <= 19);
    uint8_t third = 4 & (rest_1 | (rest_3 & when(part >= 23)));
    uint8_t fourth = 8 & (rest_3 | when(part == 6) | when(part == 14));
    return 1 & when(((first | second | third | fourth) & sixth) != 0);
}

static void place_hues(int64_t n, uint8_t shift, HueBlock *restrict b)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t floor = b->floor[i], ceil = b->ceil[i], base = b->base[i];
        uint8_t hue = either(b->falls[i], (uint8_t)(base - ceil), (uint8_t)(base + floor));
        hue = (uint8_t)(hue - (when(floor == ceil) & unlucky(floor, b->sixth[i])) + shift);
        uint8_t second = when(hue >= 85), third = when(hue >= 170);
        uint8_t within = (uint8_t)(hue - (second & 85) - (third & 85)), twice = (uint8_t)(within + within);
        uint8_t odd = when(within >= 43);
        b->third[i] = (uint8_t)((second & 1) + (third & 1));
        b->odd[i] = odd;
        b->slope[i] = either(odd, (uint8_t)(twice - 85), (uint8_t)(85 - twice)); /* of 85 */
    }
    for (int64_t i = 0; i < n; i++) {
        uint16_t product = (uint16_t)(b->high[i] * (uint16_t)(255 - b->saturation[i]) + 128);
        b->least[i] = (uint8_t)((uint16_t)(product + (product >> 8)) >> 8); /* product / 255, rounded */
    }
}

static void mix_channels(int64_t n, HueBlock *b)
{
    for (int64_t i = 0; i < n; i += LANES) {
        Floats high = as_floats(load(b->high + i)), saturation = as_floats(load(b->saturation + i));
        Floats product = high * saturation * as_floats(load(b->slope + i));
        store(b->mixed + i, as_ints(high + all(0.5f) - product * all(1.0f / 21675.0f))); /* 255 * 85 */
    }
}

static void place_channels(uint8_t *restrict red, uint8_t *restrict green, uint8_t *restrict blue, int64_t n,
                           const HueBlock *restrict b)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t high = b->high[i], mixed = b->mixed[i], least = b->least[i], third = b->third[i];
        uint8_t one = either(b->odd[i], mixed, high), two = either(b->odd[i], high, mixed);
        uint8_t first = when(third == 0), second = when(third == 1);
        red[i] = either(first, one, either(second, least, two));
        green[i] = either(first, two, either(second, one, least));
        blue[i] = either(first, least, either(second, two, one));
    }
}

/* Turn n <= BLOCK pixels by shift / 255 of the circle; n is a multiple of LANES. */
static void turn_hue(uint8_t *red, uint8_t *green, uint8_t *blue, int64_t n, uint8_t shift)
{
    HueBlock b;
    sort_channels(red, green, blue, n, &b);
    divide_spreads(n, &b);
    place_hues(n, shift, &b);
    mix_channels(n, &b);
    place_channels(red, green, blue, n, &b);
}
