"""What is written for transformers: names of tensors, configuration, preparation of images."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from belvedere.eval.classifier import FeatureNetwork
from belvedere.nn.build import build
from belvedere.nn.spec import FeatureSpec, ViTSpec
from belvedere.zoo.cards import Card
from belvedere.zoo.write import TARGETS, Classifier, Outgoing, write
from belvedere.zoo.write.huggingface import preprocessor
from golden import compare

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]
_RELEASED = "released layout"
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}


def check_save_layout(case: Case, arrays: Arrays) -> None:
    given = dict(case["args"]["config"])
    num_labels = given.pop("num_labels", 2)
    for classification in (False, True):
        outgoing = _outgoing(_spec(given), num_labels if classification else None)
        kind = "ViTMSNForImageClassification" if classification else "ViTMSNModel"
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write(folder, TARGETS["huggingface"], outgoing)
            files = {path.name for path in folder.iterdir()}
            config = json.loads((folder / "config.json").read_text())
            names = _names(folder)
            saved, in_memory = _through_transformers(kind, folder)
        assert files == {*case["args"]["files"], "preprocessor_config.json"}
        assert {key: config[key] for key in given} == given
        for place, (situation, listed) in enumerate(case["args"]["names"].items()):
            if not situation.startswith(kind):
                continue
            compare(case, "out_n_tensors", np.array(len(names)), arrays["out_n_tensors"][place])
            if _RELEASED in situation:
                assert names == listed
                assert saved == listed
            elif "state_dict names" in situation:
                assert in_memory == listed


def check_image_processor(case: Case, arrays: Arrays) -> None:
    import transformers

    settings, image = case["args"]["processor"], arrays["in_image"]
    size = settings["size"]["height"], settings["size"]["width"]
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
    resample = settings["resample"]

    def normalized(levels: Tensor) -> Tensor:
        scaled = levels.float() * settings["rescale_factor"] if settings["do_rescale"] else levels.float()
        return ((scaled - mean) / std if settings["do_normalize"] else scaled)[None]

    pillow, other = Image.fromarray(image), torch.from_numpy(image.transpose(2, 0, 1).copy())
    if settings["do_resize"]:
        pillow = pillow.resize(size[::-1], Image.Resampling(resample))
        mode = InterpolationMode(_INTERPOLATION[resample])
        other = functional.resize(other, list(size), mode, antialias=True)
    levels = torch.from_numpy(np.asarray(pillow).transpose(2, 0, 1).copy())
    compare(case, "out_pil", normalized(levels), arrays["out_pil"])
    compare(case, "out_torchvision", normalized(other), arrays["out_torchvision"])
    if size[0] != size[1] or not all(settings[f"do_{what}"] for what in ("resize", "rescale", "normalize")):
        return  # of what a card can say, the file is held to the case
    written = preprocessor(_card(_spec({}), px=size[0], settings=settings))
    assert {key: written[key] for key in settings} == settings
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "preprocessor_config.json").write_text(json.dumps(written))
        back_ends = {"out_torchvision": "ViTImageProcessor", "out_pil": "ViTImageProcessorPil"}
        for name, kind in back_ends.items():
            if not hasattr(transformers, kind):
                continue  # before 5.0 the two had other names
            processor = getattr(transformers, kind).from_pretrained(scratch)
            pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
            compare(case, name, pixels, arrays[name])


def _spec(config: dict[str, Any]) -> ViTSpec:
    width = config.get("hidden_size", 8)
    return ViTSpec(
        name="vit",
        width=width,
        depth=config.get("num_hidden_layers", 1),
        heads=config.get("num_attention_heads", 1),
        patch_px=config.get("patch_size", 1),
        mlp_ratio=config.get("intermediate_size", width) / width,
        stem="patch",
        image_px=config.get("image_size", 1),
        drop_path=0.0,
    )


def _card(spec: ViTSpec, *, px: int, settings: dict[str, Any] | None = None) -> Card:
    chosen = settings or {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    return Card(
        system="msn",
        backbone=spec,
        features=FeatureSpec(
            source="cls",
            blocks=1,
            norm="none",
            resize_px=px,
            crop_px=px,
            interpolation=_INTERPOLATION[chosen["resample"]],
        ),
        mean=tuple(chosen["image_mean"]),
        std=tuple(chosen["image_std"]),
        source="golden",
    )


def _outgoing(spec: ViTSpec, num_labels: int | None) -> Outgoing:
    backbone, card = build(spec), _card(spec, px=spec.image_px)
    backbone.initialize_(torch.Generator().manual_seed(0))
    if num_labels is None:
        return Outgoing(backbone.eval(), card, FeatureNetwork(backbone, card.features), {})
    weights = torch.randn(spec.width, num_labels, generator=torch.Generator().manual_seed(1)).double()
    classes = tuple(f"class {number}" for number in range(num_labels))
    network = FeatureNetwork(backbone, card.features, weights)
    return Outgoing(backbone.eval(), card, network, {}, Classifier(weights, classes, 0.1, num_labels))


def _names(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sorted(file.keys())


def _through_transformers(kind: str, folder: Path) -> tuple[list[str], list[str]]:
    """Names that transformers writes for a model it has read from `folder`, and those it has in memory."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        return _names(Path(scratch)), sorted(model.state_dict())


HANDLERS = {
    ("huggingface", "hf_save_layout"): check_save_layout,
    ("huggingface", "hf_image_processor"): check_image_processor,
}
