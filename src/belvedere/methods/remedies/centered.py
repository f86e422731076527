"""What to change first when EsViT or Mugs collapses.

Centering spreads a teacher's targets and a low temperature sharpens them; then comes what steadies the last
layer, which is the authors' advice for a loss that does not fall; then the size of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from belvedere.engine.remedy import STEADIER, Remedy, larger_steps, smaller_steps, softer_crops
from belvedere.methods.method import Extent
from belvedere.methods.remedies.kinds import CONSTANT, DEAD, NOT_FINITE, TAKES_ALL, UNIFORM

_CLIP: Mapping[str, float | int | str] = {"kind": "per_tensor", "norm": 3.0, "from_epoch": 0}
_BOUNDED = (
    Remedy(NOT_FINITE, "optim.clip", "set", _CLIP, "one tensor's gradient cannot run away"),
    *STEADIER,
)


def of_crops_and_regions(extent: Extent) -> Sequence[Remedy]:
    """EsViT's."""
    frozen = "method.freeze_last_layer_epochs"
    return (
        *_slower_prototypes("method"),
        *smaller_steps(TAKES_ALL, "no published run has larger steps"),
        *_softer_targets("method"),
        Remedy(TAKES_ALL, "optim.lr.peak", "scale", 0.3, "large steps let the first prototype win"),
        *smaller_steps(CONSTANT, "steps of this size silence a network"),
        Remedy(CONSTANT, frozen, "raise", 1, "the network moves before its prototypes"),
        *_sharper_targets("method"),
        Remedy(CONSTANT, "optim.lr.peak", "scale", 0.3, "large steps can silence a network"),
        *_other_steps(extent),
        *_even_prototypes("method", extent),
        *softer_crops(UNIFORM),
        Remedy(UNIFORM, "optim.lr.peak", "scale", 0.3, "large steps undo each other"),
        *_BOUNDED,
    )


def of_granularities(extent: Extent, *, wanted: Iterable[str]) -> Sequence[Remedy]:
    """Mugs': where groups collapse, the other supervisions hold against it. wanted: those that there are."""
    wanted, apart = tuple(wanted), "what tells images apart cannot be constant"
    at = "method.group"
    of_groups = (
        *_slower_prototypes(at),
        *_softer_targets(at),
        *_sharper_targets(at),
        *_even_prototypes(at, extent),
    )
    return (
        *(
            Remedy(kind, f"method.{name}.weight", "raise", 1.0, apart)
            for kind in (CONSTANT, TAKES_ALL)
            for name in ("instance", "local_group")
        ),
        *smaller_steps(CONSTANT, "steps of this size silence a network"),
        *(
            Remedy(CONSTANT, f"method.{name}.head.batch_norm", "set", True, "it removes what all share")
            for name in wanted
        ),
        *(of_groups if "group" in wanted else ()),
        *smaller_steps(TAKES_ALL, "no published run has larger steps"),
        *_other_steps(extent),
        *softer_crops(UNIFORM),
        *(
            Remedy(kind, "optim.lr.peak", "scale", 0.3, "large steps leave no time to spread")
            for kind in (TAKES_ALL, CONSTANT, UNIFORM, DEAD)
        ),
        *_BOUNDED,
    )


# at: the section of the recipe that has these keys


def _slower_prototypes(at: str) -> Sequence[Remedy]:
    frozen, start = f"{at}.freeze_last_layer_epochs", f"{at}.teacher_temperature.start"
    return (
        Remedy(TAKES_ALL, f"{at}.center_momentum", "lower", 0.9, "the center follows sooner"),
        Remedy(TAKES_ALL, start, "raise", 0.04, "targets this sharp run ahead of the center"),
        Remedy(TAKES_ALL, frozen, "raise", 1, "the center is there before prototypes move"),
        Remedy(TAKES_ALL, f"{at}.head.norm_last_layer", "set", True, "no prototype outgrows the others"),
    )


def _softer_targets(at: str) -> Sequence[Remedy]:
    words = "softer targets share the prototypes out"
    return (Remedy(TAKES_ALL, f"{at}.teacher_temperature.final", "scale", 1.5, words),)


def _sharper_targets(at: str) -> Sequence[Remedy]:
    start, final = f"{at}.teacher_temperature.start", f"{at}.teacher_temperature.final"
    frozen = f"{at}.freeze_last_layer_epochs"
    return (
        Remedy(CONSTANT, final, "lower", 0.04, "soft targets are alike"),
        Remedy(UNIFORM, final, "lower", 0.07, "no published run has softer targets"),
        Remedy(UNIFORM, start, "lower", 0.04, "no published run begins with softer targets"),
        Remedy(UNIFORM, frozen, "raise", 1, "the network moves before its prototypes"),
        Remedy(UNIFORM, f"{at}.temperature", "lower", 0.1, "predictions this soft stay uniform"),
        Remedy(UNIFORM, final, "lower", 0.04, "sharper targets tell images apart sooner"),
    )


def _even_prototypes(at: str, extent: Extent) -> Sequence[Remedy]:
    few, norm, out = max(2, extent.global_batch), f"{at}.head.norm_last_layer", f"{at}.head.out"
    return (
        Remedy(UNIFORM, norm, "set", True, "all prototypes then weigh the same"),
        Remedy(UNIFORM, out, "lower", few, "a batch can then use them all"),
        Remedy(DEAD, norm, "set", True, "no prototype outgrows the others"),
        Remedy(DEAD, out, "lower", few, "a batch can then use them all"),
        Remedy(DEAD, out, "scale", 0.5, "there are fewer kinds of images"),
    )


def _other_steps(extent: Extent) -> Sequence[Remedy]:
    small = "steps of this size change nothing in time"
    return (
        *smaller_steps(UNIFORM, "steps of this size undo each other"),
        *larger_steps(UNIFORM, small, total_steps=extent.total_steps),
    )
