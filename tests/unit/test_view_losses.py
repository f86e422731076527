"""EsViT's losses against their definitions, written out pair by pair, with gradients; and what they hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.ops import cross_entropy as chunked
from belvedere.ops.cross_entropy import Targets, cross_entropy, image_chunks
from belvedere.ops.matching import best_matches, of_matches
from belvedere.ops.view_losses import Regions, centered_targets, mean_logits, region_loss, view_loss

OUT, PROTOTYPES, WIDTH, BATCH = 6, 11, 5, 4
STUDENT, TEACHER = 0.1, 0.05


def _normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _regions(seed: int, runs: list[tuple[int, int]]) -> Regions:
    """Regions of (crops, regions of a crop) per run, with gradient."""
    z = [_normal(seed + n, v, BATCH, c, OUT).requires_grad_() for n, (v, c) in enumerate(runs)]
    h = [_normal(seed + 50 + n, v, BATCH, c, WIDTH) for n, (v, c) in enumerate(runs)]
    return Regions(z, _normal(seed + 99, PROTOTYPES, OUT).requires_grad_(), h)


def _direct_region_loss(student: Regions, teacher: Regions, center: Tensor) -> Tensor:
    """EsViT, equation 2, as the paper writes it: one pair of crops, one image and one region at a time."""
    crops = [(z[v], h[v]) for z, h in zip(student.z, student.h, strict=True) for v in range(len(z))]
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    for q in range(2):
        z_q, h_q = teacher.z[0][q], teacher.h[0][q]
        p = ((z_q @ teacher.weight.T - center) / TEACHER).softmax(-1).detach()
        for v, (z, h) in enumerate(crops):
            if v == q:
                continue
            pairs += 1
            log_p = (z @ student.weight.T / STUDENT).log_softmax(-1)
            for image in range(BATCH):
                similar = F.cosine_similarity(h[image][:, None], h_q[image][None], dim=-1)
                match = similar.argmax(1)
                total = total - (p[image][match] * log_p[image]).sum(-1).mean() / BATCH
    return total / pairs


RUNS = {
    "two and small ones": [(2, 9), (3, 4)],
    "two alone": [(2, 9)],
    "two sizes of small ones": [(2, 6), (2, 4), (1, 3)],
    "small ones as large as the others": [(5, 4)],
    "one region": [(2, 1), (2, 1)],
}


@pytest.mark.parametrize("elements", [1, 200, 1 << 24], ids=["an image", "some images", "all"])
@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_region_loss_is_its_definition(
    runs: list[tuple[int, int]], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "_ELEMENTS", elements)
    student, teacher = _regions(0, runs), _regions(1000, [(2, runs[0][1])])
    center = _normal(7, 1, PROTOTYPES)
    loss = region_loss(student, teacher, center, temperature=STUDENT, teacher_temperature=TEACHER)
    expected = _direct_region_loss(student, teacher, center)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    wanted = [*student.z, student.weight]
    for found, right in zip(
        torch.autograd.grad(3 * loss, wanted), torch.autograd.grad(3 * expected, wanted), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-13)


def test_the_teacher_and_the_matching_get_no_gradient() -> None:
    student, teacher = _regions(0, [(2, 4)]), _regions(1000, [(2, 4)])
    for h in (*student.h, *teacher.h):
        h.requires_grad_()
    center = torch.zeros(1, PROTOTYPES, dtype=torch.float64)
    loss = region_loss(student, teacher, center, temperature=STUDENT, teacher_temperature=TEACHER)
    others = [*teacher.z, teacher.weight, *student.h, *teacher.h]
    assert torch.autograd.grad(loss, others, allow_unused=True) == (None,) * len(others)


@pytest.mark.parametrize("views", [2, 5])
@pytest.mark.parametrize("mixed", [False, True])
def test_view_loss_is_its_definition(views: int, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "_ELEMENTS", views * PROTOTYPES * 2)  # two images of a chunk
    z = _normal(1, views, BATCH, OUT).requires_grad_()
    weight = _normal(2, PROTOTYPES, OUT).requires_grad_()
    q = centered_targets(
        _normal(3, 2, BATCH, OUT), _normal(4, PROTOTYPES, OUT), torch.zeros(1, PROTOTYPES), 0.05
    )
    shares = _normal(5, views, BATCH, BATCH).softmax(1) if mixed else None
    loss = view_loss(z, weight, q, temperature=STUDENT, shares=shares)
    log_p = (z @ weight.T / STUDENT).log_softmax(-1)
    expected, pairs = torch.zeros((), dtype=torch.float64), 0
    for teacher in range(2):
        for view in range(views):
            if view != teacher:
                pairs += 1
                between = -q[teacher] @ log_p[view].T  # [teacher's image, student's image]
                whole = torch.eye(BATCH, dtype=torch.float64) if shares is None else shares[view]
                expected = expected + (whole * between).sum() / BATCH
    expected = expected / pairs
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for found, right in zip(
        torch.autograd.grad(loss, [z, weight]), torch.autograd.grad(expected, [z, weight]), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-13)


def test_rows_in_bfloat16_have_their_loss_in_float32() -> None:
    z = F.normalize(_normal(1, 2, 8, 3, 16, dtype=torch.float32), dim=-1).bfloat16().requires_grad_()
    weight = _normal(2, 32, 16, dtype=torch.float32).requires_grad_()
    t = _normal(3, 2, 8, 3, 32, dtype=torch.float32).softmax(-1)
    loss = cross_entropy([z], weight, [Targets(0, slice(0, 8), t)], temperature=0.5, scales=[1 / 48])
    exact = -(t * (z.detach().float() @ weight.detach().T / 0.5).log_softmax(-1)).sum() / 48
    assert loss.dtype == torch.float32
    assert abs(float(loss.detach()) - float(exact)) < 0.02 * float(exact)
    in_z, in_weight = torch.autograd.grad(loss, [z, weight])
    assert (in_z.dtype, in_weight.dtype) == (torch.bfloat16, torch.float32)


def test_images_that_no_chunk_names_count_nothing() -> None:
    z, weight = _normal(1, 2, 4, 1, OUT).requires_grad_(), _normal(2, PROTOTYPES, OUT)
    t = torch.full((2, 1, 1, PROTOTYPES), 1 / PROTOTYPES, dtype=torch.float64)
    loss = cross_entropy([z], weight, [Targets(0, slice(1, 2), t)], temperature=1.0, scales=[1.0])
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient.abs().sum((0, 2, 3)) > 0).tolist() == [False, True, False, False]


def test_chunks_cover_every_image_once() -> None:
    for images, rows, prototypes in ((1, 1, 1), (7, 3, 1 << 22), (32, 98, 65536), (5, 400, 1 << 20)):
        chunks = list(image_chunks(images, rows, prototypes))
        assert [i for chunk in chunks for i in range(chunk.start, chunk.stop)] == list(range(images))


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_logits_of_all_regions_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    prototypes, rows = 512, 3 * 9  # of an image and run
    monkeypatch.setattr(chunked, "_ELEMENTS", 2 * rows * prototypes)
    z = [_normal(1, 2, 16, 9, OUT).requires_grad_(), _normal(2, 3, 16, 9, OUT).requires_grad_()]
    h = [_normal(3, 2, 16, 9, WIDTH), _normal(4, 3, 16, 9, WIDTH)]
    weight = _normal(5, prototypes, OUT).requires_grad_()
    student = Regions(z, weight, h)
    teacher = Regions([z[0].detach()], weight.detach(), [h[0]])
    with _Largest() as seen:
        center = torch.zeros(1, prototypes, dtype=torch.float64)
        loss = region_loss(student, teacher, center, temperature=0.1, teacher_temperature=0.05)
        torch.autograd.grad(loss, [*z, weight])
    assert seen.elements <= 2 * rows * prototypes
    assert seen.elements < 0.15 * (5 * 16 * 9 * prototypes)


# Matching


def test_a_region_is_matched_by_direction_within_its_image() -> None:
    others = torch.zeros(2, 2, 3, 4)
    others[0, 0] = torch.eye(4)[:3]
    others[1, 0] = 5 * torch.eye(4)[[2, 0, 1]]
    others[:, 1] = torch.eye(4)[[1, 0, 2]]
    own = torch.eye(4)[[1, 2]].expand(1, 2, 2, 4) * 0.01
    matches = best_matches(own, others)
    assert matches.shape == (2, 1, 2, 2)
    assert matches[:, 0].tolist() == [[[1, 2], [0, 2]], [[2, 0], [0, 2]]]


def test_the_first_of_equally_similar_regions_is_matched() -> None:
    same = torch.ones(2, 1, 3, 4)
    assert best_matches(torch.ones(1, 1, 2, 4), same).unique().tolist() == [0]


def test_matches_are_summed_over_the_other_views() -> None:
    values = _normal(0, 2, 2, 3, 5)
    matches = torch.tensor([[[[0, 2], [1, 1]]] * 3, [[[2, 0], [0, 1]]] * 3])  # [Q, V, B, N]
    for first in (0, 2):
        summed = of_matches(values, matches, first)
        for v in range(3):
            for b in range(2):
                for n in range(2):
                    right = sum(values[q, b, matches[q, v, b, n]] for q in range(2) if q != first + v)
                    torch.testing.assert_close(summed[v, b, n], right)


def test_the_center_is_the_mean_of_raw_logits() -> None:
    runs, weight = [_normal(0, 2, 3, 4, OUT), _normal(1, 1, 3, 2, OUT)], _normal(2, PROTOTYPES, OUT)
    logits = torch.cat([run.flatten(0, 2) @ weight.T for run in runs])
    torch.testing.assert_close(mean_logits(runs, weight), logits.mean(0, keepdim=True))


def test_a_center_is_what_targets_do_not_prefer() -> None:
    z, weight = torch.zeros(1, 1, 2), torch.zeros(3, 2)
    q = centered_targets(z, weight, torch.tensor([[2.0, 0.0, 0.0]]), 1.0)
    assert q[0, 0, 0] < q[0, 0, 1] == q[0, 0, 2]
