"""What to change first when MSN collapses."""

from __future__ import annotations

from collections.abc import Sequence

from belvedere.engine.remedy import STEADIER, Remedy
from belvedere.methods.method import Extent
from belvedere.methods.remedies.kinds import CONSTANT, DEAD, NOT_FINITE, TAKES_ALL, UNIFORM


def against_collapse(extent: Extent) -> Sequence[Remedy]:
    """Balance first (Sinkhorn, me-max), then the temperatures, then the size of a step."""
    shared = "targets then share the prototypes out"
    kept_up = "it keeps the entropy of the mean prediction high (MSN, equation 1)"
    few, enough = max(2, extent.global_batch // 4), 5e-3 if extent.total_steps < 10_000 else 1e-3
    return (
        Remedy(TAKES_ALL, "method.sinkhorn_iterations", "raise", 3, shared),
        Remedy(TAKES_ALL, "method.memax_weight", "raise", 1.0, kept_up),
        Remedy(TAKES_ALL, "method.sharpen", "raise", _both(0.25), "targets this sharp run ahead"),
        Remedy(TAKES_ALL, "optim.lr.peak", "scale", 0.3, "large steps let the first prototype win"),
        Remedy(CONSTANT, "optim.lr.peak", "lower", 0.01, "steps of this size silence a network"),
        Remedy(CONSTANT, "method.head.batch_norm", "set", True, "it removes what all images share"),
        Remedy(CONSTANT, "method.memax_weight", "raise", 1.0, kept_up),
        Remedy(CONSTANT, "method.sharpen", "lower", _both(0.15), "soft targets are alike"),
        Remedy(CONSTANT, "optim.lr.peak", "scale", 0.3, "large steps can silence a network"),
        Remedy(UNIFORM, "optim.lr.peak", "lower", 0.01, "steps of this size undo each other"),
        Remedy(UNIFORM, "method.temperature", "lower", 0.1, "predictions this soft stay uniform"),
        Remedy(UNIFORM, "method.sharpen", "lower", _both(0.25), "balanced targets this soft are uniform"),
        Remedy(UNIFORM, "optim.lr.peak", "raise", enough, "steps of this size change nothing in time"),
        Remedy(UNIFORM, "method.sharpen", "lower", _both(0.15), "sharper targets tell images apart sooner"),
        Remedy(UNIFORM, "method.prototypes", "lower", few, "each then has four images of a batch"),
        Remedy(UNIFORM, "optim.lr.peak", "scale", 0.3, "large steps undo each other"),
        Remedy(DEAD, "method.sinkhorn_iterations", "raise", 3, shared),
        Remedy(DEAD, "method.memax_weight", "raise", 1.0, kept_up),
        Remedy(DEAD, "method.prototypes", "lower", few, "a batch can then use them all"),
        Remedy(DEAD, "method.prototypes", "scale", 0.5, "there are fewer kinds of images"),
        Remedy(NOT_FINITE, "optim.lr.peak", "lower", 0.01, "steps of this size overflow"),
        *STEADIER,
    )


def _both(value: float) -> dict[str, float]:
    return {"start": value, "final": value}
