"""What a teacher's crop asks of a student's: DINO's and Mugs' losses of whole crops, EsViT's of regions.

Neither holds the student's logits (`ops.cross_entropy`): a row z stands for the logits W z, where W is a
head's last layer.

Legend: B images, V crops, of which the teacher has the first Q, N regions of a crop, D width, O columns of a
row, K prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from belvedere.ops.cross_entropy import Targets, cross_entropy, image_chunks
from belvedere.ops.matching import best_matches, of_matches


class Regions(NamedTuple):
    """Of one network, in runs of crops of one size: rows z [V, B, N, O] each, the last layer's matrix [K, O],
    the backbone's features h [V, B, N, D] each, without gradient."""

    z: list[Tensor]
    weight: Tensor
    h: list[Tensor]


@torch.no_grad()
def centered_targets(z: Tensor, weight: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Probabilities [..., K] of a teacher's rows z [..., O]: softmax of (logits - center) / temperature, at
    least float32. center [1, K]. DINO, section 3.1."""
    logits = _wide(z @ weight.to(z.dtype).T)
    return (logits - center.to(logits)).div_(temperature).softmax(-1)


@torch.no_grad()
def mean_logits(runs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """The mean of the logits of all rows [..., O] of some runs: [1, K], the logits of their mean row."""
    rows = torch.cat([_wide(run).flatten(0, -2) for run in runs])
    return rows.mean(0, keepdim=True) @ _wide(weight).T


def view_loss(
    z: Tensor, weight: Tensor, targets: Tensor, *, temperature: float, shares: Tensor | None = None
) -> Tensor:
    """The mean, over images and pairs of different crops, of the cross-entropy of a student's crop to a
    teacher's: 0-d. DINO, equation 3.

    z [V, B, O], weight [K, O], targets [Q, B, K]; shares [V, B, B]: how much of each image (row) each
    student's crop (column) is, where they are mixed.
    """
    views, batch, _ = z.shape

    def chunks() -> Iterator[Targets]:
        for images in image_chunks(batch, views, len(weight)):
            asked = []
            for view in range(views):
                if shares is None:
                    asked.append(_of_others(targets[:, images], view))
                else:
                    asked.append(shares[view, :, images].T.to(targets) @ _of_others(targets, view))
            yield Targets(0, images, torch.stack(asked).unsqueeze(2))  # [V, b, 1, K]

    scale = 1 / (_num_pairs(len(targets), views) * batch)
    return cross_entropy([z.unsqueeze(2)], weight, chunks(), temperature=temperature, scales=[scale])


def halved_view_loss(z: Tensor, weight: Tensor, targets: Tensor, *, temperature: float) -> Tensor:
    """`view_loss`, halved between student's crops that are as large as the teacher's and smaller ones: the
    mean of the pairs of each kind, averaged; the former alone where there are no small ones: 0-d.

    z [V, B, O], of which the first Q are large; weight [K, O], targets [Q, B, K]. Mugs, group discrimination.
    """
    num, batch = len(targets), z.shape[1]
    runs = [run for run in (z[:num], z[num:]) if len(run)]
    views = list(range(len(z)))
    numbers = [views[:num], views[num:]]

    def chunks() -> Iterator[Targets]:
        for images in image_chunks(batch, len(z), len(weight)):
            for run in range(len(runs)):
                asked = [_of_others(targets[:, images], view) for view in numbers[run]]
                yield Targets(run, images, torch.stack(asked).unsqueeze(2))  # [V, b, 1, K]

    pairs = [num * (num - 1), num * (len(z) - num)]
    scales = [1 / (len(runs) * count * batch) for count in pairs[: len(runs)]]
    rows = [run.unsqueeze(2) for run in runs]
    return cross_entropy(rows, weight, chunks(), temperature=temperature, scales=scales)


def region_loss(
    student: Regions, teacher: Regions, center: Tensor, *, temperature: float, teacher_temperature: float
) -> Tensor:
    """The mean, over regions, images and pairs of different crops, of the cross-entropy of a region of a
    student's crop to the region of the teacher's whose features are most like its own: 0-d. EsViT, eq. 2.

    The teacher has one run, its Q crops, which are the first of the student's. center [1, K]. No gradient
    passes through the matching.
    """
    (z_teacher,), (h_teacher,) = teacher.z, teacher.h
    batch, views = z_teacher.shape[1], [len(run) for run in student.z]
    rows = max(len(run) * run.shape[2] for run in (*student.z, z_teacher))

    def chunks() -> Iterator[Targets]:
        for images in image_chunks(batch, rows, len(teacher.weight)):
            q = centered_targets(z_teacher[:, images], teacher.weight, center, teacher_temperature)
            for number, h in enumerate(student.h):
                matches = best_matches(h[:, images], h_teacher[:, images])
                yield Targets(number, images, of_matches(q, matches, sum(views[:number])))

    pairs = _num_pairs(len(z_teacher), sum(views))
    scales = [1 / (pairs * batch * run.shape[2]) for run in student.z]
    return cross_entropy(student.z, student.weight, chunks(), temperature=temperature, scales=scales)


def _num_pairs(num_teachers: int, views: int) -> int:
    """Pairs of a teacher's crop and another crop."""
    return num_teachers * (views - 1)


def _of_others(targets: Tensor, view: int) -> Tensor:
    """The sum of the targets [Q, B, K] of all the teacher's crops but `view`: [B, K]."""
    others = [target for number, target in enumerate(targets) if number != view]
    return torch.stack(others).sum(0)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
