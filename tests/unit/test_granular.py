"""The network of Mugs: its parts, how they begin, and the resize of positions with a margin."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from belvedere.nn.granular import ContrastiveHead, GranularNetwork
from belvedere.nn.position import resize_position
from belvedere.nn.spec import ContrastiveHeadSpec
from belvedere.nn.spec.vit import vit_spec
from belvedere.nn.vit import ViT

SPEC = ContrastiveHeadSpec(
    hidden=16, out=6, layers=3, predictor=10, batch_norm=False, norm_before_predictor=True
)


def _network(**changes: object) -> GranularNetwork:
    shape = {"width": 64, "depth": 2, "heads": 2, "patch_px": 2, "image_px": 8, "drop_path": 0.3}
    backbone = ViT(vit_spec("deit_tiny").model_copy(update=shape))
    heads = {"instance": SPEC, "local_group": SPEC, "group": None} | changes
    network = GranularNetwork(backbone, **heads)  # type: ignore[arg-type]
    network.initialize_(0)
    return network


def test_a_query_is_a_mean_before_the_norm_and_what_is_stored_one_after_it() -> None:
    network, images = _network().eval(), torch.randn(3, 3, 8, 8)
    output, features = network.backbone(images, blocks=1), network(images, part="backbone")
    tokens = torch.cat([output.blocks[0].cls.unsqueeze(1), output.blocks[0].tokens], 1)
    torch.testing.assert_close(features["query"], tokens.mean(1))
    torch.testing.assert_close(features["patches"], network.backbone.norm(tokens)[:, 1:].mean(1))
    assert features["query"].requires_grad
    assert not features["patches"].requires_grad
    torch.testing.assert_close(features["cls"], output.pooled)


def test_the_relation_block_never_drops_and_shares_the_final_norm() -> None:
    network = _network().train()
    sequence = torch.randn(4, 5, 64)
    first = network(sequence, part="relation")
    torch.testing.assert_close(first, network(sequence, part="relation"))
    whole = network.backbone.norm(network.relation_blocks[0](sequence))[:, 0]
    torch.testing.assert_close(first, whole)
    others = sequence[:, [0, 3, 1, 4, 2]]
    torch.testing.assert_close(first, network(others, part="relation"))  # neighbours have no order


def test_without_local_groups_the_backbone_is_asked_for_its_class_token_alone() -> None:
    network = _network(local_group=None).eval()
    images = torch.randn(2, 3, 8, 8)
    features = network(images, part="backbone")
    assert set(features) == {"cls"}
    torch.testing.assert_close(features["cls"], network.backbone(images).pooled)
    assert not [name for name in network.state_dict() if name.startswith("relation")]


def test_it_begins_as_published() -> None:
    state = _network().state_dict()
    for name in ("relation_blocks.0.mlp.fc1.weight", "instance_head.projector.0.weight"):
        assert float(state[name].std()) == pytest.approx(0.02, rel=0.1)
    for name, columns in (("instance_head.predictor.2.weight", 10), ("backbone.patch_embed.proj.weight", 12)):
        bound = columns**-0.5
        assert float(state[name].abs().max()) <= bound
        assert float(state[name].std()) == pytest.approx(bound / 3**0.5, rel=0.15)
    assert not state["relation_blocks.0.attn.qkv.bias"].any()
    assert not torch.equal(
        state["instance_head.projector.0.weight"], state["local_group_head.projector.0.weight"]
    )


def test_embeddings_are_unit_rows_with_and_without_a_predictor() -> None:
    head = ContrastiveHead(8, SPEC)
    head.initialize_(torch.Generator().manual_seed(0))
    h = torch.randn(5, 8)
    z = head(h)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    before = F.normalize(head.projector(h), dim=1)
    assert head.predictor is not None
    torch.testing.assert_close(z, F.normalize(head.predictor(before), dim=1))
    head.predictor = None
    torch.testing.assert_close(head(h), before)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(h).dtype == torch.float32


def test_a_head_of_one_layer_has_no_place_for_batch_norm() -> None:
    with pytest.raises(ValueError, match="batch_norm has no effect with one layer"):
        ContrastiveHeadSpec.model_validate(SPEC.model_dump() | {"layers": 1, "batch_norm": True})
    names = list(ContrastiveHead(8, SPEC.model_copy(update={"batch_norm": True})).state_dict())
    assert [name for name in names if name.startswith("projector") and name.endswith("weight")] == [
        f"projector.{number}.weight" for number in (0, 1, 3, 4, 6)
    ]


@pytest.mark.parametrize("grid", [(3, 3), (6, 6), (2, 8)])
def test_a_margin_is_torchs_scale_factor(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 1 + 16, 5, dtype=torch.float64)
    square = table[0, 1:].view(4, 4, 5).permute(2, 0, 1)[None]
    expected = nn.functional.interpolate(
        square,
        scale_factor=[(side + 0.1) / 4 for side in grid],
        mode="bicubic",
        align_corners=False,
        recompute_scale_factor=False,
    )
    assert expected.shape[2:] == grid
    resized = resize_position(table, grid, 0.1)
    torch.testing.assert_close(resized[0, 1:], expected[0].flatten(1).T)
    assert torch.equal(resized[:, 0], table[:, 0])
    assert not torch.allclose(resized, resize_position(table, grid))


def test_the_built_grid_is_left_alone() -> None:
    table = torch.randn(1, 17, 5)
    assert resize_position(table, (4, 4), 0.1) is table
