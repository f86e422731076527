"""torchvision's state dicts: ResNets, whose names are ours, ViTs and Swins, which have their own.

LayerNorms of its Swins have an epsilon of 1e-5.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from belvedere.zoo.convert.checkpoint import Asked, Checkpoint, Converted, drop, named_tensors, names_of
from belvedere.zoo.convert.networks import family
from belvedere.zoo.convert.swin import DROPPED as TABLES
from belvedere.zoo.convert.timm import converted, from_ours
from belvedere.zoo.convert.timm import recognises as is_flat

SYSTEMS = ("torchvision",)
CLASSIFIER = {"heads": "the classifier", "head": "the classifier"}

_VIT, _SWIN = "conv_proj.weight", "features.0.0.weight"
_VIT_NAMES = (
    (re.compile(r"class_token"), "cls_token"),
    (re.compile(r"encoder\.pos_embedding"), "pos_embed"),
    (re.compile(r"conv_proj\."), "patch_embed.proj."),
    (re.compile(r"encoder\.ln\."), "norm."),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\."), r"blocks.\1.norm\2."),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_"), r"blocks.\1.attn.qkv."),
    (
        re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\."),
        r"blocks.\1.attn.proj.",
    ),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\."), r"blocks.\1.mlp.fc1."),
    (re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\."), r"blocks.\1.mlp.fc2."),
)
"""torchvision's names of a ViT, those of before 0.13 too, and ours."""
_FEATURE = re.compile(r"features\.(\d+)\.(.*)")
_MLP = {"0": "fc1", "3": "fc2"}


def identifies(checkpoint: Checkpoint) -> bool:
    """Whether this is a ViT or a Swin under torchvision's names, which no other library has."""
    content = checkpoint.content
    if not isinstance(content, Mapping):
        return False
    names = names_of(content)
    return _VIT in names or (_SWIN in names and any("relative_position" in name for name in names))


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether this is a ResNet, or a ViT or a Swin under torchvision's names."""
    if identifies(checkpoint):
        return True
    return is_flat(checkpoint) and family(names_of(checkpoint.content)) == "resnet"


def convert(checkpoint: Checkpoint, asked: Asked) -> Converted:
    """Backbone and card; the classifier is left out.

    Raises `WeightsError` listing every entry that is missing, unexpected or mis-shaped.
    """
    origin = checkpoint.origin
    if not {_VIT, _SWIN} & names_of(checkpoint.content):
        return converted(checkpoint, asked, system="torchvision")
    state = named_tensors(checkpoint.content, "the state dict", origin=origin)
    left, dropped = drop(state, CLASSIFIER, first=True)
    if _VIT in left:
        backbone = {_vit_name(name): tensor for name, tensor in left.items()}
    else:
        left, tables = drop(left, TABLES)
        dropped |= tables
        backbone = {_swin_name(name): tensor for name, tensor in left.items()}
    return from_ours(checkpoint, asked, backbone, dropped, system="torchvision")


def _vit_name(name: str) -> str:
    for pattern, ours in _VIT_NAMES:
        renamed, count = pattern.subn(ours, name, count=1)
        if count:
            return renamed
    return name


def _swin_name(name: str) -> str:
    """`features.0` embeds patches, then stages and halvings take turns."""
    found = _FEATURE.fullmatch(name)
    if not found:
        return name
    number, rest = int(found[1]), found[2]
    if number == 0:
        part = {"0": "proj", "2": "norm"}.get(rest[:1])
        return f"patch_embed.{part}.{rest[2:]}" if part else name
    stage = (number - 1) // 2
    if number % 2 == 0:
        return f"layers.{stage}.downsample.{rest}"
    block, _, inner = rest.partition(".")
    parts = inner.split(".")
    if parts[0] == "mlp" and len(parts) == 3 and parts[1] in _MLP:
        inner = f"mlp.{_MLP[parts[1]]}.{parts[2]}"
    return f"layers.{stage}.blocks.{block}.{inner}"
