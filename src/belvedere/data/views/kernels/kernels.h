/* All kernels, once for each set of instructions: the files that include this choose it first. */

#include <stdlib.h>
#include <string.h>

#include "views.h"

#include "lanes.h"

#include "transpose.h"

#include "resize.h"

#include "hue.h"

#include "color.h"

#include "blur.h"

#include "looks.h"

#include "affine.h"

#include "tables.h"

#include "mixing.h"

#include "augment.h"
