"""Hugging Face's ViTMSN read through the importer: files in the released names, and the same weights from the
files of MSN and of Mugs."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from belvedere.nn.vit import Block, ViT
from belvedere.zoo.importing import import_checkpoint
from belvedere.zoo.load import load, load_heads
from golden import DDOF, compare, normal, stats, weights

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]
_MASK_TOKEN = "embeddings.mask_token"


def imported(content: Any, name: str, config: dict[str, Any] | None = None) -> tuple[ViT, dict[str, Tensor]]:
    """Backbone and heads of a file that holds this. config: written beside it."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / name, Path(folder) / "imported"
        if file.suffix == ".safetensors":
            save_file(content, file, metadata={"format": "pt"})
        else:
            torch.save(content, file)
        if config is not None:
            file.with_name("config.json").write_text(json.dumps({"model_type": "vit_msn"} | config))
        import_checkpoint(file, out)
        backbone = load(out).backbone
        assert isinstance(backbone, ViT)
        return backbone, load_heads(out)


def released(state: dict[str, Tensor], config: dict[str, Any]) -> tuple[ViT, dict[str, Tensor]]:
    """A ViTMSN of these tensors, through a folder as transformers writes it."""
    return imported(state, "model.safetensors", config)


def tokens(backbone: ViT, images: Tensor) -> Tensor:
    """The class token and the patches after the final norm [B, 1 + N, D]."""
    features = backbone(images)
    assert features.cls is not None
    assert features.regions is not None
    return torch.cat([features.cls[:, None], features.regions], dim=1)


def cls_and_mean(found: Tensor) -> Tensor:
    return torch.cat([found[:, 0], found[:, 1:].mean(1)], dim=1)


def official(state: dict[str, Tensor], args: dict[str, Any]) -> Any:
    """The state dict in a training file of the system that it is of."""
    if args["official"] == "msn":
        return {args["checkpoint_key"]: {"module." + n: t for n, t in state.items()}, "epoch": 3}
    teacher = {"backbone." + name: tensor for name, tensor in state.items()}
    return {args["checkpoint_key"]: teacher, "epoch": 3, "args": argparse.Namespace()}


def renamed(state: dict[str, Tensor], name_map: dict[str, list[str]]) -> dict[str, Tensor]:
    """Under Hugging Face's names: queries, keys and values apart, what has no name left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = name_map[name]
        for theirs, part in zip(names, tensor.chunk(max(1, len(names))), strict=False):
            found[theirs] = part.contiguous()
    return found


@torch.no_grad()
def check_from_backbone(case: Case, arrays: Arrays) -> None:
    args = case["args"]
    state = weights(case)
    ours, _ = imported(official(state, args), "checkpoint.pth")
    theirs, _ = released(renamed(state, args["name_map"]), args["config"])
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    for size in args["sizes"]:
        described = case["recipes"][f"image_{size}"]
        images = normal(described["seed"], described["shape"])
        compare(
            case, f"out_official_{size}", cls_and_mean(tokens(ours, images)), arrays[f"out_official_{size}"]
        )
        found = tokens(theirs, images)
        compare(case, f"out_hf_{size}", cls_and_mean(found), arrays[f"out_hf_{size}"])
        name = f"out_hf_tokens_stats_{size}"
        compare(case, name, stats(found, ddof=DDOF["huggingface"]), arrays[name])


@torch.no_grad()
def check_model(case: Case, arrays: Arrays) -> None:
    backbone, _ = released(weights(case), case["args"]["config"])
    for suffix in ("", "_large", "_rect"):
        images = torch.from_numpy(arrays[f"in_image{suffix}"])
        name = f"out_last_hidden_state{suffix}"
        compare(case, name, tokens(backbone, images), arrays[name])
    x, _ = backbone.embed(torch.from_numpy(arrays["in_image"]))
    states, maps = [x], []
    for block in backbone.blocks:
        assert isinstance(block, Block)
        maps.append(block.attn.weights(block.norm1(x)))
        x = block(x)
        states.append(x)
    compare(case, "out_hidden_states", torch.stack(states), arrays["out_hidden_states"])
    compare(case, "out_attentions", torch.stack(maps), arrays["out_attentions"])


@torch.no_grad()
def check_masked(case: Case, arrays: Arrays) -> None:
    """The token that the import leaves out, put in place of the patches here."""
    state = weights(case)
    backbone, _ = released(state, case["args"]["config"])
    images, mask = torch.from_numpy(arrays["in_image"]), torch.from_numpy(arrays["in_mask"]).bool()
    whole, _ = backbone.embed(images)
    patches = backbone.patch_embed(images, None)
    swapped = torch.where(mask[..., None], state[_MASK_TOKEN] - patches, torch.zeros(()))
    x = whole + F.pad(swapped, (0, 0, 1, 0))
    compare(case, "out_embeddings", x, arrays["out_embeddings"])
    for block in backbone.blocks:
        x = block(x)
    compare(case, "out_last_hidden_state", backbone.norm(x), arrays["out_last_hidden_state"])
    name = "out_last_hidden_state_no_mask"
    compare(case, name, tokens(backbone, images), arrays[name])


def check_classification(case: Case, arrays: Arrays) -> None:
    config = case["args"]["config"]
    backbone, heads = released(weights(case), config)
    weight, bias = heads["classifier.weight"].requires_grad_(), heads["classifier.bias"]
    images = torch.from_numpy(arrays["in_image"]).requires_grad_()

    def logits(batch: Tensor) -> Tensor:
        return F.linear(backbone(batch).pooled, weight, bias)

    found, labels = logits(images), torch.from_numpy(arrays["in_labels"])
    if config["num_labels"] == 1:
        loss = F.mse_loss(found.squeeze(), labels.squeeze().to(found))
    elif labels.dtype in (torch.int32, torch.int64):
        loss = F.cross_entropy(found, labels)
    else:
        loss = F.binary_cross_entropy_with_logits(found, labels)
    of_image, of_weight = torch.autograd.grad(loss, [images, weight])
    compare(case, "out_logits", found, arrays["out_logits"])
    compare(case, "out_loss", loss, arrays["out_loss"])
    compare(case, "out_grad_image", of_image, arrays["out_grad_image"])
    compare(case, "out_grad_classifier_weight", of_weight, arrays["out_grad_classifier_weight"])
    larger = logits(torch.from_numpy(arrays["in_image_large"]))
    compare(case, "out_logits_large", larger, arrays["out_logits_large"])


HANDLERS = {
    ("huggingface", "hf_from_backbone"): check_from_backbone,
    ("huggingface", "hf_vit_msn_model"): check_model,
    ("huggingface", "hf_vit_msn_masked"): check_masked,
    ("huggingface", "hf_vit_msn_classification"): check_classification,
}
