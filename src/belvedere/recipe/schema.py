"""A recipe: everything a run is, complete in one file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from belvedere.core.settings import Settings
from belvedere.data.spec import DataSpec, ViewSpec
from belvedere.methods.method import MethodOptions
from belvedere.methods.pages import method_names, page
from belvedere.nn.spec import BackboneSpec, FeatureSpec
from belvedere.optim.spec import AnyOptimSpec

Count = Annotated[int, Field(ge=1)]
MOST_PER_PROCESS = 1024
"""Loader workers or threads of one process: more than a machine has cores for."""
MOST_OF_A_NAME = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class TrainSpec(Settings):
    """How long and in what precision. global_batch: images per step over all processes. Parameters are
    float32 (float64 for `float64`); `bf16` runs the networks under bfloat16 autocast and every loss in
    at least float32. batch_norm_group: how many processes share BatchNorm's statistics (null: all of them;
    1: each has its own)."""

    epochs: Annotated[int, Field(ge=1, le=999_999)]
    """How many times training goes through the images."""
    global_batch: Count
    """Images a step, over all processes."""
    precision: Literal["bf16", "float32", "float64"]
    """`bf16`: networks under bfloat16 autocast, losses in float32; `float32`, `float64`: everything."""
    batch_norm_group: Count | None = None
    """How many processes share BatchNorm's statistics (null: all; 1: each has its own)."""


class RunSpec(Settings):
    """How this machine carries the run out; the only keys that may change when a run continues.

    dir: where everything is written (null: `runs/<name>`). device: `cpu`, `cuda` or null for what is there.
    workers: loader processes per training process (0: in the training process). threads: CPU threads of the
    networks (null: torch's choice). micro_batch: rows encoded at a time per process (null: all). compile:
    torch.compile for the backbone. Saving: every n steps and every n minutes, whichever comes; the last
    `keep_last` checkpoints are kept, and those at multiples of `milestone_epochs`.
    on_collapse: when the watch finds that a run has collapsed, say so (`warn`), or say so, save and end it.
    """

    dir: str | None = None
    """Where everything is written (null: `runs/<name>`)."""
    device: Literal["cpu", "cuda"] | None = None
    """Where networks run (null: on the GPU if there is one)."""
    workers: Annotated[int, Field(ge=0, le=MOST_PER_PROCESS)] = 2
    """Loader processes of each training process (0: a thread of it)."""
    threads: Annotated[int, Field(ge=1, le=MOST_PER_PROCESS)] | None = None
    """CPU threads of the networks (null: torch's choice)."""
    micro_batch: Count | None = None
    """Rows encoded at a time in each process (null: all): less memory, the same step to rounding."""
    compile: bool = False
    """Whether the backbone is compiled by torch.compile."""
    log_every_steps: Count = 10
    """Steps from one line of metrics to the next."""
    save_every_steps: Count | None = None
    """Steps from one checkpoint to the next (null: by time alone)."""
    save_every_minutes: Annotated[float, Field(gt=0.0)] | None = 15.0
    """Minutes from one checkpoint to the next (null: by steps alone)."""
    keep_last: Count = 2
    """How many of the latest checkpoints are kept."""
    milestone_epochs: Count | None = None
    """Checkpoints at multiples of this epoch are kept for good (null: none)."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """When the watch finds that the run has collapsed: say so (`warn`), or say so, save and end (`stop`)."""
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go beside metrics.jsonl; each needs its package."""


if TYPE_CHECKING:
    _From = Settings
else:  # `from` is a word of Python's, which a class cannot have as a name
    _WHERE = Field(
        min_length=1,
        description="The directory of another run, or a folder of weights with a card.",
    )
    _From = create_model("_From", __base__=Settings, **{"from": (Annotated[str, _WHERE], ...)})


class InitSpec(_From):
    """What a run begins with instead of fresh parameters. from: the directory of another run, a folder of
    weights with a card (a run's `backbone`, what `belvedere import` wrote). start_epoch: null begins a run of
    its own with these weights, at epoch 0 and with a fresh optimizer; a number goes on at that epoch of the
    run, its schedules too, with a fresh optimizer, or of imported weights with the optimizer's moments where
    the file has them. take: all that fits, or the backbone alone."""

    start_epoch: Count | None = None
    """The epoch that this run goes on at, schedules too (null: a run of its own, at epoch 0)."""
    take: Literal["all", "backbone"] = "all"
    """What is taken of the weights: all that the method has, or the backbone alone."""

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        return {name: value for name, value in values.items() if name != "take" or value != "all"}

    @property
    def directory(self) -> Path:
        return Path(getattr(self, "from")).expanduser()


class Published(Settings):
    """What the paper reports for this run, and which of the recipe's values its authors never stated.

    source: where the numbers stand. weights: the published file of this run. accuracy: top-1 in percent, by
    protocol. unknown: dotted key -> why the value was chosen.
    """

    source: str
    """Where the numbers stand."""
    weights: str | None = None
    """The published file of this run (null: none)."""
    accuracy: dict[str, Annotated[float, Field(ge=0.0, le=100.0)]] = Field(default_factory=dict)
    """Top-1 accuracy in percent, by protocol."""
    unknown: dict[str, str] = Field(default_factory=dict)
    """By dotted key, why a value that the authors never stated was chosen."""


class Measured(Settings):
    """What the numbers of a recipe, in its head or in docs/results.md, were measured on. It changes nothing
    of a run, whose plan compares itself with it."""

    images: Count
    """How many images it was trained on."""
    steps: Count
    """How many steps it had."""


class Recipe(Settings):
    """One run. Under `method` stand the options of the method's page; see `belvedere.methods`.

    name: also where the run is written, `runs/<name>`, unless `run.dir` says otherwise.
    """

    name: str
    """The name of the run, and of its folder below `runs`."""
    seed: Annotated[int, Field(ge=0)]
    """What every random draw follows from."""
    method: SerializeAsAny[MethodOptions]
    """The options of the method that `name` says."""
    backbone: BackboneSpec
    """The network that `name` says."""
    views: dict[str, ViewSpec]
    """By role, the views that a step makes of an image; the method says which roles there are."""
    data: DataSpec
    """The images."""
    optim: AnyOptimSpec
    """The optimizer that `name` says."""
    train: TrainSpec
    """Length, batch and precision."""
    features: FeatureSpec
    """The feature of the trained backbone."""
    init: InitSpec | None = None
    """What the run begins with (null: fresh parameters)."""
    run: RunSpec = RunSpec()
    """How this machine carries the run out; may change when it continues."""
    published: Published | None = None
    """What the paper reports for this run."""
    measured: Measured | None = None
    """The run that this recipe was measured with; for people."""
    _split_is_default: bool = PrivateAttr(default=False)
    _remarks: tuple[str, ...] = PrivateAttr(default=())

    @model_serializer(mode="wrap")
    def _without_unused(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = written(self)
        return {name: value for name, value in values.items() if name != "measured" or value is not None}

    @property
    def split_is_default(self) -> bool:
        """Whether `data.split` came with a shipped recipe, so that images without parts do without it."""
        return self._split_is_default

    @property
    def remarks(self) -> tuple[str, ...]:
        """What whoever carries the recipe out is to be told of how it was read."""
        return self._remarks

    def __eq__(self, other: object) -> bool:
        """Equal settings, wherever they came from."""
        return isinstance(other, Recipe) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]  # views are a dict

    @field_validator("name")
    @classmethod
    def _is_a_path(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"{value[:60]!r} is not allowed; use letters, digits, `.`, `_` and `-`, separated by `/`"
            )
        if len(value) > MOST_OF_A_NAME:  # a run is written to a folder of this name
            raise ValueError(f"{len(value):,} characters are not allowed; use at most {MOST_OF_A_NAME}")
        return value

    @field_validator("method", mode="before")
    @classmethod
    def _of_its_page(cls, value: Any, info: ValidationInfo) -> Any:
        """`method:` validated by the `Options` of the page that its `name` names."""
        if not isinstance(value, dict):
            return value
        name = value.get("name")
        if name not in method_names():
            raise PydanticCustomError("method_name", "no method of this name")
        return page(name).Options.model_validate(value, context=info.context)
