"""Queues and memories: what is stored where, what is found, and the loss that reads them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from belvedere.ops import contrast
from belvedere.ops import memory as memories
from belvedere.ops.contrast import contrastive_loss, halves, log_sum_exp
from belvedere.ops.memory import KeyQueue, Memory
from belvedere.ops.view_losses import halved_view_loss, view_loss


def _random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Memory


def _stored(memory: Memory, rows: list[float], kept: list[bool] | None = None) -> list[float]:
    """The answers of a memory of one column, rounded, after a push."""
    memory.push_(torch.tensor(rows).unsqueeze(1), None if kept is None else torch.tensor(kept))
    assert torch.equal(memory.queue_k, memory.queue_q)
    return memory.queue_k[:, 0].tolist()


def _empty(slots: int) -> Memory:
    memory = Memory(slots, 1, _random())
    memory.queue_q.zero_()
    memory.queue_k.zero_()
    return memory


def test_the_pointer_jumps_over_as_many_slots_as_were_written_unless_it_wraps() -> None:
    memory = _empty(8)
    assert _stored(memory, [1, 2, 3]) == [1, 2, 3, 0, 0, 0, 0, 0]
    assert int(memory.queue_ptr) == 6
    assert _stored(memory, [4, 5, 6]) == [6, 2, 3, 0, 0, 0, 4, 5]
    assert int(memory.queue_ptr) == 1
    assert _stored(memory, [7, 8, 9, 10, 11, 12, 13]) == [6, 7, 8, 9, 10, 11, 12, 13]
    assert int(memory.queue_ptr) == (1 + 2 * 7) % 8, "filled to the last slot, which is no wrap"


def test_kept_rows_are_stored_in_their_order_and_the_others_touch_nothing() -> None:
    memory = _empty(5)
    assert _stored(memory, [1, 2, 3, 4], [False, True, False, True]) == [2, 4, 0, 0, 0]
    assert int(memory.queue_ptr) == 4
    assert _stored(memory, [5, 6, 7], [False, False, False]) == [2, 4, 0, 0, 0]
    assert int(memory.queue_ptr) == 4
    assert _stored(memory, [8, 9, 1], [True, False, True]) == [1, 4, 0, 0, 8]
    assert int(memory.queue_ptr) == 1


def test_a_whole_memory_can_be_stored_at_once() -> None:
    memory = _empty(3)
    assert _stored(memory, [1, 2, 3]) == [1, 2, 3]
    assert int(memory.queue_ptr) == 0


@pytest.mark.parametrize("chunk", [1, 7, 1 << 24])
def test_neighbours_are_the_most_similar_by_angle(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memories, "_SCORES", chunk * 12)
    memory = Memory(12, 5, _random())
    queries = torch.randn(9, 5, generator=_random(1))
    cosine = F.normalize(100 * queries, dim=1) @ F.normalize(memory.queue_q, dim=1).T
    found = memory.search(queries, 4)
    assert torch.equal(found, cosine.topk(4).indices)
    assert torch.equal(memory.neighbours(queries, 4), memory.queue_k[found])


def test_a_search_is_in_full_precision_under_autocast() -> None:
    memory = Memory(64, 16, _random())
    queries = torch.randn(20, 16, generator=_random(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = memory.search(queries, 8)
    assert torch.equal(found, memory.search(queries, 8))


def test_a_search_has_no_gradient_and_a_zero_slot_is_no_nan() -> None:
    memory = Memory(4, 3, _random())
    memory.queue_q[2] = 0.0
    queries = torch.randn(2, 3, generator=_random(1), requires_grad=True)
    assert not memory.neighbours(queries, 2).requires_grad
    assert memory.search(queries, 4).sort(1).values.tolist() == [[0, 1, 2, 3]] * 2


def test_a_queue_is_a_ring() -> None:
    queue = KeyQueue(5, 2, _random())
    before = queue.queue.clone()
    first = torch.arange(6.0).view(3, 2)
    queue.push_(first)
    assert torch.equal(queue.queue, torch.cat([first, before[3:]]))
    queue.push_(10 + first)
    assert torch.equal(queue.queue, torch.cat([10 + first[2:], first[1:], 10 + first[:2]]))
    assert int(queue.queue_ptr) == 1


# Loss


def test_a_log_sum_exp_in_chunks_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(7, 4, dtype=torch.float64, generator=_random(), requires_grad=True)
    keys = torch.randn(9, 4, dtype=torch.float64, generator=_random(1))
    expected = (z @ keys.T / 0.2).logsumexp(1)
    cotangent = torch.randn(7, dtype=torch.float64, generator=_random(2))
    (gradient,) = torch.autograd.grad((expected * cotangent).sum(), z)
    for chunk in (1, 3 * 9, 1 << 24):
        monkeypatch.setattr(contrast, "_LOGITS", chunk)
        found = log_sum_exp(z, keys, temperature=0.2)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad((found * cotangent).sum(), z)[0], gradient)
    with torch.no_grad():
        torch.testing.assert_close(log_sum_exp(z, keys, temperature=0.2), expected)


def _by_cross_entropy(z: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
    """InfoNCE as the paper writes it: the image's own key is class 0."""
    large, small = [], []
    for teacher, key in enumerate(keys):
        for view, rows in enumerate(z):
            if view != teacher:
                logits = torch.cat([(rows * key).sum(1, keepdim=True), rows @ queue.T], 1) / 0.2
                term = F.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.int64))
                (large if view < len(keys) else small).append(term)
    mean = torch.stack(large).mean()
    return (mean + torch.stack(small).mean()) / 2 if small else mean


@pytest.mark.parametrize("small", [0, 1, 3])
def test_the_contrastive_loss_is_infonce(small: int) -> None:
    z, keys, queue = (
        F.normalize(torch.randn(*shape, 6, dtype=torch.float64, generator=_random(n)), dim=-1)
        for n, shape in enumerate([(2 + small, 4), (2, 4), (11,)])
    )
    z.requires_grad_()
    found, expected = contrastive_loss(z, keys, queue, temperature=0.2), _by_cross_entropy(z, keys, queue)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z)[0], torch.autograd.grad(expected, z)[0])


def test_large_and_small_views_have_half_each() -> None:
    terms = torch.zeros(2, 5, 3)
    terms[0, 0] = terms[1, 1] = 1e6  # a view with itself, which does not count
    terms[:, 2:] = 4.0
    assert float(halves(terms)) == 2.0
    terms[0, 1] = 2.0
    assert float(halves(terms)) == 2.5
    assert float(halves(terms[:, :2])) == 1.0


def test_group_losses_are_halved_in_the_same_way() -> None:
    z = torch.randn(5, 3, 4, dtype=torch.float64, generator=_random())
    weight = torch.randn(7, 4, dtype=torch.float64, generator=_random(1))
    targets = torch.randn(2, 3, 7, dtype=torch.float64, generator=_random(2)).softmax(-1)
    log_p = (z @ weight.T / 0.1).log_softmax(-1)
    terms = -torch.einsum("tbk,vbk->tvb", targets, log_p)
    torch.testing.assert_close(halved_view_loss(z, weight, targets, temperature=0.1), halves(terms))
    two = halved_view_loss(z[:2], weight, targets, temperature=0.1)
    torch.testing.assert_close(two, view_loss(z[:2], weight, targets, temperature=0.1))
