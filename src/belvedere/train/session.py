"""Everything one process holds of a run, from the recipe to its place on disk."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from belvedere.core import dist
from belvedere.core.errors import CheckpointError, UsageError
from belvedere.data.loader import Loader
from belvedere.data.report import DataReport
from belvedere.data.sources.source import Source
from belvedere.engine import state
from belvedere.engine.manifest import MANIFEST_NAME
from belvedere.engine.parallel import Spread, prepare_
from belvedere.engine.precision import parameter_dtype
from belvedere.methods.method import Method
from belvedere.methods.pages import page
from belvedere.nn.build import build
from belvedere.optim.groups import build_optimizer
from belvedere.recipe.load import recipe_hash
from belvedere.recipe.plan import Plan
from belvedere.recipe.schema import Recipe
from belvedere.train.directory import RECIPE_NAME, anew
from belvedere.train.roster import changes

METHOD_PREFIX = "method/"


def choose_device(wanted: str | None) -> torch.device:
    """The device `run.device` names, or the best there is; the local rank picks among several."""
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UsageError("run.device is cuda, but torch sees no CUDA device here; set run.device=cpu or null")
    if there and wanted != "cpu":
        device = torch.device("cuda", dist.local_rank())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def build_method(recipe: Recipe) -> Method:
    """The recipe's method with fresh parameters, a function of the recipe and its seed alone."""
    return page(recipe.method.name).build(recipe.method, build(recipe.backbone), seed=recipe.seed)


@dataclass
class Session:
    """A run in this process. step: finished steps; replaced: unreadable images and those taken instead."""

    recipe: Recipe
    plan: Plan
    source: Source
    report: DataReport
    directory: Path
    device: torch.device
    method: Method
    optimizer: torch.optim.Optimizer
    spread: Spread
    step: int = 0
    replaced: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def start(
        cls, recipe: Recipe, plan: Plan, source: Source, report: DataReport, device: torch.device
    ) -> Session:
        """A run at step 0."""
        method = build_method(recipe)
        method.allocate(plan.extent)
        precision, group = plan.precision, recipe.train.batch_norm_group
        prepare_(method, device=device, dtype=parameter_dtype(precision), batch_norm_group=group)
        if recipe.run.compile:
            for network in method.networks().values():
                network.get_submodule("backbone").compile()
        spread = Spread(
            method,
            device=device,
            precision=precision,
            seed=recipe.seed,
            micro_batch=recipe.run.micro_batch,
        )
        optimizer = build_optimizer(method.groups(), recipe.optim)
        directory = plan.run_dir
        return cls(recipe, plan, source, report, directory, device, method, optimizer, spread)

    def loader(self, *, workers: int | None = None, rows: int | None = None) -> Loader:
        """The batches of the steps that are left. workers: instead of `run.workers`; rows: the first so many
        of each batch alone."""
        recipe = self.recipe
        return Loader(
            self.source,
            recipe.views,
            data=recipe.data,
            seed=recipe.seed,
            global_batch=recipe.train.global_batch,
            rank=dist.rank(),
            world_size=dist.world_size(),
            workers=recipe.run.workers if workers is None else workers,
            start_step=self.step,
            total_steps=self.plan.total_steps,
            dtype=parameter_dtype(self.plan.precision),
            device=self.device,
            replaced=self.replaced,
            rows=rows,
        )

    # State: what a checkpoint holds

    def _names(self) -> dict[nn.Parameter, str]:
        return {parameter: name for name, parameter in self.method.named_parameters()}

    def _stored_name(self, name: str) -> str:
        """What an entry of the method's state is called in a checkpoint; what a process has to itself begins
        with its rank."""
        own = f"rank{dist.rank()}/" if name in self.method.per_rank_state else ""
        return f"{own}{METHOD_PREFIX}{name}"

    def _method_state(self) -> dict[str, Tensor]:
        return {self._stored_name(name): tensor for name, tensor in self.method.state_dict().items()}

    def own_state(self) -> dict[str, Tensor]:
        """The buffers that differ between processes, by their names in the method."""
        whole = self.method.state_dict()
        return {name: whole[name] for name in self.method.per_rank_state if name in whole}

    def shared_state(self) -> dict[str, Tensor]:
        """The buffers beside the networks that all processes hold alike, by their names in the method."""
        networks = tuple(f"{name}." for name in self.method.networks())
        own = self.own_state()
        return {
            name: buffer
            for name, buffer in self.method.named_buffers()
            if name not in own and not name.startswith(networks)
        }

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, buffers and optimizer moments by name; nothing is copied."""
        return self._method_state() | state.flatten_optimizer(self.optimizer, self._names())

    def save(self, *, milestone: bool = False) -> Path:
        """Write a checkpoint of the finished steps."""
        meta = {
            "recipe_hash": recipe_hash(self.recipe),
            "data": self.source.fingerprint(),
            "images": len(self.source),
            "report": self.report.state(),
            "replaced": {str(bad): good for bad, good in self.merged_replacements().items()},
            "device": self.device.type,
            "precision": self.plan.precision,
            "micro_batch": self.recipe.run.micro_batch,
        }
        keep = self.recipe.run.keep_last
        return state.save(
            self.directory, self.step, self.tensors(), meta, keep_last=keep, milestone=milestone
        )

    def merged_replacements(self) -> dict[int, int]:
        """Replacements of all processes."""
        merged: dict[int, int] = {}
        for each in dist.gather_objects(self.replaced):
            merged |= each
        return dict(sorted(merged.items()))

    def resume(self, *, read_only: bool = False) -> bool:
        """Take up the newest sound checkpoint, if there is one; true if so. Adds to `notes` what to tell.
        read_only: leave the remains of interrupted saves where they are, as a dry run does.

        Raises `CheckpointError` if the checkpoint is of other images, of another recipe or does not fit.
        """
        try:
            take = state.look if read_only else state.load
            loaded = take(self.directory, like=self._method_state())
        except CheckpointError:
            self._refuse_other_images_first()
            raise
        if loaded is None:
            return False
        self.notes += [f"skipped {path.name}: {reason}" for path, reason in loaded.skipped]
        _check_meta(loaded.path, loaded.meta)
        self._refuse_other_images(loaded.path, loaded.meta)
        self._refuse_another_recipe(loaded.path, loaded.meta)
        names = list(self.method.state_dict())
        self.method.load_state_dict({name: loaded.tensors[self._stored_name(name)] for name in names})
        state.unflatten_optimizer_(self.optimizer, self._names(), loaded.tensors)
        self.step = loaded.step
        try:
            self.replaced = _replaced(loaded.meta["replaced"], len(self.source))
            if "report" in loaded.meta:
                self.report.merge(DataReport.from_state(loaded.meta["report"], len(self.source)))
        except ValueError as error:
            raise _altered(loaded.path, str(error)) from error
        self.notes.append(f"continuing {self.directory} from checkpoint {loaded.path.name}")
        self.notes += self._not_bitwise(loaded.manifest, loaded.meta)
        return True

    def _refuse_other_images_first(self) -> None:
        """Where a checkpoint does not fit because there are other images (a bank has a row for each), say
        that and not what follows from it."""
        found = None
        with suppress(CheckpointError):
            found = state.find(self.directory)
        if found is not None:
            _check_meta(found.path, found.manifest["meta"])
            self._refuse_other_images(found.path, found.manifest["meta"])

    def _refuse_other_images(self, path: Path, meta: dict[str, Any]) -> None:
        if meta["data"] == self.source.fingerprint():
            return
        raise CheckpointError(
            f"{path} was trained on other images than data.path now holds: "
            f"{changes(self.source, self.directory, num_then=meta.get('images'))}. Restore them, or begin a "
            "new run with other images and the weights of this one: the overrides "
            f"{shlex.join(anew(self.directory, self.recipe))}"
        )

    def _refuse_another_recipe(self, path: Path, meta: dict[str, Any]) -> None:
        """Where `recipe.yaml`, which says what differs, is gone."""
        if (self.directory / RECIPE_NAME).exists():
            return
        if meta["recipe_hash"] != recipe_hash(self.recipe):
            raise CheckpointError(
                f"{path} was trained by a recipe of hash {meta['recipe_hash']}, this one has "
                f"{recipe_hash(self.recipe)}, and {self.directory / RECIPE_NAME}, which would say what "
                "differs, is missing; restore it, or start another run with run.dir=NEW"
            )
        self.notes.append(f"{self.directory / RECIPE_NAME} was missing and is written again")

    def _not_bitwise(self, manifest: dict[str, Any], meta: dict[str, Any]) -> list[str]:
        """Restore the recorded thread count, and say what keeps the continuation from being bitwise."""
        reasons = []
        threads = manifest["threads"]
        if self.device.type == "cpu" and threads != torch.get_num_threads():
            if self.recipe.run.threads is None:
                torch.set_num_threads(threads)
            else:
                reasons.append(f"run.threads is {self.recipe.run.threads}, was {threads}")
        if manifest["world_size"] != dist.world_size():
            reasons.append(f"{dist.world_size()} processes, were {manifest['world_size']}")
        if meta["device"] != self.device.type:
            reasons.append(f"device {self.device.type}, was {meta['device']}")
        if meta.get("precision") not in (None, self.plan.precision):
            reasons.append(f"precision {self.plan.precision}, was {meta['precision']}")
        if meta["micro_batch"] != self.recipe.run.micro_batch:
            reasons.append(f"run.micro_batch {self.recipe.run.micro_batch}, was {meta['micro_batch']}")
        if manifest["versions"]["torch"] != torch.__version__:
            reasons.append(f"torch {torch.__version__}, was {manifest['versions']['torch']}")
        if not reasons:
            return []
        return [f"the continuation is exact but for rounding, not bitwise: {'; '.join(reasons)}"]


_META: dict[str, tuple[type, ...]] = {
    "data": (str,),
    "recipe_hash": (str,),
    "replaced": (dict,),
    "device": (str,),
    "precision": (str, type(None)),  # which earlier versions did not tell
    "micro_batch": (int, type(None)),
    "images": (int, type(None)),  # which earlier versions did not tell
}


def _check_meta(path: Path, meta: dict[str, Any]) -> None:
    """Raise CheckpointError unless a manifest tells of a run what `Session.save` told."""
    for key, kinds in _META.items():
        if type(meta.get(key)) not in kinds:
            raise _altered(path, f"{key} is {str(meta.get(key))[:60]!r}")


def _replaced(told: dict[str, Any], num_images: int) -> dict[int, int]:
    """{image that could not be read: the one taken instead}. Raises ValueError for numbers of no images."""
    replaced = {int(bad): good for bad, good in told.items()}
    numbers = [*replaced, *replaced.values()]
    if not all(type(number) is int and 0 <= number < num_images for number in numbers):
        raise ValueError(f"replaced names images that there are not (0 to {num_images - 1})")
    return replaced


def _altered(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path / MANIFEST_NAME} is altered (meta: {reason}); restore it from a copy, or delete {path} to "
        "continue from the checkpoint before"
    )
