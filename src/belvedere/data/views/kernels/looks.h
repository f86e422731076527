/* What happens to crops after their geometry, one view at a time while it is in cache: flip, jitter, gray, blur,
   solarize, normalization. */

#define MOST_OPERATIONS 5

/* The colour operations of a row in their order; those without effect are left out. Contrast blends with a
   mean that is not known yet: `means` has a bit for each such operation. */
static int operations_of(const double *row, int64_t channels, Operation *operations, unsigned *means)
{
    int count = 0;
    *means = 0;
    for (int place = 0; place < 4 && row[JITTER] > 0; place++) {
        double number = row[ORDER + place];
        Operation *next = &operations[count];
        next->base = 0.0f;
        if (number == 3.0 && channels == 3 && row[BRIGHTNESS + 3] != 0.0) {
            next->kind = TURN;
            next->factor = (float)((int32_t)(row[BRIGHTNESS + 3] * 255.0) & 255);
            count++;
        } else if (number == 2.0 && channels == 3 && row[BRIGHTNESS + 2] != 1.0) {
            next->kind = SATURATE;
            next->factor = (float)row[BRIGHTNESS + 2];
            count++;
        } else if ((number == 0.0 && row[BRIGHTNESS] != 1.0) || (number == 1.0 && row[BRIGHTNESS + 1] != 1.0)) {
            next->kind = BLEND;
            next->factor = (float)row[BRIGHTNESS + (int)number];
            *means |= (number == 1.0 ? 1u : 0u) << count;
            count++;
        }
    }
    if (row[GRAY] > 0 && channels == 3)
        operations[count++] = (Operation){GRAYED, 0.0f, 0.0f};
    return count;
}

static void change(uint8_t *pixels, int64_t plane, int64_t channels, const Operation *operations, int count)
{
    if (channels == 3 && count > 0)
        change_colors(pixels, plane, operations, count);
    if (channels == 1)
        for (int i = 0; i < count; i++)
            change_gray(pixels, plane, operations[i]);
}

static void recolor(uint8_t *pixels, int64_t plane, int64_t channels, const double *row)
{
    Operation operations[MOST_OPERATIONS];
    unsigned means;
    int count = operations_of(row, channels, operations, &means), done = 0;
    for (int i = 0; i < count; i++)
        if (means >> i & 1) {
            change(pixels, plane, channels, operations + done, i - done);
            done = i;
            int64_t total = sum_of_luma(pixels, plane, channels);
            operations[i].base = (float)((2 * total + plane) / (2 * plane)); /* halves up */
        }
    change(pixels, plane, channels, operations + done, count - done);
}

static void copy_lines(const uint8_t *from, uint8_t *to, int64_t lines, int64_t width, int flip)
{
    if (!flip) {
        memcpy(to, from, (size_t)(lines * width));
        return;
    }
    for (int64_t y = 0; y < lines; y++, from += width, to += width) {
        int64_t x = 0;
        for (; x + 16 <= width; x += 16) {
            Row16 part;
            memcpy(&part, from + x, 16);
            part = SHUFFLE(part, part, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            memcpy(to + width - 16 - x, &part, 16);
        }
        for (; x < width; x++)
            to[width - 1 - x] = from[x];
    }
}

static void solarize(uint8_t *pixels, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        pixels[i] = pixels[i] < 128 ? pixels[i] : (uint8_t)(255 - pixels[i]);
}

static void normalize(const uint8_t *restrict pixels, float *restrict out, int64_t n, float factor, float offset)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        Floats x = as_floats(load(pixels + i)) * all(factor) + all(offset);
        memcpy(out + i, &x, sizeof x);
    }
    for (; i < n; i++)
        out[i] = (float)pixels[i] * factor + offset;
}

/* The view from `from` to `view`, changed as its row says. */
static void look(const Looks *looks, const uint8_t *from, const double *row, uint8_t *view, uint16_t *memory)
{
    int64_t plane = looks->height * looks->width;
    copy_lines(from, view, looks->channels * looks->height, looks->width, row[FLIP] > 0);
    recolor(view, plane, looks->channels, row);
    if (row[BLUR] > 0) {
        Box box = blur_box(row[RADIUS]);
        for (int64_t c = 0; c < looks->channels; c++)
            blur(view + c * plane, looks->height, looks->width, memory, box);
    }
    if (row[SOLARIZE] > 0)
        solarize(view, looks->channels * plane);
}

/* All views. Returns 1 when memory ran out. */
static int look_views(const Looks *looks)
{
    int64_t plane = looks->height * looks->width, size = looks->channels * plane, lines = 0;
    for (int64_t v = 0; v < looks->views; v++) {
        const double *row = looks->rows + v * looks->columns;
        if (row[BLUR] > 0) {
            int64_t n = blur_memory(looks->height, looks->width, blur_box(row[RADIUS]));
            lines = n > lines ? n : lines;
        }
    }
    uint16_t *memory = malloc((size_t)(2 * lines + size + LANES));
    if (!memory)
        return 1;
    uint8_t *scratch = (uint8_t *)(memory + lines);
    for (int64_t v = 0; v < looks->views; v++) {
        uint8_t *view = looks->bytes ? looks->bytes + v * size : scratch;
        look(looks, looks->crops + v * size, looks->rows + v * looks->columns, view, memory);
        if (looks->floats)
            for (int64_t c = 0; c < 3; c++)
                normalize(view + (looks->channels == 3 ? c * plane : 0), looks->floats + (3 * v + c) * plane, plane,
                          looks->factor[c], looks->offset[c]);
    }
    free(memory);
    return 0;
}
