"""The memory bank: which row is whose, which row counts for an image, and what processes agree on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.ops.bank import UNSEEN, Bank, Snapshot
from processes import answers_of

_STEPS, _BATCH, _IMAGES = 3, 2, 9


def _filled(z: Tensor, index: Tensor, *, batch: int) -> Bank:
    """z [A, steps, batch, D], index [steps, batch]."""
    bank = Bank(len(z), z.shape[-1])
    bank.allocate(steps=len(index), batch=batch)
    for step, images in enumerate(index):
        bank.write_(step, z[:, step], images)
    return bank


def _numbered(crops: int, steps: int, batch: int) -> Tensor:
    """Embeddings that say what they are: [crop, step, row]."""
    axes = torch.meshgrid(torch.arange(crops), torch.arange(steps), torch.arange(batch), indexing="ij")
    return torch.stack(axes, dim=3).float()


def test_rows_are_written_where_the_step_stands() -> None:
    bank = _filled(_numbered(2, _STEPS, _BATCH), torch.arange(6).view(_STEPS, _BATCH), batch=_BATCH)
    assert bank.embeddings.shape == (2, 6, 3)
    assert bank.embeddings[1, 3].tolist() == [1, 1, 1]
    assert bank.embeddings[0, 4].tolist() == [0, 2, 0]
    assert bank.index.tolist() == list(range(6))
    bank.write_(1, torch.full((2, _BATCH, 3), 7.0), torch.tensor([8, 7]))
    assert bank.index.tolist() == [0, 1, 8, 7, 4, 5]
    assert (bank.embeddings[:, 2:4] == 7).all()
    assert bank.embeddings[0, 4].tolist() == [0, 2, 0]


def test_a_bank_is_full_once_every_row_was_written() -> None:
    bank = Bank(1, 3)
    assert not bank.is_full()  # nothing is allocated
    bank.allocate(steps=2, batch=1)
    bank.write_(0, torch.ones(1, 1, 3), torch.tensor([0]))
    assert not bank.is_full()
    bank.write_(1, torch.ones(1, 1, 3), torch.tensor([5]))
    assert bank.is_full()
    bank.allocate(steps=2, batch=1)
    assert not bank.is_full()


def test_positions_of_one_process_are_its_rows() -> None:
    bank = Bank(1, 2)
    bank.allocate(steps=3, batch=4)
    assert bank.positions().tolist() == list(range(12))


def test_labels_by_image_leave_the_unseen_and_take_the_last_of_several() -> None:
    index = torch.tensor([[4, 0], [4, 2], [0, 4]])
    bank = _filled(_numbered(1, _STEPS, _BATCH), index, batch=_BATCH)
    assert bank.last_of_image(6).tolist() == [False, False, False, True, True, True]
    table = bank.by_image(torch.tensor([10, 11, 12, 13, 14, 15]), 6)
    assert table.dtype == torch.int32
    assert table.tolist() == [14, UNSEEN, 13, UNSEEN, 15, UNSEEN]


def test_a_snapshot_is_read_by_image_and_outlives_the_rows() -> None:
    index = torch.tensor([[4, 0], [4, 2], [0, 4]])
    bank = _filled(_numbered(2, _STEPS, _BATCH), index, batch=_BATCH)
    snapshot = Snapshot(2, 3)
    snapshot.allocate(rows=6, images=6)
    snapshot.take_(bank)
    bank.write_(2, torch.full((2, _BATCH, 3), 7.0), torch.tensor([1, 3]))
    z, seen = snapshot.of_images(torch.tensor([4, 1, 0, 2]))
    assert seen.tolist() == [True, False, True, True]
    assert z[1].tolist() == [[1, 2, 1], [0, 0, 0], [1, 2, 0], [1, 1, 1]]
    snapshot.take_(bank)
    z, seen = snapshot.of_images(torch.tensor([1, 0, 4]))
    assert seen.tolist() == [True, True, True]
    assert z[0].tolist() == [[7, 7, 7], [0, 0, 1], [0, 1, 0]]  # the last rows of 0 and 4 are now older ones


# Two processes


def _global() -> tuple[Tensor, Tensor]:
    """What an epoch of both processes holds: z [A, steps, 2 * batch, D], index [steps, 2 * batch]."""
    index = torch.tensor([[4, 0, 1, 4], [7, 2, 0, 7], [5, 4, 8, 5]])
    return _numbered(2, _STEPS, 2 * _BATCH), index


def _of_rank(rank: int) -> Bank:
    z, index = _global()
    rows = slice(rank * _BATCH, (rank + 1) * _BATCH)
    return _filled(z[:, :, rows], index[:, rows], batch=_BATCH)


def _answer(rank: int) -> Any:
    bank = _of_rank(rank)
    table = bank.by_image(bank.positions() + 100, _IMAGES)
    snapshot = Snapshot(2, 3)
    snapshot.allocate(rows=_STEPS * _BATCH, images=_IMAGES)
    snapshot.take_(bank)
    asked = torch.tensor([[5, 3, 0], [4, 4, 8]])[rank]
    z, seen = snapshot.of_images(asked)
    return rank, bank.positions().tolist(), table.tolist(), z.tolist(), seen.tolist()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    told = answers_of(_answer, tmp_path)
    alone = _filled(*_global(), batch=2 * _BATCH)
    table = alone.by_image(alone.positions() + 100, _IMAGES)
    assert sorted(told[0][1] + told[1][1]) == alone.positions().tolist()
    snapshot = Snapshot(2, 3)
    snapshot.allocate(rows=len(alone.index), images=_IMAGES)
    snapshot.take_(alone)
    for rank, positions, found, z, seen in told:
        assert positions == [
            0 + 2 * rank,
            1 + 2 * rank,
            4 + 2 * rank,
            5 + 2 * rank,
            8 + 2 * rank,
            9 + 2 * rank,
        ]
        assert found == table.tolist()
        whole, all_seen = snapshot.of_images(torch.tensor([[5, 3, 0], [4, 4, 8]])[rank])
        assert z == whole.tolist()
        assert seen == all_seen.tolist()
    assert told[0][4] == [True, False, True]
