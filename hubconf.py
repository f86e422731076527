"""Entry points of torch.hub, for a local checkout as for a remote one.

    import torch
    model = torch.hub.load("PATH/OF/belvedere", "resnet50", source="local", pretrained="swav_800ep.pth.tar")
    features = model(images)  # [B, 2048]; images [B, 3, H, W], normalized

pretrained: False (fresh weights), or the path of a published checkpoint, which is read strictly: every tensor
is used, or dropped by a rule, or it is an error. `model.forward(images)` gives the regions and blocks too.
"""

import sys as _sys
from pathlib import Path as _Path

from torch import nn as _nn

dependencies = ["torch", "numpy", "pydantic", "yaml", "safetensors"]

_SOURCE = str(_Path(__file__).resolve().parent / "src")
if _SOURCE not in _sys.path:  # the checkout need not be installed
    _sys.path.insert(0, _SOURCE)

from belvedere.zoo.hub import hub_network as _network  # noqa: E402


def resnet50(pretrained: bool | str | _Path = False) -> _nn.Module:
    """ResNet-50: SwAV, DeepCluster-v2, SeLa-v2, EsViT."""
    return _network("resnet50", pretrained)


def resnet50w2(pretrained: bool | str | _Path = False) -> _nn.Module:
    """SwAV's ResNet-50, twice as wide."""
    return _network("resnet50w2", pretrained)


def resnet50w4(pretrained: bool | str | _Path = False) -> _nn.Module:
    """SwAV's ResNet-50, four times as wide."""
    return _network("resnet50w4", pretrained)


def resnet50w5(pretrained: bool | str | _Path = False) -> _nn.Module:
    """SwAV's ResNet-50, five times as wide."""
    return _network("resnet50w5", pretrained)


def msn_vits16(pretrained: bool | str | _Path = False) -> _nn.Module:
    """MSN's ViT-Small, patches of 16 px."""
    return _network("msn_vits16", pretrained)


def msn_vitb16(pretrained: bool | str | _Path = False) -> _nn.Module:
    """MSN's ViT-Base, patches of 16 px."""
    return _network("msn_vitb16", pretrained)


def msn_vitl16(pretrained: bool | str | _Path = False) -> _nn.Module:
    """MSN's ViT-Large, patches of 16 px."""
    return _network("msn_vitl16", pretrained)


def msn_vitb8(pretrained: bool | str | _Path = False) -> _nn.Module:
    """MSN's ViT-Base, patches of 8 px."""
    return _network("msn_vitb8", pretrained)


def msn_vitb4(pretrained: bool | str | _Path = False) -> _nn.Module:
    """MSN's ViT-Base, patches of 4 px."""
    return _network("msn_vitb4", pretrained)


def msn_vitl7(pretrained: bool | str | _Path = False) -> _nn.Module:
    """MSN's ViT-Large, patches of 7 px."""
    return _network("msn_vitl7", pretrained)


def esvit_swin_tiny_w7(pretrained: bool | str | _Path = False) -> _nn.Module:
    """EsViT's Swin-Tiny, windows of 7 cells."""
    return _network("esvit_swin_tiny_w7", pretrained)


def esvit_swin_small_w7(pretrained: bool | str | _Path = False) -> _nn.Module:
    """EsViT's Swin-Small, windows of 7 cells."""
    return _network("esvit_swin_small_w7", pretrained)


def esvit_swin_base_w7(pretrained: bool | str | _Path = False) -> _nn.Module:
    """EsViT's Swin-Base, windows of 7 cells."""
    return _network("esvit_swin_base_w7", pretrained)


def esvit_swin_tiny_w14(pretrained: bool | str | _Path = False) -> _nn.Module:
    """EsViT's Swin-Tiny, windows of 14 cells."""
    return _network("esvit_swin_tiny_w14", pretrained)


def esvit_swin_small_w14(pretrained: bool | str | _Path = False) -> _nn.Module:
    """EsViT's Swin-Small, windows of 14 cells."""
    return _network("esvit_swin_small_w14", pretrained)


def esvit_swin_base_w14(pretrained: bool | str | _Path = False) -> _nn.Module:
    """EsViT's Swin-Base, windows of 14 cells."""
    return _network("esvit_swin_base_w14", pretrained)


def esvit_cvt_w7(pretrained: bool | str | _Path = False) -> _nn.Module:
    """EsViT's CvT, windows of 7 cells."""
    return _network("esvit_cvt_w7", pretrained)


def esvit_vil_w7(pretrained: bool | str | _Path = False) -> _nn.Module:
    """EsViT's ViL, windows of 7 cells."""
    return _network("esvit_vil_w7", pretrained)


def mugs_vits16(pretrained: bool | str | _Path = False) -> _nn.Module:
    """Mugs' ViT-Small, patches of 16 px."""
    return _network("mugs_vits16", pretrained)


def mugs_vitb16(pretrained: bool | str | _Path = False) -> _nn.Module:
    """Mugs' ViT-Base, patches of 16 px."""
    return _network("mugs_vitb16", pretrained)


def mugs_vitl16(pretrained: bool | str | _Path = False) -> _nn.Module:
    """Mugs' ViT-Large, patches of 16 px."""
    return _network("mugs_vitl16", pretrained)
