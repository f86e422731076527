"""What EsViT and Mugs share, whose teacher follows the student and whose targets are centered, as in DINO
(Caron et al. 2021): how both begin and move, and what the watch is told of them.

Legend: B images of this process, V crops, O columns of a row, K prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from belvedere.core.schedule import WarmupCosine
from belvedere.engine.health import Health, entropy
from belvedere.engine.precision import at_least_float32, full_precision
from belvedere.methods.method import Clock, Group, Losses
from belvedere.methods.shared.usage import mean_entropy, num_used
from belvedere.nn.heads import WeightNormHead
from belvedere.nn.vit import DropPath
from belvedere.optim.spec import Range

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """A copy without gradient that drops no paths."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0
    return teacher


def teacher_momentum(momentum: Range, at: Clock) -> float:
    """Half a cosine over the run."""
    start, final = momentum.start, momentum.final
    return WarmupCosine(start, start, final, 0, int(at.schedule_steps))(at.step)


def decayed_and_not(
    named: Iterable[tuple[str, nn.Parameter]], *, of: str = "", lr_scale: float = 1.0
) -> tuple[Group, Group]:
    """Of these parameters, matrices and all else that has more than one dimension (tables, class tokens,
    `weight_g`), and apart from them biases and vectors. Those without gradient are in neither."""
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        if parameter.requires_grad:
            parts[parameter.ndim != 1 and not name.endswith(".bias")].append(parameter)
    decayed = Group(f"{of}decayed", parts[True], decay=True, lr_scale=lr_scale)
    return decayed, Group(f"{of}not decayed", parts[False], decay=False, lr_scale=lr_scale)


def freeze_last_layers_(student: nn.Module) -> None:
    """Without a gradient the optimizer leaves last layers and their moments alone."""
    for module in student.modules():
        if isinstance(module, WeightNormHead):
            module.last_layer.zero_grad(set_to_none=True)


@torch.no_grad()
def observe(
    losses: Losses, z: Tensor, weight: Tensor, q: Tensor, *, temperature: float, cross_entropy: Tensor
) -> None:
    """Add to `losses` what the watch needs to know of the large crops: all of them would be gigabytes.

    z [V, B, O] of the student, its last layer's matrix [K, O], targets q [V, B, K]; cross_entropy 0-d.
    """
    with full_precision(z.device):
        scores = at_least_float32(z.detach() @ weight.detach().to(z.dtype).T) / temperature
        log_p = scores.log_softmax(-1)  # [V, B, K]
    losses.watch |= {
        "mean_entropy": mean_entropy(log_p),
        "prototypes_used": num_used(q),
        "max_target": q.amax(-1).mean(),
    }
    losses.health = Health(z=z.detach(), log_p=log_p, q=q.flatten(0, 1), cross_entropy=cross_entropy.detach())


@torch.no_grad()
def observe_images(losses: Losses, z: Tensor, keys: Tensor, *, temperature: float) -> None:
    """The same where there are no prototypes: how well the images of a batch are told apart, each being a
    class of its own. z [2, B, O] of the student, keys [2, B, O] of the teacher."""
    batch = z.shape[1]
    if batch < 2:
        return
    with full_precision(z.device):
        log_p = (z @ keys.flip(0).transpose(1, 2) / temperature).log_softmax(-1)  # [2, B, B]
    own = torch.eye(batch, dtype=log_p.dtype, device=log_p.device)
    losses.watch["mean_entropy"] = entropy(log_p.exp().mean((0, 1)))
    cross_entropy = -log_p.diagonal(dim1=1, dim2=2).mean()
    losses.health = Health(z=z, log_p=log_p, q=own, cross_entropy=cross_entropy)
