"""What an import reads beside the tensors, what it refuses by name, and what it says that it assumed.

Each table is of files as other libraries write them; features are held against those libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export_networks import card as small_card
from export_networks import cvt, outgoing, resnet, swin, vil, vit
from published_files import drawn, prefixed, small_resnet, small_vit
from safetensors.torch import save_file
from torch import Tensor, nn

from belvedere import cli
from belvedere.core.errors import WeightsError
from belvedere.eval.classifier import FeatureNetwork
from belvedere.nn.spec import BackboneSpec
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load
from belvedere.zoo.write import TARGETS, write
from belvedere.zoo.write.folder import placing

TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
NAME = "vit_small_patch16_224"
MSN = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "image_size": 32,
    "patch_size": 8,
}


def features(weights: Path, images: Tensor) -> Tensor:
    """The card's feature of images that are normalized already."""
    backbone, card = load(weights)
    with torch.no_grad():
        found: Tensor = FeatureNetwork(backbone, card.features).eval()(images)
    return found


def close(found: Tensor, expected: Tensor) -> None:
    scale = expected.square().mean().sqrt()
    assert float((found - expected).abs().max() / scale) < 1e-5


def stirred(network: nn.Module) -> nn.Module:
    """Every parameter drawn, so that no bias or scale is what it usually is."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def timm_folder(tmp_path: Path, state: Mapping[str, Tensor], **config: Any) -> Path:
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (NAME, TIMM_VIT),
        (NAME, TIMM_VIT | {"num_heads": 8}),
        (NAME, TIMM_VIT | {"num_heads": 1, "embed_dim": 33}),
        (NAME, TIMM_VIT | {"qkv_bias": False, "drop_path_rate": 0.3, "mlp_ratio": 1.7}),
        (NAME, TIMM_VIT | {"global_pool": "avg", "fc_norm": False}),
        ("resnet18", {}),
        ("resnet26", {"layers": [1, 1, 1, 1]}),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4},
        ),
    ],
)
def test_timms_arguments_are_read(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm")
    network = stirred(timm.create_model(name, num_classes=0, **arguments))
    own = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.8}
    config = {"architecture": name, "model_args": arguments, "pretrained_cfg": own | {"license": "mit"}}
    card = import_checkpoint(timm_folder(tmp_path, network.state_dict(), **config), tmp_path / "out")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(features(tmp_path / "out", images), network(images))
    assert (card.mean, card.features.crop_px, card.features.resize_px) == ((0.5, 0.5, 0.5), 32, 40)
    assert card.licence == "mit, as config.json says"
    assert card.notes == {}


def test_what_timm_itself_saves_is_read(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    network = stirred(timm.create_model(NAME, num_classes=5, **TIMM_VIT))
    timm.models.save_for_hf(network, tmp_path / "hub", model_args=TIMM_VIT)
    import_checkpoint(tmp_path / "hub", tmp_path / "out")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    close(features(tmp_path / "out", images), expected)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"act_layer": "quick_gelu"}, "act_layer 'quick_gelu'; belvedere's vit has None or 'gelu'"),
        ({"act_layer": "silu"}, "act_layer 'silu'"),
        ({"norm_layer": "rmsnorm"}, "norm_layer 'rmsnorm'"),
        ({"global_pool": "avg"}, r"global_pool 'avg', which takes the mean of patches before the norm"),
        ({"global_pool": "map"}, "global_pool 'map'"),
        ({"class_token": False}, "class_token False"),
        ({"init_values": 1e-5}, "init_values 1e-05"),
        ({"reg_tokens": 4}, "reg_tokens 4"),
        ({"num_heads": 5}, "no multiple of heads 5"),
        ({"num_heads": "2"}, "num_heads '2', must be a whole number"),
        ({"num_heads": None}, "num_heads None, must be a whole number"),
        ({"depth": 3}, "depth 3 .*the tensors 2"),
        ({"img_size": 64}, "img_size 64 .*the tensors 32"),
        ({"mlp_ratio": 3.0}, "mlp_ratio 3.0"),
        ({"wobble": 1}, "wobble 1, which belvedere's vit does not have"),
    ],
)
def test_arguments_of_timms_that_are_not_ours_are_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    state = drawn(small_vit(width=32, patch_px=8, image_px=32, mlp_ratio=4.0))
    folder = timm_folder(tmp_path, state, architecture=NAME, model_args=TIMM_VIT | changes)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"architecture": "vit_base_patch16_clip_quickgelu_224"}, "architecture .*--as timm/NAME"),
        ({"architecture": "resnetblur50"}, "architecture 'resnetblur50'"),
        ({"architecture": "swin_tiny_patch4_window7_224"}, "the tensors are of a vit"),
        ({"architecture": 5}, "architecture 5, must be a name"),
        ({"architecture": NAME}, "embed_dim 384|num_heads|no multiple of heads"),
        ({"architecture": NAME, "model_args": [1]}, r"model_args \[1\], must be an object"),
        ({"architecture": NAME, "model_args": TIMM_VIT, "pretrained_cfg": 3}, "pretrained_cfg that is a int"),
        (
            {"architecture": NAME, "model_args": TIMM_VIT | {"global_pool": "token"}, "global_pool": "avg"},
            "which is right",
        ),
    ],
)
def test_a_config_of_timms_that_cannot_be_is_refused(
    tmp_path: Path, config: dict[str, Any], told: str
) -> None:
    state = drawn(small_vit(width=32, patch_px=8, image_px=32, mlp_ratio=4.0))
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(timm_folder(tmp_path, state, **config), tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [{"act_layer": "silu"}, {"output_stride": 8}, {"aa_layer": "blurpool"}, {"global_pool": "max"}],
)
def test_a_resnet_of_other_parts_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    state = drawn(small_resnet(width_per_group=64))
    config = {"architecture": "resnet18", "model_args": {"layers": [1, 1, 1, 1]} | changes}
    with pytest.raises(WeightsError, match=f"{next(iter(changes))} .*; belvedere's resnet has"):
        import_checkpoint(timm_folder(tmp_path, state, **config), tmp_path / "out", architecture="timm")


SWIN = {"img_size": 32, "embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"window_size": 3}, "map of 8 x 8 cells .* windows of 3"),
        ({"window_size": 7}, "map of 8 x 8 cells .* windows of 7"),
        ({"img_size": 40}, "map of 10 x 10 cells .* windows of 4"),
        ({"img_size": 64, "window_size": 7}, "map of 16 x 16 cells"),
        ({"depths": [1, 2], "img_size": 48, "window_size": 5}, r"map of 6 x 6 cells \(stage 1\)"),
    ],
    ids=str,
)
def test_a_swin_of_timms_that_pads_what_it_shifts_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    timm = pytest.importorskip("timm")
    name, arguments = "swin_tiny_patch4_window7_224", SWIN | changes
    state = timm.create_model(name, num_classes=0, **arguments).state_dict()
    folder = timm_folder(tmp_path, state, architecture=name, model_args=arguments)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(folder, tmp_path / "out")


def test_a_swin_that_pads_but_shifts_nothing_is_read(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    name, arguments = "swin_tiny_patch4_window7_224", SWIN | {"depths": [1, 1], "window_size": 3}
    network = stirred(timm.create_model(name, num_classes=0, **arguments))
    folder = timm_folder(tmp_path, network.state_dict(), architecture=name, model_args=arguments)
    import_checkpoint(folder, tmp_path / "out")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(features(tmp_path / "out", images), network(images))


def test_a_bare_swin_is_taken_for_a_size_that_its_windows_divide(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    arguments = SWIN | {"img_size": 40, "window_size": 5}
    network = stirred(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **arguments))
    torch.save(network.state_dict(), tmp_path / "swin.pth")
    card = import_checkpoint(tmp_path / "swin.pth", tmp_path / "out", architecture="timm")
    assert "40 px" in card.notes["built for"]
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        close(features(tmp_path / "out", images), network(images))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"crop_pct": 1e-310}, "crop_pct 1e-310, must be from 0.01 to 1"),
        ({"crop_pct": 5}, "crop_pct 5, must be"),
        ({"input_size": [3, 10**30, 10**30]}, "must be at most 65536 pixels"),
        ({"mean": [1e308] * 3}, "mean .*must be three numbers"),
        ({"mean": [10**400] * 3}, "mean .*must be three numbers"),
        ({"std": [1e-320] * 3}, "std .*must be three positive numbers"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_preparations_of_timms_that_cannot_be_are_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    own = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3} | changes
    state = drawn(small_vit(width=32, patch_px=8, image_px=32, mlp_ratio=4.0))
    folder = timm_folder(tmp_path, state, architecture=NAME, model_args=TIMM_VIT, pretrained_cfg=own)
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(folder, tmp_path / "out")


def test_every_name_of_timms_that_is_known_is_what_it_is_taken_for() -> None:
    timm = pytest.importorskip("timm")
    from belvedere.zoo.convert.timm_config import _named

    known = [name for name in timm.list_models() if _named(name, None, "") is not None]
    assert {NAME, "resnet50", "swin_base_patch4_window12_384", "deit_tiny_patch16_224"} <= set(known)
    for name in known:
        base: Any = _named(name, None, "")
        with torch.device("meta"):
            network = timm.create_model(name)
        if "num_heads" in base and isinstance(base["num_heads"], int):
            assert network.blocks[0].attn.num_heads == base["num_heads"], name
            assert isinstance(network.blocks[0].mlp.act, nn.GELU), name
            assert network.norm.eps == 1e-6, name
            assert network.global_pool == "token", name
        elif "layers" in base:
            assert isinstance(network.act1, nn.ReLU), name
            assert network.global_pool.is_identity() is False, name


@pytest.mark.parametrize("spec", [vit(), vit(heads=1), vit(heads=8), vit(heads=2, width=50)], ids=str)
@pytest.mark.parametrize("target", ["huggingface", "timm", "torchvision", "published", "safetensors"])
def test_an_export_of_a_vit_is_read_back_without_hints(
    tmp_path: Path, target: str, spec: BackboneSpec
) -> None:
    _there_and_back(tmp_path, target, spec)


@pytest.mark.parametrize("changes", [{"qkv_bias": False}, {"norm_eps": 1e-5}, {"position_margin": 0.1}])
@pytest.mark.parametrize("target", ["huggingface", "timm", "torchvision", "safetensors"])
def test_an_export_of_an_unusual_vit_too(tmp_path: Path, target: str, changes: dict[str, Any]) -> None:
    _there_and_back(tmp_path, target, vit(heads=6, image_px=64, **changes))


@pytest.mark.parametrize(
    ("target", "spec"),
    [
        ("timm", resnet()),
        ("torchvision", resnet()),
        ("timm", swin()),
        ("timm", swin().model_copy(update={"norm_eps": 1e-5})),
        *(("safetensors", spec) for spec in (resnet(), swin(), cvt(), vil())),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_an_export_of_another_network_too(tmp_path: Path, target: str, spec: BackboneSpec) -> None:
    _there_and_back(tmp_path, target, spec)


def _there_and_back(tmp_path: Path, target: str, spec: BackboneSpec) -> None:
    out = outgoing(spec)
    with placing(tmp_path / "exported", target=target, source="recipe small") as folder:
        write(folder, TARGETS[target], out)
    card = import_checkpoint(tmp_path / "exported", tmp_path / "back")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(features(tmp_path / "back", images), out.feature(images))
    assert (card.system, card.mean, card.std) == (out.card.system, out.card.mean, out.card.std)
    assert card.features == out.card.features
    assert card.notes == {}


def test_an_exports_card_and_an_option_that_differ_are_named(tmp_path: Path) -> None:
    with placing(tmp_path / "exported", target="timm", source="recipe small") as folder:
        TARGETS["timm"].write(folder, outgoing(vit(heads=8)))
    with pytest.raises(WeightsError, match="says msn, vit, 8 heads; leave out --heads 2"):
        import_checkpoint(tmp_path / "exported", tmp_path / "back", heads=2)
    with pytest.raises(WeightsError, match="leave out --as mugs"):
        import_checkpoint(tmp_path / "exported", tmp_path / "back", architecture="mugs")


def test_what_weights_were_trained_on_is_told_as_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = outgoing(vit())
    own = replace(weights, card=weights.card.model_copy(update={"data": {"images": 802}}))
    with placing(tmp_path / "exported", target="timm", source="recipe small") as folder:
        TARGETS["timm"].write(folder, own)
    assert cli.main(["import", str(tmp_path / "exported"), "--out", str(tmp_path / "back")]) == 0
    said = capsys.readouterr().err
    assert "training: images" in said
    assert "kept: " not in said


def test_heads_that_nobody_states_are_said_and_can_be_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = drawn(small_vit()) | {"head.weight": torch.zeros(3, 128), "head.bias": torch.zeros(3)}
    torch.save(state, tmp_path / "vit.pth")
    assert cli.main(["import", str(tmp_path / "vit.pth"), "--out", str(tmp_path / "a")]) == 0
    assert "2 of 64 columns assumed" in " ".join(capsys.readouterr().err.split())
    card = import_checkpoint(tmp_path / "vit.pth", tmp_path / "b", heads=8)
    assert card.backbone == small_vit(heads=8)
    assert "attention heads" not in card.notes
    with pytest.raises(WeightsError, match=r"--heads says 8, --as says 6"):
        import_checkpoint(tmp_path / "vit.pth", tmp_path / "c", architecture="deit_small", heads=8)
    with pytest.raises(WeightsError, match=r"\(with --heads 7\).*no multiple of heads 7"):
        import_checkpoint(tmp_path / "vit.pth", tmp_path / "c", heads=7)
    torch.save(drawn(small_resnet()), tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match="leave out --heads"):
        import_checkpoint(tmp_path / "resnet.pth", tmp_path / "c", heads=2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": False},
        {"intermediate_size": 37},
        {"layer_norm_eps": 1e-12},
        {"layer_norm_eps": 1e-2},
        {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2},
        {"hidden_act": "gelu_python"},
        {"num_attention_heads": 16},
    ],
    ids=str,
)
def test_a_vitmsn_of_transformers_and_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTMSNConfig(**(MSN | changes))
    network = stirred(transformers.ViTMSNModel(config))
    network.save_pretrained(tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "out")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(features(tmp_path / "out", images), network(images).last_hidden_state[:, 0])
    backbone, card = load(tmp_path / "out")
    again = outgoing(card.backbone)
    again.backbone.load_state_dict(backbone.state_dict())
    with placing(tmp_path / "again", target="huggingface", source="x") as folder:
        TARGETS["huggingface"].write(folder, again)
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    usual = {"qkv_bias": True, "layer_norm_eps": config.layer_norm_eps, "intermediate_size": 50}
    for name in usual:
        assert written[name] == (usual | changes)[name]
    found = transformers.ViTMSNModel.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        close(found(images).last_hidden_state, network(images).last_hidden_state)


def test_heads_that_a_config_leaves_out_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    own = MSN | {"hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 1}
    network = stirred(transformers.ViTMSNModel(transformers.ViTMSNConfig(**own)))
    network.save_pretrained(tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["num_attention_heads"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    card = import_checkpoint(tmp_path / "hf", tmp_path / "out")
    assert card.notes["attention heads"] == "12, as transformers takes it: config.json names none"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        close(features(tmp_path / "out", images), network(images).last_hidden_state[:, 0])


def hf_folder(tmp_path: Path, config: dict[str, Any] | None = None, **preprocessor: Any) -> Path:
    from belvedere.zoo.write.huggingface import released_state

    folder = tmp_path / "hf"
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in released_state(drawn(small_vit())).items()},
        folder / "model.safetensors",
    )
    own = {"model_type": "vit_msn", "num_attention_heads": 2} | (config or {})
    (folder / "config.json").write_text(json.dumps(own))
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"hidden_act": "quick_gelu"},
            "hidden_act 'quick_gelu'; belvedere's ViT has 'gelu' or 'gelu_python'",
        ),
        ({"model_type": "vit"}, "model_type 'vit'"),
        ({"num_channels": 1}, "num_channels 1"),
        ({"hidden_size": 64}, "hidden_size 64, the tensors 128"),
        ({"num_hidden_layers": 12}, "num_hidden_layers 12, the tensors 2"),
        ({"intermediate_size": 512}, "intermediate_size 512, the tensors 192"),
        ({"image_size": [18, 36]}, r"image_size \[18, 36\]"),
        ({"qkv_bias": False}, "qkv_bias False, the tensors True"),
        ({"num_attention_heads": 3}, "no multiple of heads 3"),
        ({"num_attention_heads": 2.0}, "num_attention_heads 2.0, must be a whole number"),
        ({"num_attention_heads": True}, "num_attention_heads True"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps 'small'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps 0"),
    ],
)
def test_settings_of_a_vitmsn_that_cannot_be_are_refused(
    tmp_path: Path, config: dict[str, Any], told: str
) -> None:
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(hf_folder(tmp_path, config), tmp_path / "out")


def test_settings_that_nothing_reads_are_named(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path, {"wobble": 1, "hidden_dropout_prob": 0.1}, size=18, resample=3, crop_pct=0.9)
    notes = import_checkpoint(folder, tmp_path / "out").notes
    assert notes["not used of config.json"] == "1: wobble"
    assert notes["not used of preprocessor_config.json"] == "1: crop_pct"


IMAGENET = (0.485, 0.456, 0.406)
STATED = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
    ("settings", "sizes", "mean"),
    [
        ({"size": 18} | STATED, (18, 18, "bilinear"), (0.5, 0.4, 0.3)),
        ({"size": {"height": 18, "width": 18}, "resample": 3} | STATED, (18, 18, "bicubic"), (0.5, 0.4, 0.3)),
        (
            {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 36, "width": 36}}
            | STATED,
            (40, 36, "bilinear"),
            (0.5, 0.4, 0.3),
        ),
        ({"size": 18, "do_normalize": False}, (18, 18, "bilinear"), (0.0, 0.0, 0.0)),
        ({"size": 18, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3},
         (18, 18, "bilinear"), (0.5, 0.5, 0.5)),
        ({"size": 18, "rescale_factor": 2 / 255, "image_mean": [1] * 3, "image_std": [1] * 3},
         (18, 18, "bilinear"), (0.5, 0.5, 0.5)),
        ({"resample": 3}, (18, 18, "bicubic"), IMAGENET),
        ({}, (21, 18, "bilinear"), IMAGENET),
    ],
)  # fmt: skip
def test_images_are_prepared_as_the_file_says(
    tmp_path: Path, settings: dict[str, Any], sizes: tuple[int, int, str], mean: tuple[float, ...]
) -> None:
    card = import_checkpoint(hf_folder(tmp_path, **settings), tmp_path / "out")
    found = card.features
    assert (found.resize_px, found.crop_px, found.interpolation) == sizes
    assert card.mean == pytest.approx(mean)
    if "size" not in settings:
        assert "18 px" in card.notes["images"]
        assert "assumed" in card.notes["images"]
    if settings.get("do_normalize") is False:
        assert card.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"size": {"height": 18, "width": 36}}, "belvedere's images are square"),
        ({"size": {"longest_edge": 18}}, "give height and width, or shortest_edge"),
        ({"size": "18"}, "must be whole numbers of pixels"),
        ({"size": 0}, "must be whole numbers of pixels"),
        ({"size": 20}, "images of 20 px, which is no multiple"),
        ({"size": 18, "resample": 0}, "resample 0; belvedere resizes"),
        ({"size": 18, "resample": [2]}, "resample"),
        ({"size": 18, "do_center_crop": True, "crop_size": 36}, "a crop cannot be larger"),
        ({"size": 18, "do_center_crop": True}, "do_center_crop true and no crop_size"),
        ({"size": 18, "do_center_crop": "yes"}, "do_center_crop 'yes', must be true or false"),
        ({"size": 18, "image_mean": [0.5]}, "image_mean .*three numbers"),
        ({"size": 18, "image_std": [0, 1, 1]}, "image_std .*positive"),
        ({"size": 18, "image_mean": ["a", 1, 1]}, "image_mean .*three numbers"),
        ({"size": 18, "do_flip_channel_order": True}, "do_flip_channel_order True"),
        ({"size": 18, "rescale_factor": 0}, "rescale_factor 0, must be a number above 0"),
        ({"size": 18, "rescale_factor": 1e-320, "image_mean": [0.5] * 3}, "rescale_factor, .*must be three"),
        ({"size": 18, "rescale_factor": 1e308, "do_normalize": False}, "rescale_factor, .*must be three"),
        ({"size": 18, "image_mean": [10**400] * 3}, "image_mean .*must be three"),
        ({"size": 18, "image_std": []}, "image_std .*three numbers"),
        ({"size": 18 << 20}, "must be at most 65536 pixels"),
        ({"size": 18, "do_center_crop": True, "crop_size": 0}, "crop_size 0, must be whole"),
        ({"size": 18, "do_align_long_axis": True}, "do_align_long_axis True, which belvedere cannot do"),
        ({"size": 18, "do_grayscale": True}, "do_grayscale True, which belvedere cannot do"),
    ],
)
def test_preparations_that_cannot_be_are_refused(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(WeightsError, match=told):
        import_checkpoint(hf_folder(tmp_path, **settings), tmp_path / "out")


@pytest.mark.parametrize("text", [b'{"size": NaN}', b"\xff\xfe{\0}\0", b"[1]", b"[" * 100_000, b"{", b""])
def test_a_settings_file_that_is_no_json_object_is_named(tmp_path: Path, text: bytes) -> None:
    folder = hf_folder(tmp_path)
    (folder / "preprocessor_config.json").write_bytes(text)
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json (cannot be read|is a list)"):
        import_checkpoint(folder, tmp_path / "out")


def test_a_published_file_of_8_px_is_read_at_8_px(tmp_path: Path) -> None:
    state = prefixed(drawn(small_vit(patch_px=4, image_px=8)), "module.")
    torch.save({"target_encoder": state}, tmp_path / "mine.pth")
    card = import_checkpoint(tmp_path / "mine.pth", tmp_path / "out")
    assert (card.features.resize_px, card.features.crop_px) == (9, 8)
    assert card.notes["images"].startswith(
        "8 px, bilinear resizing, and the mean and standard deviation of msn"
    )


def test_a_published_files_name_claims_nothing_of_another_network(tmp_path: Path) -> None:
    torch.save({"target_encoder": drawn(small_vit())}, tmp_path / "vits16_800ep.pth.tar")
    card = import_checkpoint(tmp_path / "vits16_800ep.pth.tar", tmp_path / "out")
    assert card.published == {}
    assert card.features.crop_px == 18


def test_a_card_is_small() -> None:
    """The card of a usual network has none of the optional keys."""
    assert "norm_eps" not in small_card(swin()).model_dump_json()
    assert "qkv_bias" not in small_card(vit()).model_dump_json()


def test_a_published_files_name_and_sizes_claim_what_is_published(tmp_path: Path) -> None:
    from belvedere.zoo.catalogue import entries
    from belvedere.zoo.convert.checkpoint import Asked, Checkpoint
    from belvedere.zoo.convert.described import described

    entry = next(one for one in entries() if one.name == "msn/vits16")
    assert entry.file is not None
    card = described(
        Checkpoint({}, entry.file),
        Asked(),
        system="msn",
        backbone=entry.backbone,
        features=entry.features,
        dropped={},
    )
    assert card.published.items() >= {"recipe": "msn/vits16", **entry.accuracy}.items()
    assert card.notes == {}
