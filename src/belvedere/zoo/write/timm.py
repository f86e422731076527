"""A ViT, ResNet or Swin as timm reads it: `model.safetensors`, and `config.json` for `local-dir:`.

ViTs and ResNets share their names with timm. A Swin's halvings stand at the start of the stage after. An
epsilon of norms that is not timm's (a published Swin's is 1e-6, timm's 1e-5) cannot stand in `config.json`:
loaded from the folder in one line the network has timm's, and what that changes is measured and told beside
the comparison that must hold.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from belvedere.core.errors import WeightsError
from belvedere.core.files import save_tensors, write_json
from belvedere.nn.spec import BackboneSpec, ResNetSpec, SwinSpec, ViTSpec
from belvedere.nn.vit import ViT
from belvedere.zoo.cards import Card
from belvedere.zoo.convert.timm_config import SWIN_EPS, VIT_EPS
from belvedere.zoo.network_words import kind_of
from belvedere.zoo.statement import Statement, metadata
from belvedere.zoo.write.agreement import EXACT, doubled
from belvedere.zoo.write.positions import at_size, positions_for
from belvedere.zoo.write.resnets import named_resnet, resnet_refusal
from belvedere.zoo.write.target import Outgoing, Side, Target, square

_OTHER_EPS = 1e-2
"""Tolerance of a network with timm's own eps: another one, whose distance is told. With drawn weights of a
Swin it is 5e-5 of images and 2e-4 of flat color; beyond this no one should load it so."""
_DOWNSAMPLE = re.compile(r"layers\.(\d+)\.downsample\.")
# width, depth, heads, patch_px of networks that timm has by name
_VITS = {
    (192, 12, 3, 16): "vit_tiny_patch16_224",
    (384, 12, 6, 16): "vit_small_patch16_224",
    (384, 12, 6, 8): "vit_small_patch8_224",
    (768, 12, 12, 16): "vit_base_patch16_224",
    (768, 12, 12, 8): "vit_base_patch8_224",
    (1024, 24, 16, 16): "vit_large_patch16_224",
}
_SWINS: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24)): "swin_tiny_patch4_window7_224",
    (96, (2, 2, 18, 2), (3, 6, 12, 24)): "swin_small_patch4_window7_224",
    (128, (2, 2, 18, 2), (4, 8, 16, 32)): "swin_base_patch4_window7_224",
    (192, (2, 2, 18, 2), (6, 12, 24, 48)): "swin_large_patch4_window7_224",
}


def architecture(card: Card) -> tuple[str, dict[str, Any]]:
    """timm's name of a network, and the arguments by which it differs from the one of that name."""
    spec = card.backbone
    if isinstance(spec, ViTSpec):
        return _vit(spec, card.features.crop_px)
    if isinstance(spec, SwinSpec):
        return _swin(spec)
    assert isinstance(spec, ResNetSpec)
    name, layers = named_resnet(spec)
    return name, {} if layers is None else {"layers": layers}


def timm_state(backbone: nn.Module, px: int) -> dict[str, Tensor]:
    """The backbone's tensors under timm's names, a ViT's positions for images of `px` pixels."""
    if isinstance(backbone, ViT):
        return positions_for(backbone, px)
    state: dict[str, Tensor] = {}
    for name, tensor in backbone.state_dict().items():
        found = _DOWNSAMPLE.match(name)
        later = f"layers.{int(found[1]) + 1}.downsample.{name[found.end() :]}" if found else name
        state[later] = tensor
    return state


def _vit(spec: ViTSpec, px: int) -> tuple[str, dict[str, Any]]:
    own: dict[str, Any] = {"img_size": px} if px != 224 else {}
    own |= {"mlp_ratio": spec.mlp_ratio} if spec.mlp_ratio != 4.0 else {}
    own |= {} if spec.qkv_bias else {"qkv_bias": False}
    if name := _VITS.get((spec.width, spec.depth, spec.heads, spec.patch_px)):
        return name, own
    sizes = {"embed_dim": spec.width, "depth": spec.depth, "num_heads": spec.heads}
    return "vit_base_patch16_224", {**own, "patch_size": spec.patch_px, **sizes}


def _swin(spec: SwinSpec) -> tuple[str, dict[str, Any]]:
    own: dict[str, Any] = {"img_size": spec.image_px} if spec.image_px != 224 else {}
    own |= {"window_size": spec.window} if spec.window != 7 else {}
    own |= {"patch_size": spec.patch_px} if spec.patch_px != 4 else {}
    own |= {"mlp_ratio": spec.mlp_ratio} if spec.mlp_ratio != 4.0 else {}
    if name := _SWINS.get((spec.embed_width, spec.blocks, spec.heads)):
        return name, own
    sizes = {"embed_dim": spec.embed_width, "depths": list(spec.blocks), "num_heads": list(spec.heads)}
    return "swin_tiny_patch4_window7_224", {**own, **sizes}


def other_eps(spec: BackboneSpec) -> float | None:
    """The epsilon of a network's norms, where timm's have another; a ResNet's BatchNorms are alike."""
    if isinstance(spec, ViTSpec):
        return None if spec.norm_eps == VIT_EPS else spec.norm_eps
    return spec.norm_eps if isinstance(spec, SwinSpec) and spec.norm_eps != SWIN_EPS else None


def _refusal(card: Card) -> str:
    spec = card.backbone
    if isinstance(spec, ResNetSpec):
        return resnet_refusal(spec, "timm")
    if isinstance(spec, SwinSpec) or (isinstance(spec, ViTSpec) and spec.stem == "patch"):
        return ""
    return f"timm has no {kind_of(spec)} of this kind"


def _px(card: Card) -> int:
    return card.backbone.image_px if isinstance(card.backbone, SwinSpec) else card.features.crop_px


def _write(folder: Path, outgoing: Outgoing) -> None:
    card, px = outgoing.card, _px(outgoing.card)
    state = timm_state(outgoing.backbone, px)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_tensors(folder / "model.safetensors", plain, metadata=metadata(Statement("timm", at_size(card, px))))
    name, arguments = architecture(card)
    pretrained = {
        "input_size": [3, px, px],
        "fixed_input_size": not isinstance(card.backbone, ResNetSpec),
        "interpolation": card.features.interpolation,
        "crop_pct": card.features.crop_px / card.features.resize_px,
        "crop_mode": "center",
        "mean": list(card.mean),
        "std": list(card.std),
        "num_classes": 0,
    }
    written = {
        "architecture": name,
        "num_classes": 0,
        "num_features": outgoing.backbone.width,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }
    write_json(folder / "config.json", written)


def _read_back(folder: Path, outgoing: Outgoing) -> list[Side]:
    import timm

    name, arguments = architecture(outgoing.card)
    spec, own = outgoing.card.backbone, doubled(outgoing.backbone)

    def made(**more: Any) -> Any:
        model: Any = timm.create_model(name, pretrained=False, num_classes=0, **arguments, **more)
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
        except RuntimeError as error:
            raise WeightsError(f"timm's {name} does not take the exported tensors: {error}") from error
        return model.double().eval()

    def ours(images: Tensor) -> Tensor:
        features = own(images)
        assert features.regions is not None
        parts = [features.regions, features.pooled[:, None]]
        return torch.cat(parts[::-1] if features.cls is not None else parts, dim=1)

    def theirs(images: Tensor, model: Any) -> Tensor:
        last: Tensor = model.forward_features(images)
        if isinstance(spec, ViTSpec):
            return last  # [B, 1 + N, D]
        pooled: Tensor = model.forward_head(last, pre_logits=True)
        cells = last.flatten(2).mT if isinstance(spec, ResNetSpec) else last.flatten(1, 2)  # [B, N, D]
        return torch.cat([cells, pooled[:, None]], dim=1)

    px = _px(outgoing.card)
    sizes = [square(px), (px + 32, px + 65)] if isinstance(spec, ResNetSpec) else [square(px)]
    what = f"{name}, all features"

    def side(what: str, tolerance: float, **more: Any) -> Side:
        return Side(what, ours, partial(theirs, model=made(**more)), tuple(sizes), tolerance, True)

    eps = other_eps(spec)
    if eps is None:
        return [side(what, EXACT)]
    norm = partial(nn.LayerNorm, eps=eps)
    return [side(what, EXACT, norm_layer=norm), side(f"{what}, timm's own eps", _OTHER_EPS)]


def _notes(outgoing: Outgoing) -> list[str]:
    spec, crop = outgoing.card.backbone, outgoing.card.features.crop_px
    notes = []
    if (eps := other_eps(spec)) is not None:
        notes.append(
            f"timm's norms have another eps than this network's ({eps:g}): pass norm_layer as shown. "
            "`local-dir:` cannot, and is off by what is told of timm's own eps"
        )
    if isinstance(spec, ViTSpec) and spec.image_px != crop:
        notes.append(f"the position table of {spec.image_px} px is resized to the card's {crop} px")
    return notes


def _loading(outgoing: Outgoing) -> str:
    name, arguments = architecture(outgoing.card)
    given = "".join(f", {key}={value!r}" for key, value in arguments.items())
    eps = other_eps(outgoing.card.backbone)
    if eps is None:
        return f"""\
import timm
from safetensors.torch import load_file

model = timm.create_model("{name}", num_classes=0{given})
model.load_state_dict(load_file("DIR/model.safetensors"), strict=True)
# or, in one line: timm.create_model("local-dir:DIR", pretrained=True)
"""
    return f"""\
from functools import partial

import timm
import torch
from safetensors.torch import load_file

norm = partial(torch.nn.LayerNorm, eps={eps:g})
model = timm.create_model("{name}", num_classes=0, norm_layer=norm{given})
model.load_state_dict(load_file("DIR/model.safetensors"), strict=True)
"""


TARGET = Target(
    name="timm",
    library="timm",
    extra="timm",
    packages=("timm",),
    refusal=_refusal,
    write=_write,
    read_back=_read_back,
    notes=_notes,
    loading=_loading,
    px=_px,
)
