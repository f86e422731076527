"""CvT and ViL of EsViT: their specs from a case's words, CvT in train mode, ViL's modes.

The kinds that are of every backbone (`forward_features`, `n_last_blocks`) are handled elsewhere and take the
specs from here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from belvedere.nn.backbone import Features
from belvedere.nn.build import build
from belvedere.nn.norm import commit_, globalize_
from belvedere.nn.spec import CvTSpec, ViLSpec
from belvedere.nn.spec.cvt import cvt_spec
from belvedere.nn.spec.vil import vil_spec
from golden import compare, fill_, normal, stats, weights

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]


def cvt_case_spec(backbone: dict[str, Any]) -> CvTSpec:
    """The CvT that a case's `args.backbone` describes, without drop path, as all of these cases are."""
    assert _options(backbone).keys() <= {"MODEL.NUM_CLASSES"}, backbone
    return cvt_spec(backbone["arch"], drop_path=0.0)


def vil_case_spec(backbone: dict[str, Any]) -> ViLSpec:
    """The ViL that a case's `args.backbone` describes, without drop path: stages by the arch string, in which
    each letter stands before its number."""
    options = _options(backbone)
    known = {f"MODEL.SPEC.MSVIT.{key}" for key in ("ARCH", "MODE", "VIL_MODE_SWITCH")} | {"MODEL.NUM_CLASSES"}
    assert options.keys() <= known, backbone
    stages = [
        {word[0]: int(word[1:]) for word in stage.split(",")}
        for stage in options["MODEL.SPEC.MSVIT.ARCH"].split("_")
    ]
    (window,) = {stage["f"] for stage in stages}
    assert all(stage["a"] == 0 and stage.get("r", 0) == 0 and stage["g"] in (0, 1) for stage in stages)
    values = vil_spec(backbone["arch"]).model_dump() | {
        "widths": tuple(stage["d"] for stage in stages),
        "heads": tuple(stage["h"] for stage in stages),
        "blocks": tuple(stage["n"] for stage in stages),
        "patches": tuple(stage["p"] for stage in stages),
        "sparse": tuple(bool(stage["s"]) for stage in stages),
        "class_token": tuple(bool(stage["g"]) for stage in stages),
        "window": window,
        "mode": options.get("MODEL.SPEC.MSVIT.MODE", 0),
        "drop_path": 0.0,
    }
    return ViLSpec.model_validate(values)


def _options(backbone: dict[str, Any]) -> dict[str, Any]:
    words = backbone.get("opts", [])
    return dict(zip(words[::2], words[1::2], strict=True))


def _compare_features(case: Case, arrays: Arrays, tag: str, features: Features) -> None:
    assert features.regions is not None
    stride = case["args"].get("region_channel_stride", 1)
    compare(case, f"{tag}_pooled", features.pooled, arrays[f"{tag}_pooled"])
    compare(case, f"{tag}_region_slice", features.regions[..., ::stride], arrays[f"{tag}_region_slice"])
    name = f"{tag}_region_mean_std_l2"
    compare(case, name, stats(features.regions), arrays[name])


def check_train_mode_bn(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    assert args["backbone"]["family"] == "cvt", args["backbone"]
    network = build(cvt_case_spec(args["backbone"]))
    fill_(network, weights(case))
    globalize_(network)
    network.train()
    for image in args["images"]:
        with torch.no_grad():
            features = network(normal(image["seed"], image["shape"]))
        commit_(network)
        _compare_features(case, arrays, f"s{image['shape'][-1]}", features)
    buffers = dict(network.named_buffers())
    for name in args["store_buffers"]:
        key = f"after_{name.replace('.', '__')}"
        compare(case, key, buffers[name], arrays[key])


def check_vil_modes(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    state = weights(case)
    spec = vil_case_spec(args["backbone"])
    trained, own = build(spec), build(spec.model_copy(update={"mode": -1}))
    fill_(trained, state)
    fill_(own, state)
    trained.train()
    own.eval()
    for image in args["images"]:
        images, tag = normal(image["seed"], image["shape"]), f"s{image['shape'][-1]}"
        with torch.no_grad():
            drawn = arrays[f"{tag}_train_drawn_modes"].tolist()
            _compare_features(case, arrays, f"{tag}_train", trained(images, neighbours=drawn))
            _compare_features(case, arrays, f"{tag}_mode_minus1", own(images))


HANDLERS = {
    ("esvit", "train_mode_bn"): check_train_mode_bn,
    ("esvit", "vil_modes"): check_vil_modes,
}
