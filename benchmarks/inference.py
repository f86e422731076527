"""Features of a ViT-B/16: belvedere against transformers' ViTMSNModel (eager and sdpa) and timm.

    uv pip install transformers timm      # the other sides; belvedere does not need them
    python benchmarks/inference.py                        # every cell, a few minutes on an idle machine
    python benchmarks/inference.py --batches 1,8 --precision float32 --threads 1

All sides hold the same weights in one process, see the same 224 px images and take turns: one forward pass
each, in an order that changes with every round, so that what else the machine does falls on all alike. Each
gives the class token after the final norm; before anything is timed their features must agree. In bf16 the
weights and the images are bf16 (`--autocast`: float32 weights under autocast). Printed are medians, minima
and, for each cell, the ratio of the fastest other side's median to belvedere's: the aim is at least 0.97.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from belvedere.nn.build import build
from belvedere.nn.spec.vit import vit_spec
from belvedere.zoo.write.huggingface import config, released_state

Forward = Callable[[Tensor], Tensor]
TOLERANCE = {"float32": 1e-4, "bf16": 0.2}
"""How far features may be apart, in units of their standard deviation: largest difference in float32, in bf16
root mean square."""
AIM = 0.97
_PX = 224


def sides(device: torch.device, dtype: torch.dtype) -> dict[str, Forward]:
    """The networks by name, all with the same weights."""
    try:
        import timm
        from transformers import ViTMSNConfig, ViTMSNModel
    except ImportError as error:
        sys.exit(f"{error}: uv pip install transformers timm")
    spec = vit_spec("deit_base")
    ours = build(spec)
    ours.initialize_(torch.Generator().manual_seed(0))
    found: dict[str, nn.Module] = {"belvedere": ours}
    for attention in ("eager", "sdpa"):
        settings = {
            key: value for key, value in config(spec).items() if key not in ("architectures", "torch_dtype")
        }
        theirs = ViTMSNModel._from_config(ViTMSNConfig(**settings), attn_implementation=attention)
        _fill(theirs, released_state(ours.state_dict()))
        found[f"transformers {attention}"] = theirs
    found["timm"] = timm.create_model("vit_base_patch16_224", num_classes=0)
    found["timm"].load_state_dict(ours.state_dict())
    for network in found.values():
        network.to(device, dtype).eval()
    return {name: _forward(name, network) for name, network in found.items()}


def _fill(theirs: nn.Module, released: dict[str, Tensor]) -> None:
    """Fill a ViTMSNModel whatever its names in memory are: through a folder, as a person would."""
    import tempfile

    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        plain = {name: tensor.detach().contiguous() for name, tensor in released.items()}
        save_file(plain, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        theirs.config.save_pretrained(folder)
        read = type(theirs).from_pretrained(folder)
    theirs.load_state_dict(read.state_dict())


def _forward(name: str, network: nn.Module) -> Forward:
    if name == "belvedere":
        return lambda images: network(images, regions=False).pooled
    if name == "timm":
        return lambda images: network(images)
    return lambda images: network(images).last_hidden_state[:, 0]


@contextmanager
def precision(autocast: bool, device: torch.device) -> Iterator[None]:
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        yield


def agree(forwards: dict[str, Forward], images: Tensor, name: str) -> None:
    """Stop unless all sides compute the same."""
    ours = forwards["belvedere"](images).float()
    for other, forward in forwards.items():
        apart = (forward(images).float() - ours) / ours.std()
        distance = float(apart.abs().max() if name == "float32" else apart.square().mean().sqrt())
        if not distance <= TOLERANCE[name]:
            sys.exit(f"{other} computes something else in {name}: {distance:.2g} standard deviations apart")


def take_turns(forwards: dict[str, Forward], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each forward pass, side by side."""
    names, taken = list(forwards), {name: [] for name in forwards}
    for number in range(rounds + 1):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            _wait(images.device)
            start = time.perf_counter()
            forwards[name](images)
            _wait(images.device)
            if number:  # the first round warms up
                taken[name].append(time.perf_counter() - start)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(args: argparse.Namespace, device: torch.device) -> list[dict[str, object]]:
    cells: list[dict[str, object]] = []
    for name in args.precision:
        dtype = torch.bfloat16 if name == "bf16" and not args.autocast else torch.float32
        forwards = sides(device, dtype)
        with precision(args.autocast and name == "bf16", device):
            for batch in args.batches:
                generator = torch.Generator().manual_seed(batch)
                images = torch.randn(batch, 3, _PX, _PX, generator=generator).to(device, dtype)
                agree(forwards, images, name)
                taken = take_turns(forwards, images, args.rounds)
                cells.append(_cell(name, batch, taken))
    return cells


def _cell(name: str, batch: int, taken: dict[str, list[float]]) -> dict[str, object]:
    """Print a cell and return it."""
    medians = {side: statistics.median(times) for side, times in taken.items()}
    best = min(value for side, value in medians.items() if side != "belvedere")
    ratio = best / medians["belvedere"]
    for side, times in taken.items():
        print(
            f"{name:8} batch {batch:3}  {side:18} median {1e3 * medians[side]:9.1f} ms"
            f"  least {1e3 * min(times):9.1f} ms  {batch / medians[side]:8.1f} images/s"
        )
    verdict = "" if ratio >= AIM else f"  (below {AIM})"
    print(f"{name:8} batch {batch:3}  fastest other / belvedere: {ratio:.3f}{verdict}\n", flush=True)
    return {"precision": name, "batch": batch, "median_s": medians, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 8, 64]
    )
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["float32", "bf16"])
    parser.add_argument("--autocast", action="store_true", help="bf16 by autocast instead of bf16 weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    )
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    cells = measure(args, device)
    if args.json:
        args.json.write_text(json.dumps(cells, indent=1))


if __name__ == "__main__":
    main()
