"""`init` with weights: a run that begins with what an import, an exported folder or another run has.

Without `init.start_epoch` a run of its own begins, at epoch 0, its schedules laid out over the whole of it
and with a fresh optimizer. With it (imported weights alone; a run goes on by `takeover`) the run that the
file is of goes on there: its schedules, and its optimizer where the file has the moments of one.

A backbone must fit. Heads, prototypes, centers, queues and banks are taken where they fit, a part whole or
not at all; what is taken, what begins anew and why, and what is left are told by name, with counts. Where a
run goes on, everything there must fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from belvedere.core.errors import CheckpointError
from belvedere.core.match import mismatches
from belvedere.engine import state
from belvedere.engine.agreement import agree
from belvedere.engine.moments import PREFIX, unflatten_optimizer_
from belvedere.engine.state import Found
from belvedere.nn.spec import BackboneSpec
from belvedere.recipe.schema import InitSpec, Recipe
from belvedere.train.directory import read_recipe_of
from belvedere.train.run_state import entries, foreign
from belvedere.train.session import METHOD_PREFIX, Session
from belvedere.zoo.continuing import Start, start_from

_HALVES = ("predictor", "projector")
"""Parts of a head of which a file may have one: teachers have no predictor."""
_BACKBONES = ("student.backbone", "teacher.backbone")
_QUEUE = "queue"
_FREE = ("drop_path", "mode", "position_margin", "widen", "width_per_group")
"""What may differ between the network of a file and the one that goes on, or shows in shapes."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class _Fit:
    """Which parts of a method's state are taken, {part: tensors}; which begin anew, {part: why}; and what is
    there and not taken, {what: tensors}."""

    taken: dict[str, int] = field(default_factory=dict)
    anew: dict[str, str] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    def takes(self, name: str) -> bool:
        return _part(name) in self.taken


# From imported or exported weights


def start_with_weights(session: Session, init: InitSpec, folder: Path) -> None:
    """Fill the method, and with `init.start_epoch` step and optimizer, from a `folder` of weights and card.

    Adds to the session's notes what is taken and what is not. Raises `CheckpointError` listing what does not
    fit, and `WeightsError` for a folder that cannot be read.
    """
    own = session.method.state_dict()
    started: list[Start] = []

    def look() -> _Fit:
        only = init.take == "backbone"
        started.append(start_from(folder, session.recipe.method.name, own, backbone_only=only))
        start = started[0]
        _refuse_another_network(
            f"{folder}",
            session.recipe.backbone,
            start.card.backbone,
            guessed="; where it was guessed wrongly, import the file again with --as",
        )
        fit = _fitted(f"{folder} ({start.card.source})", own, _shapes(start.tensors), strict=init.start_epoch)
        fit.left |= start.left
        return fit

    fit = agree(look)[0]
    start, epoch = started[0], init.start_epoch or 0
    if epoch and _QUEUE in fit.anew:
        raise CheckpointError(
            f"init.start_epoch: {folder} has no queue, and a run that goes on at epoch {epoch} would "
            "take an empty one as full; leave init.start_epoch out, or set method.queue=null"
        )
    session.method.load_state_dict(own | {name: t for name, t in start.tensors.items() if fit.takes(name)})
    session.step = epoch * session.plan.steps_per_epoch
    optimizer = _fill_optimizer(session, start.moments) if epoch else "begins anew"
    if start.moments and not epoch:
        fit.left["moments of the optimizer"] = len(start.moments)
    session.notes.append(_told(session, f"the weights in {folder} ({start.card.source})", fit, optimizer))


# From a run


def start_with_run(session: Session, init: InitSpec, found: Found) -> None:
    """Fill the method from a checkpoint of a run of any method; a run of its own begins.

    Of a run of the same method all parts that fit are taken; of another's, and with `init.take: backbone`,
    the backbone that the run keeps. Adds to the session's notes what is taken and what is not. Raises
    `CheckpointError` if the backbone does not fit, or the run's recipe cannot be read.
    """
    directory = found.path.parent.parent
    before = agree(lambda: read_recipe_of(directory), only_main=True)[0]
    _refuse_another_network(f"{directory}", session.recipe.backbone, before.backbone)
    own, tensors = session.method.state_dict(), found.manifest["tensors"]
    stored = entries(session, found)
    whole = before.method.name == session.recipe.method.name and init.take == "all"
    chosen = stored if whole else _kept_backbone(own, stored)
    reason = foreign(session, found) if whole else None
    of_images = session.method.of_images if reason else ()
    chosen = {
        name: there for name, there in chosen.items() if not of_images or not name.startswith(of_images)
    }
    shapes = {name: tuple(tensors[there]["shape"]) for name, there in chosen.items()}
    fit = agree(lambda: _fitted(f"{found.path}", own, shapes, strict=None))[0]
    fit.anew |= {part: reason for part in fit.anew if reason and f"{part}.".startswith(of_images)}
    _leave(fit, stored, chosen, tensors)
    read = state.read(found, dict.fromkeys(there for name, there in chosen.items() if fit.takes(name)))
    session.method.load_state_dict(
        own | {name: read[there] for name, there in chosen.items() if fit.takes(name)}
    )
    session.notes += [f"skipped {path}: {why}" for path, why in found.skipped]
    session.notes.append(_told(session, _origin(before, found, init), fit, "begins anew"))


def _kept_backbone(own: Iterable[str], stored: Mapping[str, str]) -> dict[str, str]:
    """The backbone that a run's method keeps, for every network that there is now: the teacher's, where that
    run has one."""
    kept = max(
        ("student.backbone.", "teacher.backbone."), key=lambda p: (any(n.startswith(p) for n in stored), p)
    )
    backbone = {name.removeprefix(kept): there for name, there in stored.items() if name.startswith(kept)}
    networks = [prefix for prefix in _BACKBONES if any(name.startswith(f"{prefix}.") for name in own)]
    return {f"{prefix}.{name}": there for prefix in networks for name, there in backbone.items()}


def _leave(fit: _Fit, stored: Mapping[str, str], chosen: Mapping[str, str], tensors: Iterable[str]) -> None:
    """Note what a checkpoint has that is not taken, by its parts; and the optimizer's moments."""
    taken = {there for name, there in chosen.items() if fit.takes(name)}
    fit.left = {}
    for name, there in stored.items():
        if there not in taken:
            fit.left[_part(name)] = fit.left.get(_part(name), 0) + 1
    known = set(stored.values())
    others = [name for name in tensors if name not in known and not name.startswith(PREFIX)]
    others = [name for name in others if f"/{METHOD_PREFIX}" in name and not _counterpart(name, known)]
    if others:
        fit.left["state of single processes"] = len(others)
    if moments := sum(name.startswith(PREFIX) for name in tensors):
        fit.left["moments of the optimizer"] = moments


def _counterpart(name: str, known: set[str]) -> bool:
    """Whether another process's entry is one that this process takes from its own counterpart."""
    own = name.partition("/")[2]
    return any(one.partition("/")[2] == own for one in known if one.startswith("rank"))


def _origin(before: Recipe, found: Found, init: InitSpec) -> str:
    return (
        f"the weights of the run in {init.directory} (checkpoint {found.path.name} of {before.name}, "
        f"{before.method.name}, {before.train.epochs} epochs)"
    )


# What fits, and how it is told


def _refuse_another_network(
    where: str, ours: BackboneSpec, theirs: BackboneSpec, *, guessed: str = ""
) -> None:
    """Raise CheckpointError unless both compute the same of the same tensors: numbers of heads and windows do
    not show in shapes."""
    mine, other = (spec.model_dump() for spec in (ours, theirs))
    keys = [key for key in {**mine, **other} if key not in _FREE and mine.get(key) != other.get(key)]
    if ours.name != theirs.name:  # the other keys of one mean nothing to the other
        raise CheckpointError(
            f"init.from: {where} has another network than this recipe: its backbone.name is {theirs.name}, "
            f"the recipe's {ours.name}; take a recipe with a {theirs.name} (`belvedere recipes --backbone "
            f"{theirs.name}`)"
        )
    if keys:
        lines = "\n  ".join(f"backbone.{key}: {mine.get(key)}, in the file {other.get(key)}" for key in keys)
        raise CheckpointError(
            f"init.from: {where} has another network than this recipe; "
            f"change the recipe's{guessed}\n  {lines}"
        )


def _fitted(where: str, own: Mapping[str, Tensor], there: Shapes, *, strict: int | None) -> _Fit:
    """What of `there` is taken: a part of the method's state whole or not at all.

    strict: an epoch at which a run goes on, where sizes may not differ. Raises CheckpointError for a backbone
    that does not fit, and for any part if strict.
    """
    fit, wrong = _Fit(), []
    parts = dict.fromkeys(map(_part, own))
    for part in parts:
        expected = {name: tuple(tensor.shape) for name, tensor in own.items() if _part(name) == part}
        found = {name: shape for name, shape in there.items() if _part(name) == part}
        differ = mismatches(expected, found)
        if not found:
            fit.anew[part] = "not there"
        elif not differ:
            fit.taken[part] = len(expected)
        elif strict or part in _BACKBONES:
            wrong += differ
        else:
            fit.anew[part] = "; ".join(differ)
    for name in there:
        if (part := _part(name)) not in fit.taken:
            fit.left[part] = fit.left.get(part, 0) + 1
    strangers = sorted(name for name in there if _part(name) not in parts)
    if strict and strangers:
        wrong += mismatches({}, {name: there[name] for name in strangers})
    if wrong:
        lines = "\n  ".join(wrong)
        instead = ", or set init.take=backbone to leave its heads" if strict else ""
        raise CheckpointError(
            f"init.from: {where} does not fit this recipe; change its backbone or the method's sizes to "
            f"those there{instead}\n  {lines}"
        )
    return fit


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _part(name: str) -> str:
    """What is taken whole or not at all: a network's backbone or head, or an entry beside them."""
    words = name.split(".")
    if words[0] not in ("student", "teacher"):
        return words[0]
    return ".".join(words[: 3 if len(words) > 2 and words[2] in _HALVES else 2])


def _fill_optimizer(session: Session, moments: Mapping[str, Tensor]) -> str:
    """Give the optimizer the file's moments if it has the like; what became of it, in words."""
    if not moments:
        return "begins anew, since the file has no moments that could be told apart"
    names = {parameter: name for name, parameter in session.method.named_parameters()}
    held = {names[p]: p for group in session.optimizer.param_groups for p in group["params"]}
    owners = {name.removeprefix(PREFIX).rpartition("/")[0] for name in moments}
    has_adam = any(name.endswith("/exp_avg") for name in moments)
    is_adam = "betas" in session.optimizer.defaults
    if has_adam != is_adam:
        return f"begins anew, since {session.recipe.optim.name} has other moments than the file's"
    if strangers := sorted(owners - held.keys()):
        return f"begins anew, since this recipe does not train {', '.join(strangers[:3])}"
    fitted = {}
    for name, moment in moments.items():
        owner = held[name.removeprefix(PREFIX).rpartition("/")[0]]
        fitted[name] = moment if name.endswith("/step") else moment.to(owner.dtype)
    unflatten_optimizer_(session.optimizer, names, fitted)
    return f"goes on with the moments of {len(owners)} tensors"


def _told(session: Session, origin: str, fit: _Fit, optimizer: str) -> str:
    """One note of several lines: from what, taken, anew, left, optimizer and schedules."""
    plan, total = session.plan, session.recipe.train.epochs
    epoch = session.step // plan.steps_per_epoch
    lines = [f"starting from {origin}", f"taken: {_counted(fit.taken)}"]
    if fit.anew:
        lines.append(f"beginning anew: {', '.join(f'{part} ({why})' for part, why in fit.anew.items())}")
    else:
        lines.append("all of the method's state is in it")
    if fit.left:
        lines.append(f"not taken: {_counted(fit.left)}")
    lines.append(f"the optimizer {optimizer}")
    where = f"epoch {epoch} of {total} (step {session.step:,} of {plan.total_steps:,})"
    lines.append(f"going on at {where}" if epoch else f"the schedules are laid out anew, from {where}")
    return "\n  ".join(lines)


def _counted(parts: Mapping[str, int]) -> str:
    named = [f"{part} ({count} tensor{'s' * (count != 1)})" for part, count in parts.items()]
    return ", ".join(named) if named else "nothing"
