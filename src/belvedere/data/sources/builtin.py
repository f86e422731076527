"""Image sets with a format of their own: scikit-learn's digits and folders of IDX (MNIST) files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from belvedere.core.errors import DataError
from belvedere.core.rng import generator
from belvedere.data.sources.source import UNLABELLED, ArraySource, Source

DIGITS_HELD_OUT = 450
_DIGITS_SEED = 0
_IDX_IMAGES, _IDX_LABELS = 0x00000803, 0x00000801
_IDX_PARTS = {"train": "train", "test": "t10k"}


def open_digits(split: str | None) -> Source:
    """scikit-learn's 1,797 digits, 8 x 8 px; `test`: a fixed, stratified 450, `train`: the others."""
    from sklearn.datasets import load_digits  # slow to import, rarely needed

    images, target = load_digits(return_X_y=True)
    labels = np.asarray(target, dtype=np.int64)
    chosen = np.arange(len(labels), dtype=np.int64)
    if split is not None:
        held_out = _stratified(labels, DIGITS_HELD_OUT)
        chosen = held_out if split == "test" else np.setdiff1d(chosen, held_out)
    # 0..16 to 0..255
    pixels = np.rint(np.asarray(images) * (255.0 / 16.0)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return ArraySource(
        "digits",
        pixels[chosen],
        labels=labels[chosen],
        classes=tuple(str(digit) for digit in range(10)),
        keys=(f"digits/{index}" for index in chosen),
    )


def _stratified(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` sorted indices with each class in proportion (largest remainders), always the same ones."""
    classes, sizes = np.unique(labels, return_counts=True)
    quotas = sizes * (count / len(labels))
    taken = np.floor(quotas).astype(np.int64)
    first = np.argsort(taken - quotas, kind="stable")[: count - int(taken.sum())]
    taken[first] += 1
    parts = [
        generator(_DIGITS_SEED, "digits", int(label)).permutation(np.flatnonzero(labels == label))[:take]
        for label, take in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(parts)).astype(np.int64)


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder holds images in MNIST's file format."""
    return any(_idx_file(folder, part, "images-idx3") is not None for part in _IDX_PARTS.values())


def open_idx(folder: Path, split: str | None) -> Source:
    """A folder of IDX files, plain or gzipped; without a split, training images and then test images.

    Keys are `train/0`, `test/0`. Raises DataError for a missing split, a wrong magic number or size, or a
    file that is truncated or damaged.
    """
    wanted = [split] if split is not None else list(_IDX_PARTS)
    found = [part for part in wanted if _idx_file(folder, _IDX_PARTS[part], "images-idx3") is not None]
    if not found:
        raise DataError(
            f"data.split is {split!r}, but {folder} has no {_IDX_PARTS[wanted[0]]}-images-idx3-ubyte file"
        )
    images, labels, keys = [], [], []
    for part in found:
        part_images, part_labels = _idx_part(folder, _IDX_PARTS[part])
        images.append(part_images)
        labels.append(part_labels)
        keys += [f"{part}/{index}" for index in range(len(part_images))]
    shapes = {image.shape[1:] for image in images}
    if len(shapes) > 1:
        raise DataError(
            f"the IDX files in {folder} hold images of different sizes: {sorted(shapes)}; set data.split"
        )
    all_labels = np.concatenate(labels)
    count = int(all_labels.max()) + 1
    return ArraySource(
        folder.name,
        np.concatenate(images)[..., None],
        labels=all_labels,
        classes=tuple(str(label) for label in range(count)),
        keys=keys,
    )


def _idx_file(folder: Path, part: str, content: str) -> Path | None:
    for stem in (f"{part}-{content}-ubyte", f"{part}-{content.replace('-', '.')}-ubyte"):
        for name in (stem, f"{stem}.gz"):
            if (folder / name).is_file():
                return folder / name
    return None


def _idx_part(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, H, W] and labels [N] (-1 where there is no label file) of one part."""
    image_file = _idx_file(folder, part, "images-idx3")
    assert image_file is not None
    images = read_idx(image_file, _IDX_IMAGES)
    label_file = _idx_file(folder, part, "labels-idx1")
    if label_file is None:
        return images, np.full(len(images), UNLABELLED, dtype=np.int64)
    labels = read_idx(label_file, _IDX_LABELS).astype(np.int64)
    if len(labels) != len(images):
        raise DataError(
            f"{label_file} holds {len(labels)} labels for the {len(images)} images of {image_file}"
        )
    return images, labels


def read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """The array of an IDX file of bytes, whose magic number says how many dimensions it has."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} (data.path) cannot be read: {error}") from error
    dimensions = magic & 0xFF
    header = 4 * (1 + dimensions)
    if len(data) < header or int.from_bytes(data[:4], "big") != magic:
        raise DataError(
            f"{path} (data.path) is no IDX file: it starts with {data[:4].hex()}, not {magic:08x}"
        )
    shape = tuple(int.from_bytes(data[at : at + 4], "big") for at in range(4, header, 4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if 0 in shape or len(data) != expected:
        raise DataError(
            f"{path} (data.path) says {' x '.join(map(str, shape))}, so {expected} bytes, but has {len(data)}"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)
