"""A few-label classifier as one linear layer on the normed class token."""

from __future__ import annotations

import math

import torch
from torch import nn

from belvedere.core.errors import WeightsError
from belvedere.zoo.write.target import Classifier

_SMALLEST_SCALE = 1e-4


def head_of(classifier: Classifier, norm: nn.LayerNorm) -> nn.Linear:
    """The linear layer on the normed class token that gives a few-label classifier's logits, float64.

    The classifier divides the class token before the final norm, less its mean, by its length, which is that
    norm without scale and shift but for sqrt(width) (and its eps): with scale g, shift b and D columns
    p = (norm(x) - b) / (g sqrt(D)). Raises WeightsError where a scale is too near 0 to divide by.
    """
    scale, shift = norm.weight.detach().double(), norm.bias.detach().double()
    if float(scale.abs().min()) < _SMALLEST_SCALE * float(scale.abs().max()):
        raise WeightsError(
            "the backbone's final norm has a scale of nearly 0 and hides a column of the feature, so that "
            "its classifier cannot read the normed class token; export it with --to onnx"
        )
    weights = classifier.weights.detach().double().cpu()
    weight = (weights / (scale * math.sqrt(len(scale)))[:, None]).T  # [C, D]
    head = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    head.load_state_dict({"weight": weight.contiguous(), "bias": -(weight @ shift)})
    return head
