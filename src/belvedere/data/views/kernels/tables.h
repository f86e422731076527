/* Levels looked up: operations that change each level of a channel by itself, and what their tables are made of. */

enum {
    AUTO_CONTRAST = 1,
    EQUALIZE,
    INVERT,
    ROTATE,
    POSTERIZE,
    SOLARIZE_FROM,
    SOLARIZE_ADD,
    COLOR,
    CONTRAST,
    BRIGHTEN,
    SHARPNESS,
    SHEAR_X,
    SHEAR_Y,
    TRANSLATE_X,
    TRANSLATE_Y
};

typedef struct {
    int64_t counts[3][256];
} Histogram;

typedef struct {
    uint8_t levels[3][256];
} Table;

static int is_table(int kind)
{
    return kind <= INVERT || (kind >= POSTERIZE && kind <= SOLARIZE_ADD) || kind == CONTRAST || kind == BRIGHTEN;
}

INLINE uint8_t blended_level(float base, float level, float factor)
{
    float mixed = (level - base) * factor + base;
    return mixed <= 0.0f ? 0 : mixed >= 255.0f ? 255 : (uint8_t)mixed;
}

INLINE int32_t gray_of(const uint8_t *pixel)
{
    return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 32768) >> 16;
}

static void count_levels(const Part *part, Histogram *found)
{
    memset(found, 0, sizeof *found);
    for (int64_t y = 0; y < part->height; y++) {
        const uint8_t *from = part->pixels + y * part->row;
        for (int64_t x = 0; x < part->width; x++, from += 4)
            for (int c = 0; c < 3; c++)
                found->counts[c][from[c]]++;
    }
}

static int64_t sum_of_grays(const Part *part)
{
    int64_t total = 0;
    for (int64_t y = 0; y < part->height; y++) {
        const uint8_t *from = part->pixels + y * part->row;
        for (int64_t x = 0; x < part->width; x++, from += 4)
            total += gray_of(from);
    }
    return total;
}

/* From the darkest and brightest level there are to 0..255. */
static void stretch_levels(const int64_t *counts, uint8_t *levels)
{
    int low = 0, high = 255;
    while (low < 255 && !counts[low])
        low++;
    while (high > 0 && !counts[high])
        high--;
    double scale = high > low ? 255.0 / (double)(high - low) : 1.0, offset = high > low ? (double)-low * scale : 0.0;
    for (int i = 0; i < 256; i++) {
        double level = (double)i * scale + offset;
        levels[i] = level <= 0.0 ? 0 : level >= 255.0 ? 255 : (uint8_t)level;
    }
}

/* Levels by the share of pixels that are darker. */
static void equalize_levels(const int64_t *counts, uint8_t *levels)
{
    int64_t total = 0, last = 0;
    for (int i = 0; i < 256; i++) {
        total += counts[i];
        last = counts[i] ? counts[i] : last;
    }
    int64_t step = (total - last) / 255, darker = step / 2;
    for (int i = 0; i < 256; i++) {
        int64_t level = step ? darker / step : i;
        levels[i] = level > 255 ? 255 : (uint8_t)level;
        darker += counts[i];
    }
}

/* The levels of an operation that its argument tells, and for contrast the mean gray `base`. */
static void simple_levels(const Step *step, float base, Table *table)
{
    int whole = (int)step->numbers[0];
    float factor = (float)step->numbers[0];
    for (int i = 0; i < 256; i++) {
        int level = i;
        if (step->kind == INVERT)
            level = 255 - i;
        else if (step->kind == POSTERIZE)
            level = i & ~((1 << (8 - whole)) - 1);
        else if (step->kind == SOLARIZE_FROM)
            level = i < whole ? i : 255 - i;
        else if (step->kind == SOLARIZE_ADD)
            level = i >= 128 ? i : i + whole > 255 ? 255 : i + whole;
        else
            level = blended_level(base, (float)i, factor);
        table->levels[0][i] = (uint8_t)level;
    }
    memcpy(table->levels[1], table->levels[0], 256);
    memcpy(table->levels[2], table->levels[0], 256);
}

static void look_up(const Part *in, uint8_t *out, const Part *wanted, const Table *table)
{
    for (int64_t y = wanted->top; y < wanted->top + wanted->height; y++) {
        const uint8_t *from = pixel_at(in, y, wanted->left);
        for (int64_t x = 0; x < wanted->width; x++, from += 4, out += 4) {
            for (int c = 0; c < 3; c++)
                out[c] = table->levels[c][from[c]];
            out[3] = 255;
        }
    }
}
