"""What `torch.hub.load` gives: a published architecture, fresh or with the weights of a file at hand."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from belvedere.core.errors import UsageError
from belvedere.nn.backbone import Features
from belvedere.nn.build import build
from belvedere.zoo.cards import CARD_NAME
from belvedere.zoo.convert.asked import asked_for
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import fill_, load

ENTRIES = {
    "resnet50": "resnet50",
    "resnet50w2": "resnet50w2",
    "resnet50w4": "resnet50w4",
    "resnet50w5": "resnet50w5",
    "msn_vits16": "msn/vits16",
    "msn_vitb16": "msn/vitb16",
    "msn_vitl16": "msn/vitl16",
    "msn_vitb8": "msn/vitb8",
    "msn_vitb4": "msn/vitb4",
    "msn_vitl7": "msn/vitl7",
    "esvit_swin_tiny_w7": "esvit/swin-tiny-w7",
    "esvit_swin_small_w7": "esvit/swin-small-w7",
    "esvit_swin_base_w7": "esvit/swin-base-w7",
    "esvit_swin_tiny_w14": "esvit/swin-tiny-w14",
    "esvit_swin_small_w14": "esvit/swin-small-w14",
    "esvit_swin_base_w14": "esvit/swin-base-w14",
    "esvit_cvt_w7": "esvit/cvt-w7",
    "esvit_vil_w7": "esvit/vil-w7",
    "mugs_vits16": "mugs/vits16-800ep",
    "mugs_vitb16": "mugs/vitb16-400ep",
    "mugs_vitl16": "mugs/vitl16-250ep",
}
"""By entry point what `belvedere import --as` calls the network. The ResNets are SwAV's, DeepCluster-v2's,
SeLa-v2's and EsViT's alike."""


def hub_network(name: str, pretrained: bool | str | Path = False) -> nn.Module:
    """The network of an entry point, in evaluation mode: images [B, 3, H, W] -> features [B, D].

    The features are what the paper's head reads: a ResNet's average, a ViT's class token after the final
    norm, the mean of a Swin's regions. `network.forward(images)` gives all there is (`Features`).

    pretrained: False for fresh weights, drawn from torch's generator; or the path of a published checkpoint,
    a run's directory or an exported folder. Raises `WeightsError` if one tensor of it does not fit this
    network.
    """
    if pretrained is True:
        raise UsageError(
            f"{name}: pretrained=True would have to download; give the path of the authors' file (`belvedere "
            "zoo` lists where each lies), or pretrained=False for fresh weights"
        )
    spec = asked_for(ENTRIES[name]).backbone
    assert spec is not None, f"{ENTRIES[name]} names no network"
    network = build(spec if spec.name == "resnet" else spec.model_copy(update={"drop_path": 0.0}))
    if pretrained is False:
        seed = int(torch.randint(1 << 62, ()))
        network.initialize_(torch.Generator().manual_seed(seed))
    else:
        fill_(network, _tensors(Path(pretrained).expanduser(), ENTRIES[name]), origin=str(pretrained))
    network.register_forward_hook(pooled)
    return network.eval()


def pooled(module: nn.Module, images: tuple[Tensor, ...], output: Features) -> Tensor:
    """The hook that makes a call of a hub's network give a tensor."""
    return output.pooled


def _tensors(path: Path, asked: str) -> dict[str, Tensor]:
    """The backbone's tensors of belvedere's own files, or of any checkpoint that can be imported."""
    folder = path if path.is_dir() else path.parent
    if any((place / CARD_NAME).is_file() for place in (folder, folder / "backbone")):
        return load(path).backbone.state_dict()
    with tempfile.TemporaryDirectory() as scratch:
        import_checkpoint(path, scratch, architecture=asked)
        return load(scratch).backbone.state_dict()
