/* What the library exports: the kernels, for the best instructions this machine has or for any lesser ones. */

#include "levels.h"
#include "views.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* Raised with every change of the structures or of a function's arguments. */
EXPORT int belvedere_interface(void) { return 2; }

/* The best level of instructions: 0 any, 1 AVX2, 2 AVX-512. */
EXPORT int belvedere_level(void)
{
#ifdef BELVEDERE_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi2"))
        return 0;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512cd"))
        return 2;
    return 1;
#else
    return 0;
#endif
}

static const Kernels *kernels(int level)
{
#ifdef BELVEDERE_X86
    if (level >= 2)
        return &belvedere_avx512;
    if (level == 1)
        return &belvedere_avx2;
#endif
    (void)level;
    return &belvedere_baseline;
}

EXPORT int belvedere_crop(int level, const Image *image, const Job *jobs, int64_t count)
{
    return kernels(level)->crop(image, jobs, count);
}

EXPORT int belvedere_look(int level, const Looks *looks) { return kernels(level)->look(looks); }

/* One view by each job. */
EXPORT int belvedere_strong(int level, const Image *image, const Job *jobs, const Augmented *plans, int64_t count)
{
    return kernels(level)->strong(image, jobs, plans, count);
}
