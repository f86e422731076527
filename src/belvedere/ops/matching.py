"""Which region of another view is most like each region of this one.

Legend: Q teacher views, V views, B images, N and M regions of a view, D width, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def best_matches(regions: Tensor, others: Tensor) -> Tensor:
    """The most similar region (cosine) of the same image in every other view, as a number in [0, M).

    regions [V, B, N, D], others [Q, B, M, D] -> [Q, V, B, N] int64; the first of equals. At least float32.
    """
    dtype = torch.promote_types(regions.dtype, torch.float32)
    own = F.normalize(regions.to(dtype), dim=-1, eps=1e-12)
    other = F.normalize(others.to(dtype), dim=-1, eps=1e-12)
    similar: Tensor = torch.einsum("vbnd,qbmd->qvbnm", own, other)
    return similar.argmax(-1)


def of_matches(values: Tensor, matches: Tensor, first: int) -> Tensor:
    """What belongs to the matches of some views, summed over all other views but the view itself.

    values [Q, B, M, K]; matches [Q, V, B, N], where view v is number `first` + v of all views and the Q
    views are the first of them. Result [V, B, N, K]:
    result[v, b, n] = sum over q != first + v of values[q, b, matches[q, v, b, n]].
    """
    num_others, images, num_regions, prototypes = values.shape
    _, views, _, count = matches.shape
    flat = values.flatten(1, 2)  # [Q, B * M, K]
    starts = num_regions * torch.arange(images, device=values.device)
    rows = (matches + starts.view(1, 1, -1, 1)).flatten(2)  # [Q, V, B * N]
    total = values.new_empty(views, images * count, prototypes)
    for view in range(views):
        others = [other for other in range(num_others) if other != first + view]
        torch.index_select(flat[others[0]], 0, rows[others[0], view], out=total[view])
        for other in others[1:]:
            total[view] += flat[other].index_select(0, rows[other, view])
    return total.view(views, images, count, prototypes)
