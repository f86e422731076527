"""The network of Mugs: a ViT, the relation block and a head for each of three supervisions.

Legend: R rows (views of images), N patches, n neighbours, D width, O columns of an embedding, K prototypes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.core import rng
from belvedere.nn.heads import WeightNormHead, initialize_linears_
from belvedere.nn.spec import ContrastiveHeadSpec, WeightNormHeadSpec
from belvedere.nn.vit import Block, PatchEmbed, ViT

Part = Literal["backbone", "relation", "instance_head", "local_group_head", "group_head"]
_INIT_STD = 0.02


class ContrastiveHead(nn.Module):
    """A projector and, of the student, a predictor, both without bias: h [R, D] -> unit rows [R, O].

    Names as published: `projector.0/2/4` (with BatchNorm `0/1/3/4/6`) and `predictor.0/2`.
    """

    def __init__(self, width: int, spec: ContrastiveHeadSpec) -> None:
        super().__init__()
        self.norm_before_predictor = spec.norm_before_predictor
        widths = [width, *[spec.hidden] * (spec.layers - 1)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            norm = [nn.BatchNorm1d(after)] if spec.batch_norm else []
            layers += [nn.Linear(before, after, bias=False), *norm, nn.GELU()]
        self.projector = nn.Sequential(*layers, nn.Linear(widths[-1], spec.out, bias=False))
        self.predictor: nn.Sequential | None = nn.Sequential(
            nn.Linear(spec.out, spec.predictor, bias=False),
            nn.GELU(),
            nn.Linear(spec.predictor, spec.out, bias=False),
        )

    def initialize_(self, generator: torch.Generator) -> None:
        """The projector N(0, 0.02); the predictor as torch draws linear layers, as the authors leave it."""
        _normal_(self.projector, generator)
        if self.predictor is not None:
            initialize_linears_(self.predictor, generator)

    def forward(self, h: Tensor) -> Tensor:
        z: Tensor = self.projector(h)
        if self.predictor is None:
            return _unit(z)
        z = self.predictor(_unit(z) if self.norm_before_predictor else z)
        return _unit(z)


class GranularNetwork(nn.Module):
    """A ViT and what Mugs adds to it; `forward` reaches each part, so that a wrapper sees every use.

    A supervision without a spec has no head; without the local-group one there is no relation block.
    """

    def __init__(
        self,
        backbone: ViT,
        *,
        instance: ContrastiveHeadSpec | None,
        local_group: ContrastiveHeadSpec | None,
        group: WeightNormHeadSpec | None,
    ) -> None:
        super().__init__()
        width = backbone.width
        self.backbone = backbone
        # The rate of the backbone's first block, which is 0: a relation block drops nothing.
        self.relation_blocks = nn.ModuleList([Block(backbone.spec, 0.0)] if local_group else [])
        self.instance_head = ContrastiveHead(width, instance) if instance else None
        self.local_group_head = ContrastiveHead(width, local_group) if local_group else None
        self.group_head = WeightNormHead(width, group) if group else None

    def initialize_(self, seed: int) -> None:
        """Linear layers, class token and positions N(0, 0.02); patches, predictors and prototypes as torch
        draws them. Each part from its own stream."""
        parts = {name: rng.torch_generator(seed, name) for name, _ in self.named_children()}
        self.backbone.initialize_(parts["backbone"])
        patch_embed = self.backbone.patch_embed
        if isinstance(patch_embed, PatchEmbed):
            bound = 1 / math.sqrt(patch_embed.proj.weight[0].numel())
            nn.init.uniform_(patch_embed.proj.weight, -bound, bound, generator=parts["backbone"])
            if patch_embed.proj.bias is not None:
                nn.init.uniform_(patch_embed.proj.bias, -bound, bound, generator=parts["backbone"])
        _normal_(self.relation_blocks, parts["relation_blocks"])
        for name in ("instance_head", "local_group_head", "group_head"):
            head = getattr(self, name)
            if head is not None:
                head.initialize_(parts[name])

    def drop_predictors_(self) -> None:
        """Make this a teacher's network, which has no predictors."""
        for head in (self.instance_head, self.local_group_head):
            if head is not None:
                head.predictor = None

    def forward(self, x: Tensor, *, part: Part) -> Tensor | tuple[Tensor, Tensor] | dict[str, Tensor]:
        """`backbone`: images [R, 3, H, W] -> features by name, see `features`; `relation`: a query and its
        neighbours [R, 1 + n, D] -> the local group's feature [R, D]; contrastive heads: h [R, D] -> unit rows
        [R, O]; `group_head`: h [R, D] -> unit rows [R, O] and the last layer's matrix [K, O]."""
        if part == "backbone":
            return self.features(x)
        if part == "relation":
            return self.related(x)
        head = self.get_submodule(part)
        if isinstance(head, WeightNormHead):
            return head.embed(x), head.last_layer.weight
        z: Tensor = head(x)
        return z

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """cls [R, D], the class token after the final norm, where a head reads it. With a relation block also
        query [R, D], the mean of all tokens, class token included, before the final norm, and patches [R, D],
        the mean of the patches after it, without gradient: what is looked up is not what is stored.
        """
        if not len(self.relation_blocks):
            return {"cls": self.backbone(images, regions=False).pooled}
        output = self.backbone(images, blocks=1)
        (last,) = output.blocks
        query = (last.cls + last.tokens.sum(1)) / (1 + last.tokens.shape[1])
        found = {"query": query, "patches": output.regions.detach().mean(1)}
        if self.instance_head is None and self.group_head is None:
            return found
        return {"cls": output.pooled, **found}

    def related(self, sequence: Tensor) -> Tensor:
        """The first token [R, D] of a sequence [R, T, D] without positions, after the relation block and the
        backbone's final norm."""
        (block,) = self.relation_blocks
        assert isinstance(block, Block)
        first: Tensor = self.backbone.norm(block.first(sequence))[:, 0]
        return first


def _normal_(module: nn.Module, generator: torch.Generator) -> None:
    """Linear layers N(0, 0.02), biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=_INIT_STD, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _unit(z: Tensor) -> Tensor:
    """Rows of length 1, in at least float32."""
    return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1, eps=1e-12)
