"""Which kind of collapse a run's logged numbers show, since when, and by what evidence: pure functions.

Every healthy run begins near ln K, many with embeddings that point one way. So nothing is said before the
learning rate has warmed up, nor before a sign has lasted for a stretch of steps (`Patience`); and a sign that
has come is gone only when the number is well clear of the threshold it crossed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from belvedere.engine.remedy import Kind

Numbers = Mapping[str, float]
_EXPLODED = 100.0  # times the usual gradient norm
_IN_A_ROW = 3  # logged steps with such a norm; one alone is a spike that clipping takes care of
_ENOUGH = 10  # logged steps that make a norm usual
_LEARNS = 0.3  # nats below ln K that tell a run which learns
_ENTROPY_FOR_LOSS = 3.0  # a prediction's entropy is stricter than the loss: 0.02 nats stand for 0.05


@dataclass(frozen=True)
class Reading:
    """The numbers of one logged step. step: counted from 0; numbers: as `Measures` names them, with
    `grad_norm` and, where enough images have been seen to tell, `share_in_use`."""

    step: int
    numbers: Numbers


@dataclass(frozen=True)
class Patience:
    """grace_steps: of a run, before which nothing is said. steps: for how long a sign must last."""

    grace_steps: int
    steps: int

    @classmethod
    def of(
        cls, *, total_steps: int, steps_per_epoch: int, warmup_steps: int, log_every_steps: int
    ) -> Patience:
        """A twentieth of the run, but no more than two epochs (or 500 steps, where epochs are short), and no
        less than 50 steps or five readings. Grace is as long, or as the warm-up, but never more than half of
        the run, so that a short one is told too."""
        long_enough = max(500, 2 * steps_per_epoch)
        steps = max(50, 5 * log_every_steps, min(total_steps // 20, long_enough))
        return cls(min(max(warmup_steps, steps), max(steps, total_steps // 2)), steps)


@dataclass(frozen=True)
class Finding:
    """What is wrong, since which step, seen at which; evidence: in words, with the numbers."""

    kind: Kind
    since: int
    step: int
    evidence: str


@dataclass(frozen=True)
class _Sign:
    """Two thresholds of one number: at or beyond `bad` it is a sign, at or beyond `well` it is none."""

    kind: Kind
    value: Callable[[Numbers], float | None]
    bad: float
    well: float
    evidence: Callable[[Numbers], str]

    def is_bad(self, numbers: Numbers) -> bool:
        value = self.value(numbers)
        return value is not None and value >= self.bad

    def is_well(self, numbers: Numbers) -> bool:
        """Also where it cannot be told."""
        value = self.value(numbers)
        return value is None or value <= self.well


def diagnose(history: Sequence[Reading], patience: Patience) -> Finding | None:
    """The first kind, causes before consequences, that the latest readings show for long enough."""
    if not history:
        return None
    found = _not_finite(history) or _exploding(history)
    if found is not None or history[-1].step < patience.grace_steps:
        return found
    now, numbers = history[-1].step, history[-1].numbers
    for sign in _SIGNS:
        since = _bad_since(history, sign)
        if since is not None:
            if now - since >= patience.steps and sign.is_bad(numbers) and _stays(history, sign, patience):
                return Finding(sign.kind, since, now, sign.evidence(numbers))
            return None  # what comes after it in the list may be what it brings about
    return None


def recovered(history: Sequence[Reading], finding: Finding, patience: Patience) -> bool:
    """Whether the sign of an earlier finding has been gone for half of the patience."""
    now = history[-1].step
    if finding.kind == "non-finite values":
        return (
            _not_finite(history) is None and _exploding(history) is None and _rested(now, finding, patience)
        )
    (sign,) = (sign for sign in _SIGNS if sign.kind == finding.kind)
    since = now
    for reading in reversed(history):
        if not sign.is_well(reading.numbers):
            break
        since = reading.step
    else:
        return True
    return now - since >= patience.steps / 2


def _rested(now: int, finding: Finding, patience: Patience) -> bool:
    return now - finding.step >= patience.steps / 2


def _bad_since(history: Sequence[Reading], sign: _Sign) -> int | None:
    """The step at which the sign came, if it has not been gone since."""
    since = None
    for reading in reversed(history):
        if sign.is_well(reading.numbers):
            break
        if sign.is_bad(reading.numbers):
            since = reading.step
    return since


def _stays(history: Sequence[Reading], sign: _Sign, patience: Patience) -> bool:
    """Whether the sign would still be there after as long again, if the number went on as it lately did.

    A run that is slowly leaving ln K is not stuck.
    """
    now = history[-1].step
    window = []
    for reading in reversed(history):
        if now - reading.step > patience.steps:
            break
        value = sign.value(reading.numbers)
        window += [] if value is None else [value]
    quarter = max(1, len(window) // 4)
    last, first = statistics.fmean(window[:quarter]), statistics.fmean(window[-quarter:])
    return last + (last - first) >= sign.bad


def _not_finite(history: Sequence[Reading]) -> Finding | None:
    last = history[-1]
    names = [name for name, value in last.numbers.items() if not math.isfinite(value)]
    if not names:
        return None
    evidence = f"{', '.join(names)}: not a finite number; {_trend(history[:-1])}"
    return Finding("non-finite values", last.step, last.step, evidence)


def _exploding(history: Sequence[Reading]) -> Finding | None:
    """Gradients far beyond what this run had: values that are not finite are near."""
    if len(history) < _ENOUGH + _IN_A_ROW:
        return None
    norms = [reading.numbers.get("grad_norm", math.nan) for reading in history]
    usual = statistics.median(norms[:-_IN_A_ROW])
    if not usual > 0 or not all(norm > _EXPLODED * usual for norm in norms[-_IN_A_ROW:]):
        return None
    since, now = history[-_IN_A_ROW].step, history[-1].step
    evidence = f"about to: the gradient norm is {norms[-1]:.3g} and was {usual:.3g} until step {since}"
    return Finding("non-finite values", since, now, evidence)


def _trend(history: Sequence[Reading]) -> str:
    """How the gradient norm grew before."""
    norms = [reading.numbers["grad_norm"] for reading in history if "grad_norm" in reading.numbers]
    if not norms:
        return "it came before the first logged step"
    usual = statistics.median(norms)
    return f"the gradient norm was {norms[-1]:.3g} at step {history[-1].step}, {usual:.3g} in the median"


def _above_equal_share(n: Numbers) -> float:
    """The largest prototype's share of the mean target or prediction, from 0 (equal shares) to 1 (all).

    Predictions that agree while their targets, shared out equally, do not, are no trivial solution: the loss
    is above ln K then, and what makes all images look alike is the cause.
    """
    equal = math.exp(-n["ln_k"])
    agreed = n["top_share"] if n["cross_entropy"] < n["ln_k"] else 0.0
    return (max(agreed, n.get("top_target", 0.0)) - equal) / (1 - equal)


def _takes_all(n: Numbers) -> str:
    return (
        f"one of {_k(n)} prototypes has {n['top_share']:.1%} of the mean prediction"
        + (f" and one {n['top_target']:.1%} of the mean target" if "top_target" in n else "")
        + f"; to agree on it the cross-entropy, {n['cross_entropy']:.3f}, needs nothing of the images"
    )


def _constant(n: Numbers) -> str:
    return (
        f"embeddings of different images point the same way (spread {n['spread']:.4f}, effective rank "
        f"{n['effective_rank']:.1f}); views of one image agree to {n['agreement']:.4f} and would anyway"
    )


def _uniform(n: Numbers) -> str:
    return (
        f"the cross-entropy is {n['cross_entropy']:.3f}, a uniform guess has ln {_k(n)} = {n['ln_k']:.3f}; "
        f"one prediction has {n['single_entropy']:.1%} of its entropy; embeddings have spread "
        f"{n['spread']:.2f} and effective rank {n['effective_rank']:.1f}"
    )


def _dead(n: Numbers) -> str:
    return (
        f"{n['share_in_use']:.1%} of {_k(n)} prototypes are any view's first choice, and the mean prediction "
        f"is as uneven as one shared by {_even_share(n):.1%}"
    )


def _unused(n: Numbers) -> float | None:
    """Minus the share of prototypes in use, by first choices or by mass, whichever has more; None where it
    cannot be told.

    A run whose predictions are still soft may prefer a few prototypes and give all of them their mass: it
    finds the others later.
    """
    return -max(n["share_in_use"], _even_share(n)) if "share_in_use" in n else None


def _even_share(n: Numbers) -> float:
    """How many prototypes with equal mass have the mean prediction's entropy, as a share of K."""
    return math.exp((n["prediction_entropy"] - 1) * n["ln_k"])


def _at_ln_k(n: Numbers) -> float:
    """The loss above ln K in nats; where it is a little below, but one prediction is all but uniform, how
    little the entropy of that is below ln K.

    Predictions too soft to say anything may be a tenth of a nat below ln K and stay there. With many
    prototypes one prediction may look uniform in a run that learns, so that the loss decides from 0.3 on.
    """
    loss = n["cross_entropy"] - n["ln_k"]
    if loss < -_LEARNS:
        return loss
    return max(loss, _ENTROPY_FOR_LOSS * n["ln_k"] * (n["single_entropy"] - 1))


def _k(n: Numbers) -> int:
    return round(math.exp(n["ln_k"]))


_SIGNS = (
    _Sign("one prototype takes all", _above_equal_share, 0.5, 0.3, _takes_all),
    _Sign("constant embedding", lambda n: -n["spread"], -0.03, -0.08, _constant),
    _Sign("uniform assignment", _at_ln_k, -0.05, -0.15, _uniform),
    _Sign("dead prototypes", _unused, -0.6, -0.68, _dead),
)
