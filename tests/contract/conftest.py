"""Puts `drive` on the path, and makes the small folder of images that every contract run trains on."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

NUM_IMAGES = 26  # three batches of 8 and a rest that is left out


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 small colour images in two folders, some not square, one of them unreadable."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for number in range(NUM_IMAGES):
        folder = root / ("even" if number % 2 == 0 else "odd")
        folder.mkdir(exist_ok=True)
        height, width = random.randint(12, 20, size=2)
        pixels = random.randint(0, 256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (root / "odd" / "11.png").write_bytes(b"not an image")
    return root
