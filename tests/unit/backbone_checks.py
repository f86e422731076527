"""What the tests of backbones share: drawn networks, the sizes that features tell, what autograd keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.nn.backbone import Features
from belvedere.nn.build import build
from belvedere.nn.spec import CvTSpec, ViLSpec


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def filled_(module: nn.Module, seed: int = 0) -> nn.Module:
    """A module whose every parameter is noise, so that none goes unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return module


def drawn(spec: CvTSpec | ViLSpec, seed: int = 0) -> Any:
    """A network as training begins with it."""
    network = build(spec)
    network.initialize_(torch.Generator().manual_seed(seed))
    return network


def told_features(spec: CvTSpec | ViLSpec, px: int, sides: Sequence[int]) -> Features:
    """The features of an image of `px`, once they are seen to have maps of these sides, a block each.

    spec: of stages with 1, 1, 2 and 1 blocks, 4, 8, 12 and 16 wide.
    """
    network = drawn(spec).eval()
    features: Features = network(normal(1, 3, px, px), blocks=5)
    assert [block.grid for block in features.blocks] == [(side, side) for side in sides]
    assert [block.stage for block in features.blocks] == [0, 1, 2, 2, 3]
    for block, width in zip(features.blocks, (4, 8, 12, 12, 16), strict=True):
        assert block.grid is not None
        assert block.tokens.shape == (1, block.grid[0] * block.grid[1], width)
        assert block.width == width
    assert features.cls is None
    assert features.regions is not None
    assert features.grid == (sides[-1], sides[-1])
    assert spec.num_patches(px) == sides[-1] ** 2 == features.regions.shape[1]
    torch.testing.assert_close(network.norm(features.blocks[-1].tokens), features.regions)
    torch.testing.assert_close(features.pooled, features.regions.mean(1))
    without = network(normal(1, 3, px, px), regions=False)
    assert without.regions is None
    torch.testing.assert_close(without.pooled, features.pooled)
    assert len(network(normal(1, 3, px, px), blocks=2).blocks) == 2
    return features


@contextmanager
def kept_bytes(network: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of every storage that autograd keeps of forwards in this context, the network's own left out.

    The outputs must live until it ends.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def kept_values_per_image(network: nn.Module, px: int, **options: Any) -> float:
    """Values of float32 that autograd keeps of one image more in a batch. options: of the forward."""
    kept = {}
    for count in (1, 3):
        with kept_bytes(network) as found:
            features = network(normal(count, 3, px, px), **options)
        kept[count] = sum(found.values()) / 4
        del features
    return (kept[3] - kept[1]) / 2
