"""The contract between a method and the training loop.

A method is an `nn.Module` holding what its paper adds to a backbone: student, teacher, prototypes, buffers.
The loop owns the optimizer, the step, the scopes of randomness, clipping and the finite check, and calls, in
this order every step:

=================  ====================================  ==========================================
call               may                                   may not
=================  ====================================  ==========================================
`allocate`         make buffers as large as the run asks (once, before the first step)
`start_epoch`      cluster, assign                       draw outside its scope
`start_step`       touch a parameter before the forward
`encode_student`   run the student's backbone by rows    use a statistic over rows that it owns
`encode_teacher`   the same, without gradient
`loss`             heads, Sinkhorn, me-max, all rows     change any state
`before_update`    drop gradients (None, not zero)
`after_update`     change buffers: EMA, queue, center
=================  ====================================  ==========================================

With accumulation the two `encode` calls are made once per micro-batch and `encode_student` again with
gradient, in the same scope; `loss` sees all rows of the process, once. So a non-finite step stops before
anything changed, and accumulation over micro-batches has the gradient of the large batch, to rounding.

State that differs between processes (a queue, a memory bank) is in buffers that `per_rank_state` names:
checkpoints keep them per process, and a run that has any continues on as many processes only.

Legend: B rows (images) of this process, V views, D width, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from belvedere.core.settings import Settings
from belvedere.data.batch import Batch
from belvedere.data.spec import ViewSpec
from belvedere.engine.health import Health
from belvedere.engine.remedy import STEADIER, Remedy
from belvedere.nn.spec import BackboneSpec

Encoded = dict[str, Tensor]
"""Backbone features by role, each view-major with the rows second: [V, B, ...]."""


@dataclass(frozen=True)
class Clock:
    """Where in the run a step is; everything a schedule may read.

    schedule_steps: the length that schedules are laid out over (total_steps times `optim.stretch`).
    """

    step: int
    steps_per_epoch: int
    total_steps: int
    schedule_steps: float

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def progress(self) -> float:
        return self.step / self.total_steps


@dataclass(frozen=True)
class Extent:
    """How large a run is. images: that there are, of which `steps_per_epoch * global_batch` are seen in an
    epoch; batch: rows of one process."""

    images: int
    epochs: int
    steps_per_epoch: int
    global_batch: int
    world_size: int

    @property
    def batch(self) -> int:
        return self.global_batch // self.world_size

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class Held:
    """How many numbers one process holds of a part of a method. key: where a recipe says how large it is.

    trained: parameters that are; teacher: those of the teacher; own_bytes: of what each process has to
    itself; shared_bytes: of all else that is no network, which processes hold alike; layers: how many.
    """

    key: str
    trained: int = 0
    teacher: int = 0
    own_bytes: int = 0
    shared_bytes: int = 0
    layers: int = 1


@dataclass
class Losses:
    """total: what is differentiated; terms: its parts, as reported; watch: numbers that say how the run is
    doing; kept: tensors that `after_update` or an observer reads; health: what the watch measures of logged
    steps. All 0-d but `kept` and `health`."""

    total: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    watch: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    health: Health | None = None


@dataclass(frozen=True)
class Group:
    """Parameters that the optimizer treats alike. decay: whether weight decay applies to them."""

    name: str
    parameters: list[nn.Parameter]
    decay: bool
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Kept:
    """What outlives training: the backbone to use, and what the method trained on top of it, by name."""

    backbone: nn.Module
    heads: Mapping[str, nn.Module | Tensor]


class Method(nn.Module):
    """Base of all methods. `student` is trained (and wrapped for several processes); `teacher`, where there
    is one, follows it.

    A method page also has `Options`, its `Settings` under `method:` in the recipe, and `build`, which makes
    the method of options, a backbone and a seed. roles: the views it works on; optional_roles: those of
    them that a recipe may leave out; teacher_roles: those that the student does not see. backbones: what it
    works with, by their names in a recipe. schedule_first, peak_twice: how its paper's code counts schedules
    (`first` and `peak_twice` of `WarmupCosine`). per_rank_state: the buffers, by their names in the state
    dict, that differ between processes; those that are None do not count. afresh: how the names of
    entries begin that a run which goes on at an epoch of another one (`init.start_epoch` in a recipe) may
    not find there and then begins anew. of_images: how the names of entries begin that belong to the images
    of a run, by their number, and mean nothing for other images; they begin anew where they are not there.
    """

    roles: tuple[str, ...] = ()
    optional_roles: tuple[str, ...] = ()
    teacher_roles: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ("vit", "resnet", "swin", "cvt", "vil")
    schedule_first: int = 0
    peak_twice: bool = False
    per_rank_state: tuple[str, ...] = ()
    afresh: tuple[str, ...] = ()
    of_images: tuple[str, ...] = ("bank.", "assignments")
    student: nn.Module
    teacher: nn.Module

    def networks(self) -> dict[str, nn.Module]:
        """`student` and, where there is one, `teacher`."""
        return {name: child for name, child in self.named_children() if name in ("student", "teacher")}

    def allocate(self, extent: Extent) -> None:
        """Make the buffers whose size depends on the run. Called once, before anything is loaded."""

    def draws(self, generator: torch.Generator, batch: Batch) -> dict[str, Tensor]:
        """What the method draws for the whole global batch, keyed by the step."""
        return {}

    def groups(self) -> list[Group]:
        """The parameters to train, by how the optimizer treats them."""
        raise NotImplementedError

    def scheduled(self, at: Clock) -> dict[str, float]:
        """The method's own scheduled values of this step, for the record."""
        return {}

    def start_epoch(self, at: Clock, embed_dataset: Callable[..., Iterable[Any]]) -> None: ...

    def start_step(self, at: Clock) -> None: ...

    def encode_student(self, student: nn.Module, batch: Batch, at: Clock) -> Encoded:
        raise NotImplementedError

    def encode_teacher(self, batch: Batch, at: Clock) -> Encoded:
        return {}

    def loss(self, student: nn.Module, encoded: Encoded, target: Encoded, batch: Batch, at: Clock) -> Losses:
        raise NotImplementedError

    def before_update(self, at: Clock) -> None: ...

    def after_update(self, encoded: Encoded, losses: Losses, at: Clock) -> None: ...

    def export(self) -> Kept:
        """What to keep for use after training."""
        raise NotImplementedError


class MethodOptions(Settings):
    """Base of a method page's `Options`. prototypes_key: where a recipe says what `prototypes` tells of a
    method, how many there are. chunk_tables: tables of a chunk's logits that a loss holds which never holds
    them all (0: it holds them all)."""

    prototypes_key: ClassVar[str] = "method.prototypes"
    head_views: ClassVar[int] = 1
    """How many views of an image go through a head together in its smallest pass: rows for a BatchNorm there,
    which needs 2."""
    chunk_tables: ClassVar[int] = 0
    name: str
    """The method."""

    def in_steps(self, steps_per_epoch: int) -> MethodOptions:
        """The same options with durations, where they may be in steps or in epochs, in steps."""
        return self

    def mistakes(self, views: Mapping[str, tuple[int, int]]) -> list[tuple[str, str]]:
        """What does not fit these views, as (dotted key to change, words).

        views: {role: (how many, patches of one)}; only roles the method knows.
        """
        return []

    def unfit_views(self, views: Mapping[str, ViewSpec]) -> list[tuple[str, str]]:
        """What the method cannot have of how these views are made, as (dotted key to change, words)."""
        return []

    def num_seen(self, role: str, patches: int) -> int:
        """How many of the patches of a view of this role the student sees."""
        return patches

    def held(self, backbone: BackboneSpec, extent: Extent) -> list[Held]:
        """What the method holds, worked out before it is built. A method that does not say more is known by
        its backbone alone."""
        return [Held("backbone", trained=backbone.num_parameters, layers=backbone.num_layers)]

    def loss_values(self, backbone: BackboneSpec, views: Mapping[str, tuple[int, int]]) -> int:
        """Values of an image that heads and loss hold at their peak, of the whole batch at once.

        views: {role: (how many, patches of one)}.
        """
        return 4 * backbone.out_width * sum(count for count, _ in views.values())

    def misfits(self, extent: Extent) -> list[tuple[str, str]]:
        """What this run cannot have, as (dotted key to change, words)."""
        return []

    def unfit_start(self, epoch: int, *, epochs: int) -> list[tuple[str, str]]:
        """Why a run of `epochs` cannot go on at this epoch from weights alone, as (dotted key to change,
        words)."""
        return []

    def remarks(self, extent: Extent) -> list[tuple[str, str]]:
        """What this run makes of the options, as (what, value) rows of the plan's table."""
        return []

    def remedies(self, extent: Extent) -> Sequence[Remedy]:
        """What to change first against each kind of collapse, most promising first."""
        return STEADIER

    def doubts(self, extent: Extent) -> list[str]:
        """What is allowed and probably not meant in this run: `dotted key: words`."""
        return []
