/* RandAugment: operations on the whole image before a view is cropped from it, carried out where the view, or an
   operation behind them, looks.

   A stage is the image after so many operations; stage 0 is the decoded image, mirrored or not. A part of a stage
   is made from the part of the stage before that it needs. Operations that change each level by itself are a table
   of levels per channel; some tables need a histogram of the whole stage, which is found without its pixels where
   tables alone lie between. */

typedef struct {
    uint8_t *memory;
    Part part; /* what of the stage has been made */
} Stage;

/* What the strong views of an image share. */
typedef struct {
    Part image;
    Histogram counts;
    int counted;
} Decoded;

/* One strong view in the making. */
typedef struct {
    const Augmented *plan;
    Decoded *decoded;
    int64_t height, width;
    Stage stages[MOST_STEPS + 1];
    int failed;
} Strong;

static const Part *part_of(Strong *view, int stage, Part wanted);

static Part whole_of(const Strong *view)
{
    return (Part){.top = 0, .left = 0, .height = view->height, .width = view->width};
}

static void table_of(Strong *view, int stage, Table *table);

/* The histogram of a whole stage. */
static void histogram_of(Strong *view, int stage, Histogram *found)
{
    if (stage == 0) { /* mirrored or not */
        Decoded *decoded = view->decoded;
        if (!decoded->counted)
            count_levels(&decoded->image, &decoded->counts);
        decoded->counted = 1;
        *found = decoded->counts;
        return;
    }
    if (!is_table(view->plan->steps[stage - 1].kind)) {
        const Part *whole = part_of(view, stage, whole_of(view));
        if (whole)
            count_levels(whole, found);
        return;
    }
    Histogram before;
    Table table;
    memset(&before, 0, sizeof before);
    histogram_of(view, stage - 1, &before);
    table_of(view, stage, &table);
    memset(found, 0, sizeof *found);
    for (int c = 0; c < 3; c++)
        for (int i = 0; i < 256; i++)
            found->counts[c][table.levels[c][i]] += before.counts[c][i];
}

static float mean_gray(Strong *view, int stage)
{
    const Part *whole = stage == 0 ? &view->decoded->image : part_of(view, stage, whole_of(view));
    int64_t pixels = view->height * view->width;
    return whole ? (float)((2 * sum_of_grays(whole) + pixels) / (2 * pixels)) : 0.0f; /* halves up */
}

/* The levels that the operation before `stage` turns each level into. */
static void table_of(Strong *view, int stage, Table *table)
{
    const Step *step = &view->plan->steps[stage - 1];
    float base = step->kind == CONTRAST ? mean_gray(view, stage - 1) : 0.0f;
    if (step->kind == AUTO_CONTRAST || step->kind == EQUALIZE) {
        Histogram found;
        memset(&found, 0, sizeof found);
        histogram_of(view, stage - 1, &found);
        for (int c = 0; c < 3; c++)
            (step->kind == EQUALIZE ? equalize_levels : stretch_levels)(found.counts[c], table->levels[c]);
        return;
    }
    simple_levels(step, base, table);
}

static Part grown(const Strong *view, Part part)
{
    int64_t top = inside(part.top - 1, view->height - 1), left = inside(part.left - 1, view->width - 1);
    int64_t bottom = inside(part.top + part.height, view->height - 1);
    int64_t right = inside(part.left + part.width, view->width - 1);
    return (Part){.top = top, .left = left, .height = bottom - top + 1, .width = right - left + 1};
}

static int covers(const Part *made, const Part *wanted)
{
    return made->top <= wanted->top && made->left <= wanted->left &&
           made->top + made->height >= wanted->top + wanted->height &&
           made->left + made->width >= wanted->left + wanted->width;
}

/* Room for a part of a stage; null when memory ran out. */
static Stage *room_for(Strong *view, int stage, Part wanted)
{
    Stage *into = &view->stages[stage];
    free(into->memory);
    into->memory = malloc((size_t)(4 * wanted.height * wanted.width));
    into->part = wanted;
    into->part.pixels = into->memory;
    into->part.row = 4 * wanted.width;
    view->failed |= into->memory == NULL;
    return into->memory ? into : NULL;
}

/* A part of the decoded image, mirrored where the view is; null when memory ran out. */
static const Part *mirrored(Strong *view, Part wanted)
{
    Stage *into = room_for(view, 0, wanted);
    if (!into)
        return NULL;
    int64_t left = view->width - wanted.left - wanted.width;
    for (int64_t y = 0; y < wanted.height; y++) {
        const uint8_t *from = pixel_at(&view->decoded->image, wanted.top + y, left);
        uint8_t *to = into->memory + 4 * y * wanted.width;
        for (int64_t x = 0; x < wanted.width; x++)
            memcpy(to + 4 * x, from + 4 * (wanted.width - 1 - x), 4);
    }
    return &into->part;
}

/* A part of a stage that covers at least `wanted`; null when memory ran out. */
static const Part *part_of(Strong *view, int stage, Part wanted)
{
    if (stage == 0 && !view->plan->mirror)
        return &view->decoded->image;
    if (view->stages[stage].memory && covers(&view->stages[stage].part, &wanted))
        return &view->stages[stage].part;
    if (stage == 0)
        return mirrored(view, wanted);
    const Step *step = &view->plan->steps[stage - 1];
    int moves = step->kind == ROTATE || step->kind >= SHEAR_X;
    Table table;
    Part needed = wanted;
    if (moves)
        needed = source_of(&wanted, step->numbers, view->height, view->width);
    else if (step->kind == SHARPNESS)
        needed = grown(view, wanted);
    else if (is_table(step->kind))
        table_of(view, stage, &table);
    const Part *in = view->failed ? NULL : part_of(view, stage - 1, needed);
    Stage *into = in ? room_for(view, stage, wanted) : NULL;
    if (!into)
        return NULL;
    if (moves && step->bicubic)
        move_pixels(in, into->memory, &wanted, step->numbers, view->height, view->width, view->plan->fill, 1);
    else if (moves)
        move_pixels(in, into->memory, &wanted, step->numbers, view->height, view->width, view->plan->fill, 0);
    else if (step->kind == SHARPNESS)
        sharpen(in, into->memory, &wanted, view->height, view->width, (float)step->numbers[0]);
    else if (step->kind == COLOR)
        color(in, into->memory, &wanted, (float)step->numbers[0]);
    else
        look_up(in, into->memory, &wanted, &table);
    return &into->part;
}

/* One strong view. Returns 1 when memory ran out. */
static int crop_augmented(Strong *view, const Job *job)
{
    const double *box = job->boxes;
    double whole[4] = {0.0, 0.0, box[2], box[3]};
    Part wanted = {.top = (int64_t)box[0], .left = (int64_t)box[1], .height = (int64_t)box[2], .width = (int64_t)box[3]};
    const Part *part = part_of(view, view->plan->count, wanted);
    if (!part)
        return 1;
    Image under = {pixel_at(part, wanted.top, wanted.left), wanted.height, wanted.width, 4, part->row};
    Job alone = *job;
    alone.boxes = whole;
    return crop_views(&under, &alone, 1);
}

/* Strong views of one image of four bytes a pixel, one by each job. Returns 1 when memory ran out. */
static int crop_strong(const Image *image, const Job *jobs, const Augmented *plans, int64_t count)
{
    Decoded decoded = {.counted = 0};
    int failed = 0;
    decoded.image = (Part){image->pixels, 0, 0, image->height, image->width, image->row_bytes};
    for (int64_t j = 0; j < count && !failed; j++) {
        Strong view = {.plan = &plans[j], .decoded = &decoded, .height = image->height, .width = image->width};
        failed = crop_augmented(&view, &jobs[j]);
        for (int stage = 0; stage <= MOST_STEPS; stage++)
            free(view.stages[stage].memory);
    }
    return failed;
}
