"""EsViT's networks: features at both crop sizes and those of the last blocks, for every backbone; Swin's
attention. The specs of CvT and ViL come from `handlers_esvit_cvt_vil`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from handlers_esvit_cvt_vil import cvt_case_spec, vil_case_spec
from torch import Tensor

from belvedere.eval.features import feature
from belvedere.nn.build import build
from belvedere.nn.spec import BackboneSpec, FeatureSpec, SwinSpec, ViTSpec
from belvedere.nn.spec.resnet import resnet_spec
from belvedere.nn.spec.swin import swin_spec
from belvedere.nn.spec.vit import vit_spec
from belvedere.nn.swin import Swin
from belvedere.nn.vit import ViT
from golden import compare, fill_, normal, stats, weights

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]


def case_spec(backbone: dict[str, Any]) -> BackboneSpec:
    """The network that a case's `args.backbone` describes."""
    match backbone["family"]:
        case "swin" | "swin_tiny_custom":
            return swin_case_spec(backbone)
        case "cvt":
            return cvt_case_spec(backbone)
        case "vil":
            return vil_case_spec(backbone)
        case "resnet":
            return resnet_spec(backbone["arch"])
        case "vit":
            patch_px = backbone["patch_size"]
            other = {"patch_px": patch_px, "image_px": 224 // patch_px * patch_px}
            return ViTSpec.model_validate(vit_spec(backbone["arch"]).model_dump() | other)
        case family:
            raise AssertionError(f"another family of networks: {family}")


def swin_case_spec(backbone: dict[str, Any]) -> SwinSpec:
    """A Swin without drop path, by its published name and its file of settings or by its sizes."""
    if "ctor" not in backbone:
        assert backbone.get("opts", []) in ([], ["MODEL.NUM_CLASSES", 0]), backbone
        found = re.search(r"_patch4_window(\d+)_224\.yaml$", backbone["cfg"])
        assert found, f"other settings: {backbone['cfg']}"
        return swin_spec(backbone["arch"], window=int(found[1]), drop_path=0.0)
    given = dict(backbone["ctor"])
    assert given.pop("drop_path_rate") == 0.0
    spec = SwinSpec(
        name="swin",
        image_px=given.pop("img_size"),
        patch_px=given.pop("patch_size"),
        embed_width=given.pop("embed_dim"),
        blocks=tuple(given.pop("depths")),
        heads=tuple(given.pop("num_heads")),
        window=given.pop("window_size"),
        mlp_ratio=float(given.pop("mlp_ratio", 4.0)),
        drop_path=0.0,
    )
    assert not given, f"other settings: {given}"
    return spec


def case_network(case: Case) -> torch.nn.Module:
    """The network of a case, with its weights, in evaluation mode."""
    network = build(case_spec(case["args"]["backbone"]))
    wrapped = case["args"]["backbone"]["family"] == "resnet"
    fill_(network, {_inner(name, wrapped=wrapped): value for name, value in weights(case).items()})
    return network.eval()


def _inner(name: str, *, wrapped: bool) -> str:
    assert not wrapped or name.startswith("backbone.")
    return name.removeprefix("backbone.") if wrapped else name


def check_forward_features(case: Case, arrays: Arrays) -> None:
    network, args = case_network(case), case["args"]
    stride = args["region_channel_stride"]
    found: dict[str, Any] = {}
    for image in args["images"]:
        tag = f"s{image['shape'][-1]}"
        with torch.no_grad():
            features = network(normal(image["seed"], image["shape"]))
        found[f"{tag}_pooled"] = features.pooled
        found[f"{tag}_region_slice"] = features.regions[..., ::stride]
        found[f"{tag}_region_mean_std_l2"] = stats(features.regions)
        assert features.grid[0] * features.grid[1] == features.regions.shape[1]
    for name, expected in arrays.items():
        compare(case, name, found[name], expected)


def check_n_last_blocks(case: Case, arrays: Arrays) -> None:
    network, args = case_network(case), case["args"]
    (image,) = args["images"]
    with torch.no_grad():
        output = network(normal(image["seed"], image["shape"]), blocks=max(args["n_last_blocks"]))

        def named(source: str, blocks: int) -> Tensor:
            stages = "all" if args["backbone"]["family"] == "vit" else "last_stage"
            spec = FeatureSpec.model_validate(_IMAGE | {"source": source, "blocks": blocks, "norm": stages})
            return feature(output, spec, network.norm)

        found = {"knn_feature": output.pooled}
        for blocks in args["n_last_blocks"]:
            for averaged in args["avgpool_patchtokens"]:
                name = f"n{blocks}_avgpool{int(averaged)}"
                if args["backbone"]["family"] != "vit":
                    found[name] = named("cls_or_mean", blocks)
                else:
                    mean = [named("mean", 1)] if averaged else []
                    found[name] = torch.cat([named("cls", blocks), *mean], dim=1)
    for name, expected in arrays.items():
        compare(case, name, found[name], expected)


_IMAGE = {"resize_px": 256, "crop_px": 224, "interpolation": "bicubic"}


def _attention(network: torch.nn.Module, images: Tensor) -> list[Tensor]:
    """The softmaxed attention of every block."""
    if isinstance(network, Swin):
        return network.attention(images)
    assert isinstance(network, ViT)
    maps, (x, _) = [], network.embed(images)
    for block in network.blocks:
        maps.append(block.attn.weights(block.norm1(x)))
        x = block(x)
    return maps


def check_attention_maps(case: Case, arrays: Arrays) -> None:
    network, args = case_network(case), case["args"]
    (image,) = args["images"]
    with torch.no_grad():
        maps = _attention(network, normal(image["seed"], image["shape"]))
    found: dict[str, Any] = {
        "last_attention_rows": maps[-1][:, :, args["query_rows"]],
        "all_shapes": np.array([list(one.shape) for one in maps]),
    }
    for name in arrays.keys() - found.keys():
        parts = re.fullmatch(r"layer(\d+)_(window0|last_window)_row(\d+)", name)
        assert parts, f"another array: {name}"
        window = 0 if parts[2] == "window0" else -1
        found[name] = maps[int(parts[1])][window, :, int(parts[3])]
    for name, expected in arrays.items():
        compare(case, name, found[name], expected)


HANDLERS = {
    ("esvit", "forward_features"): check_forward_features,
    ("esvit", "n_last_blocks"): check_n_last_blocks,
    ("esvit", "attention_maps"): check_attention_maps,
}
