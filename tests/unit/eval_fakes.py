"""A tiny backbone, card and source for the tests of evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from belvedere.data.decode import Pixels, UnreadableImage
from belvedere.data.sources.source import ArraySource
from belvedere.nn.backbone import Block, Features
from belvedere.nn.spec import FeatureSpec


def feature_spec(**changes: object) -> FeatureSpec:
    values = {
        "source": "cls",
        "blocks": 1,
        "norm": "none",
        "resize_px": 8,
        "crop_px": 8,
        "interpolation": "bilinear",
    }
    return FeatureSpec.model_validate(values | changes)


@dataclass(frozen=True)
class FakeCard:
    features: FeatureSpec
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)


class FakeBackbone(nn.Module):
    """Two 'blocks' of 4 x 4 px patches; dropout shows when it is not in evaluation mode."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.width = width
        self.patch = nn.Parameter(torch.randn(width, 48, generator=generator) / 7)
        self.second = nn.Parameter(torch.randn(width, width, generator=generator))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor, *, keep: Tensor | None = None, blocks: int = 0) -> Features:
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        first = self.dropout(torch.relu(patches @ self.patch.T))  # [B, N, D]
        last = torch.relu(first @ self.second.T)
        grid = (images.shape[2] // 4, images.shape[3] // 4)
        outputs = tuple(
            Block(tokens, tokens.amax(1), grid, self.width, stage)
            for stage, tokens in enumerate((first, last))
        )
        normed = self.norm(last)
        return Features(normed.mean(1), normed.amax(1), normed, grid, outputs[len(outputs) - blocks :])


class BrokenSource(ArraySource):
    """Some of its images cannot be read."""

    broken: frozenset[int] = frozenset()

    def stored(self, index: int) -> Pixels:
        if index in self.broken:
            raise UnreadableImage(self.key(index), "truncated")
        return super().stored(index)


def coloured_source(
    per_class: dict[str, int], *, seed: int = 0, unlabelled: int = 0, broken: frozenset[int] = frozenset()
) -> BrokenSource:
    """8 x 8 images around one random pattern per class, so that classes can be told apart."""
    rng = np.random.RandomState(seed)
    patterns = np.random.RandomState(99).uniform(0, 255, (len(per_class), 8, 8, 3))
    labels = np.concatenate([np.full(count, c) for c, count in enumerate(per_class.values())]).astype(
        np.int64
    )
    labels = np.concatenate([labels, np.full(unlabelled, -1, dtype=np.int64)])
    which = np.where(labels >= 0, labels, np.arange(len(labels)) % len(per_class))
    pixels = np.clip(patterns[which] + rng.normal(0, 60, (len(labels), 8, 8, 3)), 0, 255).astype(np.uint8)
    keys = [f"{i:04d}.png" for i in range(len(labels))]
    source = BrokenSource("fake", pixels, labels=labels, classes=tuple(per_class), keys=keys)
    source.broken = broken
    return source


def clusters(
    counts: list[int], width: int, *, seed: int = 0, spread: float = 1.0
) -> tuple[Tensor, NDArray[np.int64]]:
    """Features [N, width] around one random centre per class, and labels [N]."""
    centres = np.random.RandomState(7).standard_normal((len(counts), width))
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = np.random.RandomState(seed).standard_normal((len(labels), width))
    return torch.from_numpy(centres[labels] + spread * noise).float(), labels
