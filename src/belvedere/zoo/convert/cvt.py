"""EsViT's CvT by the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from belvedere.core.errors import WeightsError
from belvedere.core.match import Shape
from belvedere.nn.spec import CvTSpec
from belvedere.nn.spec.cvt import CVT_NAMES
from belvedere.zoo.convert.checkpoint import shape

_BLOCK = re.compile(r"stage(\d+)\.1\.layers\.(\d+)\.")
_HEAD_WIDTH = 64  # columns per attention head, in every stage of the published one
_STEPS = {7: (4, 2), 3: (2, 1)}  # kernel -> stride, padding of an embedding
_WINDOW = 7


def cvt_spec_of(shapes: Mapping[str, Shape], *, origin: str) -> CvTSpec:
    """The network that has tensors of these shapes. Heads, strides and windows, which shapes leave open, are
    as in the published one; where these rules do not apply, `WeightsError` asks for a name."""
    blocks: dict[int, int] = {}
    for name in shapes:
        if found := _BLOCK.match(name):
            blocks[int(found[1])] = max(blocks.get(int(found[1]), 0), int(found[2]) + 1)
    stages = max(blocks, default=0) + 1
    embeddings = [shape(shapes, f"stage{stage}.0.proj.weight", 4, origin=origin) for stage in range(stages)]
    widths, kernels = [one[0] for one in embeddings], [one[-1] for one in embeddings]
    if any(width % _HEAD_WIDTH for width in widths) or any(kernel not in _STEPS for kernel in kernels):
        raise WeightsError(
            f"{origin}: stages {widths} wide with kernels of {kernels} do not tell the numbers of heads and "
            f"the strides; name the architecture (--as), one of {', '.join(CVT_NAMES)}, or a recipe"
        )
    hidden = shape(shapes, "stage0.1.layers.0.1.fn.net.0.weight", 4, origin=origin)[0]
    return CvTSpec(
        name="cvt",
        widths=tuple(widths),
        heads=tuple(width // _HEAD_WIDTH for width in widths),
        blocks=tuple(blocks.get(stage, 1) for stage in range(stages)),
        kernels=tuple(kernels),
        strides=tuple(_STEPS[kernel][0] for kernel in kernels),
        paddings=tuple(_STEPS[kernel][1] for kernel in kernels),
        window=_WINDOW,
        mlp_ratio=hidden / widths[0],
        drop_path=0.0,
    )
