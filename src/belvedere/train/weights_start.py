"""`init` with imported weights: a run that begins with what a published file has.

Without `init.start_epoch` a run of its own begins, at epoch 0 and with a fresh optimizer. With it the run
that the file is of goes on there: its schedules, and its optimizer where the file has the moments of one.
What the file lacks begins anew and is told by name; what it has must fit, or nothing begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from belvedere.core.errors import CheckpointError
from belvedere.core.match import mismatches
from belvedere.engine.agreement import agree
from belvedere.engine.moments import PREFIX, unflatten_optimizer_
from belvedere.nn.spec import BackboneSpec
from belvedere.recipe.schema import InitSpec
from belvedere.train.session import Session
from belvedere.zoo.continuing import Start, start_from

_HALVES = ("predictor", "projector")
"""Parts of a head of which a file may have one: teachers have no predictor."""
_QUEUE = "queue"
_FREE = ("drop_path", "mode", "position_margin", "widen", "width_per_group")
"""What may differ between the network of a file and the one that goes on, or shows in shapes."""


def start_with_weights(session: Session, init: InitSpec) -> None:
    """Fill the method, and with `init.start_epoch` step and optimizer, from the folder `init.from`.

    Adds to the session's notes what begins anew. Raises `CheckpointError` listing what does not fit, and
    `WeightsError` for a folder that cannot be read.
    """
    own = session.method.state_dict()
    started: list[Start] = []

    def read() -> list[str]:
        only = init.take == "backbone"
        started.append(start_from(init.directory, session.recipe.method.name, own, backbone_only=only))
        _refuse_another_network(init, session.recipe.backbone, started[0].card.backbone)
        return _fresh(init, own, started[0])

    fresh = agree(read)[0]
    start, epoch = started[0], init.start_epoch or 0
    if epoch and _QUEUE in fresh:
        raise CheckpointError(
            f"init.start_epoch: {init.directory} has no queue, and a run that goes on at epoch {epoch} would "
            "take an empty one as full; leave init.start_epoch out, or set method.queue=null"
        )
    session.method.load_state_dict(own | start.tensors)
    session.step = epoch * session.plan.steps_per_epoch
    optimizer = _fill_optimizer(session, start.moments) if epoch else "begins anew"
    session.notes.append(_told(session, init, start, _parts(fresh), optimizer))


def _refuse_another_network(init: InitSpec, ours: BackboneSpec, theirs: BackboneSpec) -> None:
    """Raise CheckpointError unless both compute the same of the same tensors: numbers of heads and windows do
    not show in shapes."""
    mine, other = (spec.model_dump() for spec in (ours, theirs))
    keys = [key for key in {**mine, **other} if key not in _FREE and mine.get(key) != other.get(key)]
    if keys:
        lines = "\n  ".join(f"backbone.{key}: {mine.get(key)}, in the file {other.get(key)}" for key in keys)
        raise CheckpointError(
            f"init.from: {init.directory} has another network than this recipe; change the recipe's, or, "
            f"where the file's was guessed wrongly, import it again with --as\n  {lines}"
        )


def _fresh(init: InitSpec, own: Mapping[str, Tensor], start: Start) -> list[str]:
    """The names that begin anew: all of a part or none of it."""
    there = {_part(name) for name in start.tensors}
    fresh = [name for name in own if _part(name) not in there]
    expected = {name: tuple(tensor.shape) for name, tensor in own.items() if _part(name) in there}
    found = {name: tuple(tensor.shape) for name, tensor in start.tensors.items()}
    if wrong := mismatches(expected, found):
        lines = "\n  ".join(wrong)
        instead = "" if init.take == "backbone" else ", or set init.take=backbone to leave its heads"
        raise CheckpointError(
            f"init.from: {init.directory} ({start.card.source}) does not fit this recipe; change its "
            f"backbone or the method's sizes to the file's{instead}\n  {lines}"
        )
    return fresh


def _part(name: str) -> str:
    """What is taken whole or not at all: a network's backbone or head, or an entry beside them."""
    words = name.split(".")
    if words[0] not in ("student", "teacher"):
        return words[0]
    return ".".join(words[: 3 if len(words) > 2 and words[2] in _HALVES else 2])


def _parts(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(_part(name) for name in names))


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


def _told(session: Session, init: InitSpec, start: Start, anew: list[str], optimizer: str) -> str:
    plan, epoch = session.plan, init.start_epoch or 0
    parts = [f"starting from the weights in {init.directory} ({start.card.source})"]
    parts.append(f"beginning anew: {', '.join(anew)}" if anew else "all of the method's state is in it")
    if start.left:
        parts.append(f"not taken: {', '.join(start.left)}")
    parts.append(f"the optimizer {optimizer}")
    if epoch:
        total = session.recipe.train.epochs
        parts.append(f"going on at epoch {epoch} of {total} (step {session.step:,} of {plan.total_steps:,})")
    return "; ".join(parts)
