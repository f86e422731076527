/* The kernels for x86-64 with AVX2; without fused multiplication and addition, which would round once less. */

#include "levels.h"

#ifdef BELVEDERE_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2")
#endif

#define LANES_AVX2
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const Kernels belvedere_avx2 = {crop_views, look_views, crop_strong};

#endif
