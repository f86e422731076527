/* Vectors of as many 32-bit lanes as the instructions have: whole numbers, floats, and masks over them. */

#if defined(LANES_AVX512) || defined(LANES_AVX2)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline, unused))

#if defined(LANES_AVX512)
#define LANES 16
#elif defined(LANES_AVX2)
#define LANES 8
#else
#define LANES 4
#endif

typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

INLINE Floats all(float value) { return (Floats){0} + value; }

INLINE Ints all_ints(int32_t value) { return (Ints){0} + value; }

INLINE Floats as_floats(Ints x) { return __builtin_convertvector(x, Floats); }

/* Cut towards zero. */
INLINE Ints as_ints(Floats x)
{
#if defined(LANES_AVX512)
    return (Ints)_mm512_cvttps_epi32((__m512)x);
#elif defined(LANES_AVX2)
    return (Ints)_mm256_cvttps_epi32((__m256)x);
#else
    return __builtin_convertvector(x, Ints);
#endif
}

/* LANES bytes of memory. */
INLINE Ints load(const uint8_t *from)
{
#if defined(LANES_AVX512)
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
#elif defined(LANES_AVX2)
    return (Ints)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
#else
    Bytes bytes;
    memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Ints);
#endif
}

/* LANES bytes to memory, of lanes in 0..255. */
INLINE void store(uint8_t *to, Ints x)
{
#if defined(LANES_AVX512)
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)x));
#elif defined(LANES_AVX2)
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
#else
    Bytes bytes = __builtin_convertvector(x, Bytes);
    memcpy(to, &bytes, sizeof bytes);
#endif
}

#if defined(LANES_AVX512)

typedef __mmask16 Mask;

INLINE Floats least(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE Floats most(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE Ints least_ints(Ints a, Ints b) { return (Ints)_mm512_min_epi32((__m512i)a, (__m512i)b); }
INLINE Ints most_ints(Ints a, Ints b) { return (Ints)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE Mask equal(Floats a, Floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE Mask less(Floats a, Floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
INLINE Floats choose(Mask which, Floats a, Floats b)
{
    return (Floats)_mm512_mask_blend_ps(which, (__m512)b, (__m512)a);
}

#else

typedef Ints Mask;

INLINE Mask equal(Floats a, Floats b) { return a == b; }
INLINE Mask less(Floats a, Floats b) { return a < b; }
INLINE Ints choose_ints(Mask which, Ints a, Ints b) { return (a & which) | (b & ~which); }
INLINE Floats choose(Mask which, Floats a, Floats b)
{
    return (Floats)choose_ints(which, (Ints)a, (Ints)b);
}
#if defined(LANES_AVX2)
INLINE Floats least(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE Floats most(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Ints least_ints(Ints a, Ints b) { return (Ints)_mm256_min_epi32((__m256i)a, (__m256i)b); }
INLINE Ints most_ints(Ints a, Ints b) { return (Ints)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#else
INLINE Floats least(Floats a, Floats b) { return choose(a < b, a, b); }
INLINE Floats most(Floats a, Floats b) { return choose(a > b, a, b); }
INLINE Ints least_ints(Ints a, Ints b) { return choose_ints(a < b, a, b); }
INLINE Ints most_ints(Ints a, Ints b) { return choose_ints(a > b, a, b); }
#endif

#endif

/* Towards zero, as floats. */
INLINE Floats truncated(Floats x)
{
#if defined(LANES_AVX512)
    return (Floats)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
#elif defined(LANES_AVX2)
    return (Floats)_mm256_round_ps((__m256)x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
#else
    return as_floats(as_ints(x));
#endif
}
