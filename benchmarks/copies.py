"""How many changed copies `belvedere data check` finds, and how many distinct images it takes for copies.

    python benchmarks/copies.py                    # cut out of scikit-learn's photographs, sky and all
    python benchmarks/copies.py --images DIR       # every readable image of at least 64 px there

Every image is copied once per transform: recompressed, resized, cropped, brightened, grayed, mirrored. The
copies play the evaluation set, the originals the pretraining set, among `--distractors` images of Fashion's
kind: random smooth shapes. A copy counts as found when it is matched to its own original. Below the table:
near copies among the originals themselves, to be looked at by eye, since sets of pictures do hold copies.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from belvedere.core.log import say, table
from belvedere.data.check import duplicates, find_copies, leakage
from belvedere.data.decode import UnreadableImage
from belvedere.data.sources import Source, open_source, read
from belvedere.data.survey import Survey, survey

LEAST_PX = 64  # of an original and of its copy; smaller images are held to more


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image as JPEG gives it back."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out)


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without `share` of its width and height on every side."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


TRANSFORMS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 95": lambda image: jpeg(image, 95),
    "JPEG 75": lambda image: jpeg(image, 75),
    "JPEG 30": lambda image: jpeg(image, 30),
    "twice the size": lambda image: resized(image, 2.0),
    "half the size": lambda image: resized(image, 0.5),
    "0.3 of the size": lambda image: resized(image, 0.3),
    "2 % off every side": lambda image: cropped(image, 0.02),
    "5 % off every side": lambda image: cropped(image, 0.05),
    "10 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "10 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "gray": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "mirrored, half the size, JPEG 50": lambda image: jpeg(resized(ImageOps.mirror(image), 0.5), 50),
}


def cut_outs(count: int) -> list[Image.Image]:
    """`count` parts of scikit-learn's photographs that overlap little, each seen once."""
    from sklearn.datasets import load_sample_images

    found = []
    side = 128
    for pixels in load_sample_images().images:
        for top in range(0, pixels.shape[0] - side + 1, side):
            for left in range(0, pixels.shape[1] - side + 1, side):
                found.append(
                    Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
                )
    return found[:count]


def images_of(path: str) -> list[Image.Image]:
    """Every image of a source that can be read and is large enough."""
    source = open_source(path)
    found = []
    for index in range(len(source)):
        try:
            pixels = read(source, index)
        except UnreadableImage:
            continue
        if min(pixels.shape[:2]) >= LEAST_PX:
            found.append(Image.fromarray(np.ascontiguousarray(pixels)))
    return found


def shapes(count: int) -> list[Image.Image]:
    """Random smooth gray shapes of 96 px, none like another."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
    falling = 1.0 / np.maximum(frequency, 1 / 96) ** 1.5
    found = []
    for _ in range(count):
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((96, 96))) * falling).real
        low, high = field.min(), field.max()
        found.append(Image.fromarray(((field - low) / (high - low) * 255).astype(np.uint8)).convert("RGB"))
    return found


def looked_at(images: dict[str, Image.Image], folder: Path) -> Survey:
    """What `belvedere data check` sees of these images, by name."""
    folder.mkdir(parents=True)
    for name, image in images.items():
        image.save(folder / f"{name}.png", compress_level=1)
    source: Source = open_source(str(folder))
    return survey(source, progress=quiet)


def quiet(done: int, total: int) -> None:
    """No progress."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", help="a folder of photographs, or any other source")
    parser.add_argument("--count", type=int, default=1000, help="at most so many originals (1000)")
    parser.add_argument("--distractors", type=int, default=2000, help="images to be told apart from (2000)")
    args = parser.parse_args()
    chosen = images_of(args.images)[: args.count] if args.images else cut_outs(args.count)
    originals = {f"{number:06}": image for number, image in enumerate(chosen)}
    others = {f"other-{number:06}": image for number, image in enumerate(shapes(args.distractors))}
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        known = looked_at(originals | others, root / "known")
        start = time.perf_counter()
        wrong = 0
        for number, (name, transform) in enumerate(TRANSFORMS.items()):
            changed = {key: transform(image) for key, image in originals.items()}
            changed = {key: image for key, image in changed.items() if min(image.size) >= LEAST_PX}
            if not changed:
                rows.append((name, "every copy is under 64 px"))
                continue
            report = leakage(known, looked_at(changed, root / str(number)), progress=quiet)
            found = sum(entry["other"] == entry["source"] for entry in report["list"])
            wrong += sum(entry["source"].startswith("other-") for entry in report["list"])
            rows.append((name, f"{100 * found / len(changed):5.1f} % ({found} of {len(changed)})"))
        seconds = time.perf_counter() - start
        among = duplicates(known, find_copies(known, progress=quiet))
    table("copies found", rows)
    say(f"copies matched to one of the {len(others)} others: {wrong}; {seconds:.0f} s for all transforms")
    near = [group["keys"] for group in among["near"]["list"]]
    say(f"groups of near copies among the {len(originals)} originals: {len(near)} {near[:10]}")


if __name__ == "__main__":
    main()
