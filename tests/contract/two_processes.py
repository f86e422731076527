"""One of two processes of a contract run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from drive import drain, recipe, session, snapshot

from belvedere.core import dist


def state_of(
    rank: int,
    *,
    method: str,
    images: Path,
    directory: Path,
    overrides: Sequence[str] = (),
    vit: bool = False,
    stop: int = 0,
    until: int = 5,
) -> dict[str, np.ndarray] | None:
    """From rank 0 the state after `until` steps, with what each process has to itself.

    stop: the step at which to save and take up again; 0 for none.
    """
    wanted = recipe(method, images, directory, overrides, vit=vit)
    run = session(wanted)
    if stop:
        drain(run, until=stop)
        run.save()
        run = session(wanted, resume=True)
    drain(run, until=until)
    assert dist.world_size() == 2
    states = dist.gather_objects(snapshot(run))
    shared = [name for name in states[0] if not name.startswith("rank")]
    unequal = [name for name in shared if not torch.equal(states[0][name], states[1][name])]
    # Two processes hold the same parameters, but for the order of a sum in the last bit.
    assert all((states[0][n] - states[1][n]).abs().max() < 1e-14 for n in unequal), unequal
    if rank != 0:
        return None
    together = states[0] | states[1] | {name: states[0][name] for name in shared}
    return {name: tensor.numpy() for name, tensor in together.items()}
