"""How processes that run tests start, and which tests they run first."""

import os
import sys
from pathlib import Path

import pytest

COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "compiled"

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    # One thread for each process that runs tests beside others: teams of spinning threads starve each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if sys.dont_write_bytecode:
    # Tests start dozens of processes. Where nothing is compiled beside the sources, nor may be, each of them
    # would compile torch and all that it imports once more, which takes as long as a whole test of learning.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(COMPILED)
    sys.dont_write_bytecode = False


@pytest.hookimpl(trylast=True)  # after some are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put tests marked `slow` first in every worker's share, so that none of them is left to run alone.

    The scheduler cuts the list into one run for each worker, and lets who is done take from others' ends.
    """
    workers = getattr(config, "workerinput", {"workercount": 1})["workercount"]
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    sizes = zip(shares(len(items), workers), shares(len(slow), workers), strict=True)
    items.clear()
    for size, first in sizes:
        items += slow[:first] + quick[: size - first]
        del slow[:first], quick[: size - first]


def shares(count: int, workers: int) -> list[int]:
    """How many of `count` tests each worker is given at first: what is over goes to the last ones."""
    return [(count + worker) // workers for worker in range(workers)]
