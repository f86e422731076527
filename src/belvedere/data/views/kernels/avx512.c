/* The kernels for x86-64 with AVX-512; without fused multiplication and addition, which would round once less. */

#include "levels.h"

#ifdef BELVEDERE_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd")
#endif

#define LANES_AVX512
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const Kernels belvedere_avx512 = {crop_views, look_views, crop_strong};

#endif
