"""Features of a frozen backbone: which image goes in, and which tensor is *the* feature, both as its card
says; or averages over windows of its last map.

B batch, N images, D feature columns, H x W the cells of the last map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from belvedere.core.errors import DataError, EvaluationError
from belvedere.core.log import warn
from belvedere.data.decode import UnreadableImage
from belvedere.data.levels import Range
from belvedere.data.sources.source import ArraySource, Source, read, value_range_of
from belvedere.engine.precision import Precision, networks
from belvedere.nn.backbone import Block, Features, described
from belvedere.nn.spec import FeatureSpec

Progress = Callable[[int, int], None]
"""Called with (images done, images in all) after every batch."""

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MAX_ASPECT = 16


class FeatureCard(Protocol):
    """What evaluation needs of a card: the feature, and the statistics that pixels in [0, 1] are normalized
    by."""

    @property
    def features(self) -> FeatureSpec: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...
    @property
    def std(self) -> tuple[float, float, float]: ...


@dataclass(frozen=True)
class Extracted:
    """features [N, D] float32 on the CPU, or [N, D, h, w] where windows were asked for; index [N]: which
    image of the source each row is, in the order asked for; unreadable: {key: reason} of the images that have
    no row; content [N, 2]: hashes of what the network was given, equal for copies."""

    features: Tensor
    index: NDArray[np.int64]
    unreadable: dict[str, str]
    content: NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 2), dtype=np.uint64))

    def __repr__(self) -> str:
        return f"Extracted(features={described(self.features)}, unreadable={len(self.unreadable)} images)"


def evaluation_pixels(pixels: NDArray[np.uint8], spec: FeatureSpec) -> NDArray[np.uint8]:
    """The central crop [crop_px, crop_px, 3] of an image [H, W, 3] whose shorter side was resized to
    resize_px.

    Antialiased, on PIL's grid. Of an image more than 16 times as long as wide only the middle is resized.
    """
    height, width = pixels.shape[:2]
    longest = _MAX_ASPECT * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    image = Image.fromarray(np.ascontiguousarray(pixels[top : top + longest, left : left + longest]))
    short = min(image.size)
    if short != spec.resize_px:
        width, height = (
            spec.resize_px if side == short else int(spec.resize_px * side / short) for side in image.size
        )
        image = image.resize((width, height), _RESAMPLING[spec.interpolation])
    left, top = (round((side - spec.crop_px) / 2.0) for side in image.size)
    return np.asarray(image.crop((left, top, left + spec.crop_px, top + spec.crop_px)))


def image_transform(
    pixels: NDArray[np.uint8], spec: FeatureSpec, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """A normalized image [3, crop_px, crop_px] float32 from pixels [H, W, 3]."""
    return _normalized(evaluation_pixels(pixels, spec), mean=mean, std=std)


def _normalized(crop: NDArray[np.uint8], *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    image = torch.from_numpy(crop.transpose(2, 0, 1).astype(np.float32)) / 255.0
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _content(source: Source, index: int, crop: NDArray[np.uint8]) -> bytes:
    """16 bytes that copies share: a hash of the crop; of one that is all one colour, of what is stored,
    because blank images need not be copies of each other."""
    if (crop == crop[:1, :1]).all():
        stored = source.stored(index)
        content = stored if isinstance(stored, bytes) else str(stored.shape).encode() + stored.tobytes()
        return hashlib.blake2b(b"stored" + content, digest_size=16).digest()
    return hashlib.blake2b(np.ascontiguousarray(crop).data, digest_size=16).digest()


def feature(output: Features, spec: FeatureSpec, norm: nn.Module) -> Tensor:
    """The feature [B, D] float32 that the card means, of a backbone's output.

    norm: the backbone's final norm, applied token by token (so before a mean) to no block, to those of the
    last stage, or to all. Several blocks stand side by side, oldest first.
    """
    if spec.source == "pooled":
        return output.pooled.float()
    if len(output.blocks) < spec.blocks:
        raise EvaluationError(
            f"features.blocks is {spec.blocks}, but the backbone gives {len(output.blocks)} blocks; use a "
            f"smaller number"
        )
    blocks = output.blocks[-spec.blocks :]
    last = blocks[-1].stage
    parts: list[Tensor] = []
    for block in blocks:
        normed = spec.norm == "all" or (spec.norm == "last_stage" and block.stage == last)
        parts += _of_block(block, spec, norm if normed else nn.Identity())
    return torch.cat([part.float() for part in parts], dim=1)


def _of_block(block: Block, spec: FeatureSpec, norm: nn.Module) -> list[Tensor]:
    parts: list[Tensor] = []
    if spec.source in ("cls", "cls+mean"):
        if block.cls is None:
            raise EvaluationError(
                f"features.source is {spec.source!r}, but a block of stage {block.stage} has no class "
                f"token; use 'mean'"
            )
        parts.append(norm(block.cls))
    if spec.source == "cls_or_mean" and block.cls is not None:
        parts.append(norm(block.cls))
    elif spec.source in ("mean", "cls+mean", "cls_or_mean"):
        parts.append(norm(block.tokens).float().mean(1))
    return parts


def feature_map(output: Features) -> Tensor:
    """The last map [B, D, H, W] float32 of a backbone's output, after its final norm."""
    if output.regions is None or output.grid is None:
        raise EvaluationError("the backbone gives no map of the whole image that windows could be laid over")
    cells: Tensor = output.regions.float().transpose(1, 2).unflatten(2, output.grid)
    return cells


def pool_map(cells: Tensor, window: int | None) -> Tensor:
    """Averages of window x window cells, one cell apart, of maps [B, D, H, W]: [B, D, H - window + 1,
    W - window + 1]; with None over the whole map: [B, D]."""
    if window is None:
        return cells.mean((2, 3))
    height, width = cells.shape[2:]
    if not 1 <= window <= min(height, width):
        raise EvaluationError(
            f"a window of {window} cells does not fit the last map of {height} x {width}; use 1 to "
            f"{min(height, width)}, or none for the average of the whole map"
        )
    return avg_pool2d(cells, window, stride=1)


def extract(
    backbone: nn.Module,
    card: FeatureCard,
    source: Source,
    *,
    indices: NDArray[np.int64] | None = None,
    batch_size: int = 64,
    device: torch.device | None = None,
    precision: Precision = "float32",
    window: int | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> Extracted:
    """Features of a source's images (or of those at `indices`), in evaluation mode, without gradient.

    window: averages over windows of this many cells of the last map, in place of the card's feature.
    The backbone is moved to `device` and stays there; its training modes come back. Images are read by
    `workers` threads. Raises DataError when no image can be read, EvaluationError for features that are not
    finite.
    """
    if batch_size < 1:
        raise EvaluationError(f"the batch size must be at least 1; got {batch_size}")
    device = device or torch.device("cpu")
    backbone.to(device)
    _say_other_range(card, source)
    wanted = (
        np.arange(len(source), dtype=np.int64) if indices is None else np.asarray(indices, dtype=np.int64)
    )
    if not len(wanted):
        raise DataError(f"there is no image of {source.name!r} to extract features of")
    rows: list[Tensor] = []
    index: list[int] = []
    unreadable: dict[str, str] = {}
    hashes: list[bytes] = []
    if progress is not None:
        progress(0, len(wanted))
    with evaluating(backbone), torch.inference_mode():
        for done, batch, failed in _read(source, wanted, card, batch_size=batch_size, workers=workers):
            unreadable |= failed
            if batch:
                images = torch.stack([image for image, _ in batch.values()]).to(device)
                hashes += [content for _, content in batch.values()]
                part = _forward(backbone, images, card.features, precision, window)
                _check_finite(part, source, list(batch))
                rows.append(part)
                index += batch
            if progress is not None:
                progress(done, len(wanted))
    if not rows:
        first = "".join(f"\n  {key}: {reason}" for key, reason in list(unreadable.items())[:5])
        raise DataError(f"none of the {len(wanted)} images of {source.name!r} can be read:{first}")
    content = np.frombuffer(b"".join(hashes), dtype="<u8").reshape(-1, 2)
    return Extracted(torch.cat(rows).clone(), np.array(index, dtype=np.int64), unreadable, content)


def _say_other_range(card: FeatureCard, source: Source) -> None:
    """Warn where the images are scaled from another range of values than those of the backbone's training."""
    trained, here = getattr(card, "value_range", None), value_range_of(source)
    eight_bits = isinstance(source, ArraySource) and source.scaled_from is None
    if trained is not None and trained != here and not eight_bits:
        _warn_of_ranges(trained, here, source.name)


@cache
def _warn_of_ranges(trained: Range, here: Range | None, name: str) -> None:
    shown = "no range" if here is None else f"the range [{here[0]:g}, {here[1]:g}]"
    warn(
        f"the backbone was trained with data.range [{trained[0]:g}, {trained[1]:g}] (its card), and {name!r} "
        f"is read with {shown}: images of more than 8 bits look different to it"
    )


def _forward(
    backbone: nn.Module, images: Tensor, spec: FeatureSpec, precision: Precision, window: int | None
) -> Tensor:
    dtype = next((p.dtype for p in backbone.parameters()), images.dtype)
    norm = backbone.norm
    assert isinstance(norm, nn.Module)
    with networks(precision, images.device):
        if window is not None:
            return pool_map(feature_map(backbone(images.to(dtype))), window).cpu()
        output = backbone(images.to(dtype), blocks=0 if spec.source == "pooled" else spec.blocks)
        return feature(output, spec, norm).cpu()


def _read(
    source: Source, wanted: NDArray[np.int64], card: FeatureCard, *, batch_size: int, workers: int
) -> Iterator[tuple[int, dict[int, tuple[Tensor, bytes]], dict[str, str]]]:
    """Per batch: images done so far, {index: (normalized image, hash)}, {key: reason}; one batch is read
    ahead."""

    def load(i: int) -> tuple[Tensor, bytes] | UnreadableImage:
        try:
            crop = evaluation_pixels(read(source, i), card.features)
            return _normalized(crop, mean=card.mean, std=card.std), _content(source, i, crop)
        except UnreadableImage as error:
            return error

    edges = [*range(0, len(wanted), batch_size), len(wanted)]
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:

        def start(number: int) -> dict[int, Future[tuple[Tensor, bytes] | UnreadableImage]]:
            part = wanted[edges[number] : edges[number + 1]] if number + 1 < len(edges) else wanted[:0]
            return {int(i): pool.submit(load, int(i)) for i in part}

        try:
            ahead = start(0)
            for number, (_, done) in enumerate(pairwise(edges)):
                current, ahead = ahead, start(number + 1)
                results = {i: future.result() for i, future in current.items()}
                images = {i: result for i, result in results.items() if isinstance(result, tuple)}
                unread = {i: r for i, r in results.items() if isinstance(r, UnreadableImage)}
                yield done, images, {source.key(i): r.reason for i, r in unread.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an interruption waits for no batch ahead


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, and each part's own mode after it."""
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


def _check_finite(features: Tensor, source: Source, index: list[int]) -> None:
    bad = ~torch.isfinite(features).flatten(1).all(1)
    if bool(bad.any()):
        key = source.key(index[int(bad.nonzero()[0, 0])])
        raise EvaluationError(
            f"the features of {int(bad.sum())} images are not finite, first {key!r}; the weights are "
            f"damaged, or try "
            f"precision float32"
        )
