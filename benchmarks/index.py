"""What it costs to hold a folder of 1.28 million images: belvedere's index against a list of paths.

    python benchmarks/index.py

The tree: empty files in a thousand folders, named as ImageNet's are. Belvedere finds them, keeps the index
and opens it again from its cache; torchvision's `ImageFolder` finds them and holds them as a Python list.
Each side runs in a process of its own, which starts four more by forkserver that get the data set. All look
at images in random order, as often as there are images: belvedere's by key and label, torchvision's by path
and class.

Memory is what no other process shares (private pages of /proc/self/smaps), over that of the same process
before: of the parent alone after looking, of the workers after looking at the same time. Unwritten pages of
programs and libraries are left out, which count or not with whatever else runs on the machine; those of the
index count. Both sides must find the same names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from process_memory import memory_mib

from belvedere.core.cache import VARIABLE

IMAGENET_IMAGES = 1_281_167
CLASSES = 1000
WORKERS = 4
LONG_AGO = 1_000_000_000
TIMEOUT_S = 900.0
"""For a worker that died: without it, nobody would hear of it."""


def plant(root: Path, count: int) -> None:
    """`count` files in CLASSES folders, links to a few empty ones: only names are looked at here."""
    for number in range(CLASSES):
        folder = root / f"n{number:08}"
        folder.mkdir(parents=True)
        first = None
        for image in range(number, count, CLASSES):
            path = folder / f"n{number:08}_{image}.JPEG"
            if first is None:
                path.touch()
                first = path
            else:
                os.link(first, path)
        os.utime(folder, (LONG_AGO, LONG_AGO))
    os.utime(root, (LONG_AGO, LONG_AGO))


def unique_mib() -> float:
    """Memory that only this process uses, without unwritten pages of files other than an index."""
    kib, path = 0, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            path = words[5] if len(words) > 5 else ""
        elif words[0] == "Private_Dirty:" or (
            words[0] == "Private_Clean:" and (not path.startswith("/") or path.endswith(".index"))
        ):
            kib += int(words[1])
    return kib / 1024


# The two sides, each a way to open a folder and a way to look at one image


def belvedere_side() -> tuple[Callable[[Path], Any], Callable[[Any, int], tuple[str, int]]]:
    from belvedere.data.sources.folder import open_folder

    return lambda root: open_folder(root, None), lambda source, i: (source.key(i), int(source.labels[i]))


def torchvision_side() -> tuple[Callable[[Path], Any], Callable[[Any, int], tuple[str, int]]]:
    from torchvision.datasets import ImageFolder

    return ImageFolder, lambda folder, i: folder.samples[i]


SIDES = {"belvedere": belvedere_side, "torchvision": torchvision_side}


def look(side: str, data: Any) -> None:
    """At as many images as there are, in a random order of this process's own."""
    _, image = SIDES[side]()
    draw, count = random.Random(os.getpid()), len(data)
    for _ in range(count):
        image(data, draw.randrange(count))


def work(side: str, data: Any, meet: Any, answers: Any) -> None:
    """In a worker: its memory once all workers have looked and while none is gone; data may be None."""
    SIDES[side]()
    if data is not None:
        look(side, data)
    meet.wait()
    answers.put(unique_mib())
    meet.wait()


def in_workers(side: str, data: Any) -> list[float]:
    """The memory of WORKERS processes with `data`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["belvedere.data.fetch", "torchvision.datasets"])
    meet, answers = context.Barrier(WORKERS), context.Queue()
    started = [context.Process(target=work, args=(side, data, meet, answers)) for _ in range(WORKERS)]
    for process in started:
        process.start()
    found = [answers.get(timeout=TIMEOUT_S) for _ in started]
    for process in started:
        process.join()
    return found


def measure(side: str, root: Path, *, workers: bool) -> dict[str, Any]:
    """Open and look, in this process and in workers."""
    opened, image = SIDES[side]()
    look(side, opened(root.parent / "few"))  # imports what it needs
    before_mib, resident_mib = unique_mib(), memory_mib("VmRSS")
    start_s = time.perf_counter()
    data = opened(root)
    seconds = time.perf_counter() - start_s
    peak_mib = memory_mib("VmHWM") - resident_mib
    look(side, data)
    parent_mib = unique_mib() - before_mib
    names = hashlib.blake2b(digest_size=16)
    for index in range(0, len(data), 997):
        name, label = image(data, index)
        names.update(f"{os.path.relpath(name, root) if os.path.isabs(name) else name} {label}\n".encode())
    usual_mib = statistics.median(in_workers(side, None)) if workers else 0.0
    return {
        "seconds": seconds,
        "images": len(data),
        "names": names.hexdigest(),
        "peak": peak_mib,
        "parent": parent_mib,
        "workers": [found - usual_mib for found in in_workers(side, data)] if workers else [],
    }


def measured(side: str, root: Path, *, workers: bool) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--root",
        str(root),
        *(["--workers"] if workers else []),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(count: int, folder: Path) -> None:
    root = folder / "many"
    start_s = time.perf_counter()
    plant(folder / "few", 2 * CLASSES)
    plant(root, count)
    print(f"{count:,} files planted in {time.perf_counter() - start_s:.0f} s")
    os.environ[VARIABLE] = str(folder / "cache")
    runs = {
        "belvedere, building": measured("belvedere", root, workers=False),
        "belvedere, from its cache": measured("belvedere", root, workers=True),
        "torchvision ImageFolder": measured("torchvision", root, workers=True),
    }
    if len({run["names"] for run in runs.values()}) > 1 or any(
        run["images"] != count for run in runs.values()
    ):
        raise SystemExit("the two sides did not find the same images")
    kept = sum(path.stat().st_size for path in (folder / "cache").rglob("*.index")) / 2**20
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"the index takes {kept:.0f} MiB in the cache\n")
    print(f"| | opened in | peak in opening | parent | each of {WORKERS} workers |")
    print("| --- | --- | --- | --- | --- |")
    for what, run in runs.items():
        each = f"{max(run['workers']):.1f} MiB" if run["workers"] else ""
        opened = f"{run['seconds']:.2f} s | {run['peak']:.0f} MiB"
        print(f"| {what} | {opened} | {run['parent']:.0f} MiB | {each} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGENET_IMAGES)
    parser.add_argument("--folder", type=Path, help="where to plant the tree (a temporary directory)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.root, workers=options.workers)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(options.images, Path(folder))


if __name__ == "__main__":
    main()
