/* Bytes transposed, in blocks of 16 x 16. */

typedef uint8_t Row16 __attribute__((vector_size(16)));

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Row16){__VA_ARGS__})
#endif

/* Rows of 16 bytes that lie from_stride apart, to rows that lie to_stride apart. */
INLINE void transpose16(const uint8_t *from, ptrdiff_t from_stride, uint8_t *to, ptrdiff_t to_stride)
{
    Row16 rows[16], mixed[16];
    for (int i = 0; i < 16; i++)
        memcpy(&rows[i], from + i * from_stride, 16);
    /* four times: riffle the upper half of the rows into the lower one */
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            mixed[2 * i] =
                SHUFFLE(rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            mixed[2 * i + 1] = SHUFFLE(rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
                                       14, 30, 15, 31);
        }
        memcpy(rows, mixed, sizeof rows);
    }
    for (int i = 0; i < 16; i++)
        memcpy(to + i * to_stride, &rows[i], 16);
}

/* from [height, width] with rows from_stride apart, to [width, height] with rows to_stride apart; to_stride is at
   least height rounded up to 16, and what lies between is written too. */
static void transpose(const uint8_t *from, int64_t height, int64_t width, int64_t from_stride, uint8_t *to,
                      int64_t to_stride)
{
    for (int64_t y = 0; y < height; y += 16) {
        int64_t rows = height - y < 16 ? height - y : 16, x = 0;
        if (rows == 16)
            for (; x + 16 <= width; x += 16)
                transpose16(from + y * from_stride + x, from_stride, to + x * to_stride + y, to_stride);
        for (; x < width; x += 16) {
            uint8_t in[256] = {0}, out[256];
            int64_t columns = width - x < 16 ? width - x : 16;
            for (int64_t i = 0; i < rows; i++)
                memcpy(in + 16 * i, from + (y + i) * from_stride + x, (size_t)columns);
            transpose16(in, 16, out, 16);
            for (int64_t i = 0; i < columns; i++)
                memcpy(to + (x + i) * to_stride + y, out + 16 * i, 16);
        }
    }
}
