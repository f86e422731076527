"""One of two processes of a contract run; started by torchrun. Rank 0 writes the state at the end, with what
each process has to itself. With a `stop` other than 0 the run is saved there and taken up again."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from drive import drain, recipe, session, snapshot

from belvedere.core import dist

if __name__ == "__main__":
    method, images, directory, out, stop, until, vit, *overrides = sys.argv[1:]
    torch.set_num_threads(1)
    dist.start(torch.device("cpu"))
    wanted = recipe(method, Path(images), Path(directory), overrides, vit=vit == "True")
    run = session(wanted)
    if int(stop):
        drain(run, until=int(stop))
        run.save()
        run = session(wanted, resume=True)
    drain(run, until=int(until))
    states = dist.gather_objects(snapshot(run))
    if dist.is_main():
        shared = [name for name in states[0] if not name.startswith("rank")]
        unequal = [name for name in shared if not torch.equal(states[0][name], states[1][name])]
        # Two processes hold the same parameters, but for the order of a sum in the last bit.
        assert all((states[0][n] - states[1][n]).abs().max() < 1e-14 for n in unequal), unequal
        torch.save(states[0] | states[1] | {name: states[0][name] for name in shared}, out)
    dist.stop()
