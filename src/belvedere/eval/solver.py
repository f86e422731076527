"""Many l2-regularized multinomial logistic regressions at once, each solved until a certificate says so.

Limited-memory BFGS over a batch of problems of equal shape. The first metric of every step is the diagonal of
an averaged Hessian, which after a rotation of the rows into their principal axes is nearly the Hessian
itself; the line search works on logits, so a step costs two matrix products. Problems that are done leave the
batch.

The objective is lambd-strongly convex, therefore |gradient|^2 / (2 lambd) bounds its distance from the
minimum: that bound, relative to the objective, is what `tolerance` limits.

P problems, n rows, r columns, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from belvedere.core.errors import EvaluationError

TOLERANCE = 1e-10
MAX_ITERATIONS = 2000
_HISTORY = 8
_MAX_LINE_STEPS = 50
_ELEMENTS = 1 << 22  # logits held at once; larger batches of problems are solved in parts


class Solution(NamedTuple):
    """weights [P, r, C]; value [P], the objective; gap [P], the bound on its relative distance from the
    minimum; iterations, of the slowest problem."""

    weights: Tensor
    value: Tensor
    gap: Tensor
    iterations: int


@dataclass
class _State:
    """Every tensor of a batch of problems, so that finished ones can be dropped in one place."""

    x: Tensor  # [P, n, r]
    y: Tensor  # [P, n, 1]
    row_weight: Tensor  # [P, n]
    lambd: Tensor  # [P]
    w: Tensor  # [P, r, C]
    logits: Tensor  # [P, n, C]
    index: Tensor  # [P] position in the caller's batch
    steps: list[Tensor]  # of [P, r, C]: w(i+1) - w(i)
    changes: list[Tensor]  # of [P, r, C]: gradient(i+1) - gradient(i)

    def keep(self, rows: Tensor) -> _State:
        part = {name: tensor[rows] for name, tensor in vars(self).items() if isinstance(tensor, Tensor)}
        return _State(
            **part,
            steps=[step[rows] for step in self.steps],
            changes=[change[rows] for change in self.changes],
        )


def solve(
    x: Tensor,
    y: Tensor,
    *,
    lambd: Tensor,
    start: Tensor,
    row_weight: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> Solution:
    """Minimize sum_i row_weight_i CE(x_i W, y_i) + lambd/2 |W|^2 over W for each of P problems.

    x [P, n, r] float64, y [P, n] int64, lambd [P] > 0, start [P, r, C], row_weight [P, n] (default 1; 0
    leaves a row out). Raises EvaluationError when a problem's gap stays above `tolerance`.
    """
    if row_weight is None:
        row_weight = torch.ones_like(x[..., 0])
    part = max(1, _ELEMENTS // max(1, x.shape[1] * start.shape[2]))
    solutions = [
        _solve_part(
            *(tensor[first : first + part] for tensor in (x, y, lambd, start, row_weight)),
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
        for first in range(0, x.shape[0], part)
    ]
    weights, value, gap = (
        torch.cat([getattr(s, name) for s in solutions]) for name in ("weights", "value", "gap")
    )
    return Solution(weights, value, gap, max(s.iterations for s in solutions))


def _solve_part(
    x: Tensor,
    y: Tensor,
    lambd: Tensor,
    start: Tensor,
    row_weight: Tensor,
    *,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    solved = start.clone()
    index = torch.arange(x.shape[0], device=x.device)
    state = _State(x, y[..., None], row_weight, lambd, start.clone(), x @ start, index, [], [])
    value, gradient, p = _objective(state)
    iteration = 0
    while True:
        open_ = ~(_gap(value, gradient, state.lambd) <= tolerance)  # a NaN stays open
        solved[state.index[~open_]] = state.w[~open_]
        if iteration == max_iterations or not bool(open_.any()):
            break
        if not bool(open_.all()):
            state, value, gradient, p = state.keep(open_), value[open_], gradient[open_], p[open_]
        moved = _step_(state, value, gradient, p)
        before = gradient
        value, gradient, p = _objective(state)
        _remember_(state, moved, gradient - before)
        iteration += 1
    solved[state.index[open_]] = state.w[open_]
    final = _State(x, y[..., None], row_weight, lambd, solved, x @ solved, index, [], [])
    value, gradient, _ = _objective(final)
    gap = _gap(value, gradient, lambd)
    _certify(gap, lambd, tolerance=tolerance, iterations=iteration)
    return Solution(solved, value, gap, iteration)


def _certify(gap: Tensor, lambd: Tensor, *, tolerance: float, iterations: int) -> None:
    # twice: the logits of the loop are sums of steps, these are computed afresh
    failed = ~(gap <= 2.0 * tolerance)
    if bool(failed.any()):
        worst = int(torch.nan_to_num(gap, nan=float("inf")).argmax())
        raise EvaluationError(
            f"logistic regression did not converge: {int(failed.sum())} of {len(gap)} fits have a relative "
            f"gap above "
            f"{tolerance:g} after {iterations} iterations (worst {float(gap[worst]):.3g} at lambda "
            f"{float(lambd[worst]):g}); a larger --lambda converges faster, and features must be finite "
            f"numbers"
        )


def _gap(value: Tensor, gradient: Tensor, lambd: Tensor) -> Tensor:
    bound = gradient.square().sum((1, 2)) / (2.0 * lambd)
    return bound / value.clamp_min(torch.finfo(value.dtype).tiny)


def _objective(state: _State) -> tuple[Tensor, Tensor, Tensor]:
    """Value [P], gradient [P, r, C] and probabilities [P, n, C] at the current weights."""
    log_p = log_softmax(state.logits, dim=-1)
    cross_entropy = -(state.row_weight * log_p.gather(2, state.y)[..., 0]).sum(1)
    value = cross_entropy + 0.5 * state.lambd * state.w.square().sum((1, 2))
    p = log_p.exp()
    residual = p.scatter_add(2, state.y, torch.full_like(state.y, -1, dtype=p.dtype))
    residual *= state.row_weight[..., None]
    gradient = torch.baddbmm(state.w * state.lambd[:, None, None], state.x.mT, residual)
    return value, gradient, p


def _step_(state: _State, value: Tensor, gradient: Tensor, p: Tensor) -> Tensor:
    """Move w and logits along the quasi-Newton direction; returns the move [P, r, C]."""
    direction = -_inverse_hessian_times(state, gradient, _metric(state, p))
    slope = (direction * gradient).sum((1, 2))
    uphill = ~(slope < 0)
    if bool(uphill.any()):  # rounding spoiled the history; steepest descent is always downhill
        direction = torch.where(uphill[:, None, None], -gradient, direction)
        slope = (direction * gradient).sum((1, 2))
    along = state.x @ direction  # [P, n, C]
    length = _line_search(state, value, slope, direction, along)[:, None, None]
    state.logits = state.logits + length * along
    move = length * direction
    state.w = state.w + move
    return move


def _metric(state: _State, p: Tensor) -> Tensor:
    """The inverse of the averaged Hessian's diagonal [P, r, 1]."""
    classes = p.shape[2]
    uncertainty = (1.0 - p.square().sum(2)) / max(
        1, classes - 1
    )  # [P, n]: mean eigenvalue of diag(p) - p p^T
    total = state.row_weight.sum(1).clamp_min(torch.finfo(p.dtype).tiny)
    mean = (uncertainty * state.row_weight).sum(1) / total
    energy = torch.bmm(state.row_weight[:, None, :], state.x.square())[:, 0]  # [P, r]
    return 1.0 / (mean[:, None] * energy + state.lambd[:, None])[..., None]


def _inverse_hessian_times(state: _State, gradient: Tensor, metric: Tensor) -> Tensor:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4)."""
    q = gradient
    pairs = []
    for step, change in zip(reversed(state.steps), reversed(state.changes), strict=True):
        curvature = (step * change).sum((1, 2))
        # a pair lost to rounding (no curvature) is left out for its problem alone
        rho = torch.where(curvature > 0, 1.0 / curvature, torch.zeros_like(curvature))
        alpha = rho * (step * q).sum((1, 2))
        q = q - alpha[:, None, None] * change
        pairs.append((step, change, rho, alpha))
    q = metric * q
    for step, change, rho, alpha in reversed(pairs):
        beta = rho * (change * q).sum((1, 2))
        q = q + (alpha - beta)[:, None, None] * step
    return q


def _remember_(state: _State, step: Tensor, change: Tensor) -> None:
    state.steps.append(step)
    state.changes.append(change)
    if len(state.steps) > _HISTORY:
        del state.steps[0], state.changes[0]


def _line_search(state: _State, value: Tensor, slope: Tensor, direction: Tensor, along: Tensor) -> Tensor:
    """Step lengths [P] where the convex objective decreases enough and its slope has halved.

    Brackets the minimum along the line by the sign of the slope: doubling, then the secant kept off the ends.
    """
    length = torch.ones_like(value)
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    low_slope, high_slope = slope.clone(), torch.zeros_like(value)
    todo = torch.arange(len(value), device=value.device)
    for _ in range(_MAX_LINE_STEPS):
        t = length[todo]
        new_value, new_slope = _along_line(state, todo, t, direction, along)
        rounding = 1e-14 * value[todo].abs()
        enough = new_value <= value[todo] + 1e-4 * t * slope[todo] + rounding
        done = enough & (new_slope.abs() <= 0.5 * slope[todo].abs())
        beyond = (new_slope > 0) | ~enough
        low[todo], low_slope[todo] = (
            torch.where(beyond, low[todo], t),
            torch.where(beyond, low_slope[todo], new_slope),
        )
        high[todo] = torch.where(beyond, t, high[todo])
        high_slope[todo] = torch.where(beyond, new_slope, high_slope[todo])
        todo = todo[~done]
        if not len(todo):
            break
        length[todo] = _next_length(low[todo], high[todo], low_slope[todo], high_slope[todo])
    return length


def _next_length(low: Tensor, high: Tensor, low_slope: Tensor, high_slope: Tensor) -> Tensor:
    width = high - low
    secant = low - low_slope * width / (high_slope - low_slope)
    inside = torch.minimum(torch.maximum(secant, low + 0.1 * width), high - 0.1 * width)
    bounded = torch.where(high_slope > 0, inside, low + 0.5 * width)
    return torch.where(high.isinf(), 2.0 * low, bounded)


def _along_line(
    state: _State, rows: Tensor, t: Tensor, direction: Tensor, along: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and slope [len(rows)] at w + t direction, from logits alone."""
    whole = len(rows) == len(state.w)
    y, weight, w, d, dz, z, lambd = (
        tensor if whole else tensor[rows]
        for tensor in (state.y, state.row_weight, state.w, direction, along, state.logits, state.lambd)
    )
    log_p = log_softmax(z + t[:, None, None] * dz, dim=-1)
    cross_entropy = -(weight * log_p.gather(2, y)[..., 0]).sum(1)
    change = (log_p.exp() * dz).sum(2) - dz.gather(2, y)[..., 0]  # [P, n]
    ww, wd, dd = w.square().sum((1, 2)), (w * d).sum((1, 2)), d.square().sum((1, 2))
    value = cross_entropy + 0.5 * lambd * (ww + 2.0 * t * wd + t * t * dd)
    slope = (weight * change).sum(1) + lambd * (wd + t * dd)
    return value, slope
