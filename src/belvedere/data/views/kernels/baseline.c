/* The kernels for any machine. */

#include "kernels.h"

const Kernels belvedere_baseline = {crop_views, look_views, crop_strong};
