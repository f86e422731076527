"""A ResNet or ViT as torchvision reads it: `model.safetensors`, a state dict without the classifier.

ResNets share their names with torchvision; a ViT's are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from belvedere.core.errors import WeightsError
from belvedere.core.files import save_tensors
from belvedere.nn.spec import ResNetSpec, ViTSpec
from belvedere.nn.vit import ViT
from belvedere.zoo.cards import Card
from belvedere.zoo.convert.timm_config import VIT_EPS
from belvedere.zoo.network_words import kind_of
from belvedere.zoo.statement import Statement, metadata
from belvedere.zoo.write.agreement import EXACT, doubled
from belvedere.zoo.write.positions import at_size, positions_for
from belvedere.zoo.write.resnets import named_resnet, resnet_refusal
from belvedere.zoo.write.target import Outgoing, Side, Target, square

_WHOLE = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj.weight": "conv_proj.weight",
    "patch_embed.proj.bias": "conv_proj.bias",
    "norm.weight": "encoder.ln.weight",
    "norm.bias": "encoder.ln.bias",
}
_IN_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj.": "self_attention.out_proj.",
    "mlp.fc1.": "mlp.0.",
    "mlp.fc2.": "mlp.3.",
}


def vit_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `ViT` under torchvision's names."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _WHOLE:
            renamed[_WHOLE[name]] = tensor
            continue
        _, number, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        renamed[f"encoder.layers.encoder_layer_{number}.{_IN_BLOCK[part + '.']}{kind}"] = tensor
    return renamed


def _with_bias(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With zeros for the bias of queries, keys and values, where there is none."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found[name] = tensor
        bias = name.removesuffix("weight") + "bias"
        if name.endswith("attn.qkv.weight") and bias not in state:
            found[bias] = tensor.new_zeros(len(tensor))
    return found


def _refusal(card: Card) -> str:
    spec = card.backbone
    if isinstance(spec, ResNetSpec):
        return resnet_refusal(spec, "torchvision")
    if isinstance(spec, ViTSpec) and spec.stem == "patch":
        return ""
    return f"torchvision has no {kind_of(spec)} of this kind"


def _write(folder: Path, outgoing: Outgoing) -> None:
    backbone, px = outgoing.backbone, outgoing.card.features.crop_px
    if isinstance(backbone, ViT):
        state = vit_state(_with_bias(positions_for(backbone, px)))
    else:
        state = dict(backbone.state_dict())
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    stated = at_size(outgoing.card, px)
    if isinstance(stated.backbone, ViTSpec):  # torchvision's attention always has a bias: zeros are written
        stated = stated.model_copy(update={"backbone": stated.backbone.model_copy(update={"qkv_bias": True})})
    save_tensors(folder / "model.safetensors", plain, metadata=metadata(Statement("torchvision", stated)))


def _read_back(folder: Path, outgoing: Outgoing) -> list[Side]:
    from torchvision import models

    spec, px = outgoing.card.backbone, outgoing.card.features.crop_px
    model: nn.Module
    if isinstance(spec, ViTSpec):
        own_eps = {} if spec.norm_eps == VIT_EPS else {"norm_layer": partial(nn.LayerNorm, eps=spec.norm_eps)}
        model = models.VisionTransformer(**_vit_arguments(spec, outgoing.card), **own_eps)
        model.heads = nn.Identity()
    else:
        assert isinstance(spec, ResNetSpec)
        name, layers = named_resnet(spec)
        blocks = {"basic": models.resnet.BasicBlock, "bottleneck": models.resnet.Bottleneck}
        model = getattr(models, name)() if layers is None else models.ResNet(blocks[spec.block], layers)
        model.fc = nn.Identity()
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"torchvision does not take the exported tensors: {error}") from error
    theirs, own = model.double().eval(), doubled(outgoing.backbone)

    def ours(images: Tensor) -> Tensor:
        pooled: Tensor = own(images).pooled
        return pooled

    sizes = [square(px), (px + 32, px + 65)] if isinstance(spec, ResNetSpec) else [square(px)]
    return [Side("pooled features", ours, theirs, tuple(sizes), EXACT, True)]


def _vit_arguments(spec: ViTSpec, card: Card) -> dict[str, Any]:
    return {
        "image_size": card.features.crop_px,
        "patch_size": spec.patch_px,
        "num_layers": spec.depth,
        "num_heads": spec.heads,
        "hidden_dim": spec.width,
        "mlp_dim": int(spec.width * spec.mlp_ratio),
    }


def _notes(outgoing: Outgoing) -> list[str]:
    spec, crop = outgoing.card.backbone, outgoing.card.features.crop_px
    if isinstance(spec, ViTSpec) and spec.image_px != crop:
        return [f"the position table of {spec.image_px} px is resized to the card's {crop} px"]
    return []


def _loading(outgoing: Outgoing) -> str:
    spec = outgoing.card.backbone
    if isinstance(spec, ViTSpec):
        arguments = ", ".join(f"{key}={value}" for key, value in _vit_arguments(spec, outgoing.card).items())
        own_eps = f", norm_layer=partial(torch.nn.LayerNorm, eps={spec.norm_eps:g})"
        arguments += "" if spec.norm_eps == VIT_EPS else own_eps
        made, last = f"models.VisionTransformer({arguments})", "heads"
    else:
        assert isinstance(spec, ResNetSpec)
        name, layers = named_resnet(spec)
        block = {"basic": "BasicBlock", "bottleneck": "Bottleneck"}[spec.block]
        made = f"models.{name}()" if layers is None else f"models.ResNet(models.resnet.{block}, {layers})"
        last = "fc"
    imports = "from functools import partial\n\n" if "partial(" in made else ""
    return f"""\
{imports}import torch
from safetensors.torch import load_file
from torchvision import models

model = {made}
model.{last} = torch.nn.Identity()
model.load_state_dict(load_file("DIR/model.safetensors"), strict=True)
"""


TARGET = Target(
    name="torchvision",
    library="torchvision",
    extra="torchvision",
    packages=("torchvision",),
    refusal=_refusal,
    write=_write,
    read_back=_read_back,
    notes=_notes,
    loading=_loading,
)
