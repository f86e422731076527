"""What a recipe says about a projection head."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from belvedere.core.settings import Contradictions, Settings
from belvedere.nn.spec.count import Count, linear, norm


class HeadSpec(Settings):
    """The projection head: three linear layers, `hidden` wide, to `out` columns."""

    hidden: Count
    """Width of the hidden layers."""
    out: Count
    """Columns of the embedding."""
    batch_norm: bool
    """Whether hidden layers are followed by BatchNorm."""
    num_layers: ClassVar[int] = 8

    def num_parameters(self, width: int) -> int:
        """Parameters of a head for features of `width` columns."""
        norms = 2 * norm(self.hidden) if self.batch_norm else 0
        hidden = self.hidden
        return linear(width, hidden) + linear(hidden, hidden) + linear(hidden, self.out) + norms

    def kept_values(self, width: int) -> int:
        """Values that the backward pass needs of one row."""
        return width + (3 if self.batch_norm else 2) * 2 * self.hidden + self.out


class MLPHeadSpec(Settings):
    """SwAV's projection head: linear to `hidden` columns, BatchNorm (optional), ReLU, linear to `out`; with
    hidden 0 one linear layer."""

    hidden: Annotated[int, Field(ge=0)]
    """Width of the hidden layer (0: none, one linear layer)."""
    out: Count
    """Columns of the embedding."""
    batch_norm: bool
    """Whether hidden layers are followed by BatchNorm."""

    def contradictions(self) -> Contradictions:
        if self.hidden == 0 and self.batch_norm:
            yield ("", "batch_norm has no effect with hidden 0, one linear layer; set it to false")

    num_layers: ClassVar[int] = 5

    def num_parameters(self, width: int) -> int:
        """Parameters of a head for features of `width` columns."""
        if self.hidden == 0:
            return linear(width, self.out)
        norms = norm(self.hidden) if self.batch_norm else 0
        return linear(width, self.hidden) + norms + linear(self.hidden, self.out)

    def kept_values(self, width: int) -> int:
        """Values that the backward pass needs of one row, its unit embedding among them."""
        return width + (3 if self.batch_norm else 2) * self.hidden + 2 * self.out


class ContrastiveHeadSpec(Settings):
    """Mugs' head for telling images apart: `layers` linear layers without bias, `hidden` wide, to `out`
    columns; of the student, two more (the predictor), `predictor` wide. batch_norm: after every layer of the
    first ones but the last. norm_before_predictor: whether rows have length 1 there too."""

    hidden: Count
    """Width of the hidden layers."""
    out: Count
    """Columns of the embedding."""
    layers: Count
    """How many linear layers."""
    predictor: Count
    """Width of the student's predictor."""
    batch_norm: bool
    """Whether hidden layers are followed by BatchNorm."""
    norm_before_predictor: bool
    """Whether rows have length 1 before the predictor too."""

    def contradictions(self) -> Contradictions:
        if self.layers == 1 and self.batch_norm:
            yield ("", "batch_norm has no effect with one layer; set it to false")

    @property
    def num_layers(self) -> int:
        """Layers, roughly."""
        return 3 * self.layers + 3

    def num_parameters(self, width: int, *, predictor: bool) -> int:
        """Parameters of a head for features of `width` columns; predictor: of the student."""
        norms = (self.layers - 1) * norm(self.hidden) if self.batch_norm else 0
        total = norms + _stack(width, self.hidden, self.out, self.layers, bias=False)
        return total + (2 * self.out * self.predictor if predictor else 0)

    def kept_values(self, width: int) -> int:
        """Values that the backward pass needs of one row, its unit embedding among them."""
        each = 3 if self.batch_norm else 2
        return width + (self.layers - 1) * each * self.hidden + 2 * self.predictor + 4 * self.out


class WeightNormHeadSpec(Settings):
    """The projection head of DINO, EsViT and Mugs' groups: `layers` linear layers, `hidden` wide, to
    `bottleneck` columns, then cosines with `out` prototypes times a scale for each. norm_last_layer: whether
    these scales stay 1. batch_norm: after every linear layer of the first but the last."""

    hidden: Count
    """Width of the hidden layers."""
    bottleneck: Count
    """Columns of the embedding that is compared with prototypes."""
    out: Annotated[int, Field(ge=2)]
    """How many prototypes."""
    layers: Count
    """How many linear layers."""
    batch_norm: bool
    """Whether hidden layers are followed by BatchNorm."""
    norm_last_layer: bool
    """Whether the scales of the last layer's prototypes stay 1."""

    def contradictions(self) -> Contradictions:
        if self.layers == 1 and self.batch_norm:
            yield ("", "batch_norm has no effect with one layer; set it to false")

    @property
    def num_layers(self) -> int:
        """Layers, roughly."""
        return 3 * self.layers + 2

    def num_parameters(self, width: int) -> int:
        """Parameters of a head for features of `width` columns, the scales of its prototypes among them."""
        norms = (self.layers - 1) * norm(self.hidden) if self.batch_norm else 0
        return (
            norms
            + _stack(width, self.hidden, self.bottleneck, self.layers)
            + (self.bottleneck + 1) * self.out
        )

    def num_trained(self, width: int) -> int:
        """Those of them that are trained."""
        return self.num_parameters(width) - (self.out if self.norm_last_layer else 0)

    def kept_values(self, width: int) -> int:
        """Values that the backward pass needs of one row, its unit embedding and that one's gradient among
        them; logits are never kept."""
        each = 3 if self.batch_norm else 2
        return width + (self.layers - 1) * each * self.hidden + 4 * self.bottleneck


def _stack(width: int, hidden: int, out: int, layers: int, *, bias: bool = True) -> int:
    """Parameters of so many linear layers, `hidden` wide between the first and the last."""
    if layers == 1:
        return linear(width, out, bias=bias)
    inner = (layers - 2) * linear(hidden, hidden, bias=bias)
    return linear(width, hidden, bias=bias) + inner + linear(hidden, out, bias=bias)
