"""A few-label classifier, and the feature it reads, as a network that can leave for other programs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.eval import logistic
from belvedere.eval.features import feature
from belvedere.eval.fewshot import regularization
from belvedere.eval.labelled import Labelled, check_classes
from belvedere.nn.spec import FeatureSpec


class Fitted(NamedTuple):
    """weights [D, C] float64 for preprocessed features, the regularization, and the folds that chose it (0:
    fixed)."""

    weights: Tensor
    lambd: float
    folds: int


class FeatureNetwork(nn.Module):
    """Images [B, 3, H, W] -> the feature [B, D] that `spec` means; with weights [D, C], also the
    probabilities [B, C] of logistic regression on it."""

    def __init__(self, backbone: nn.Module, spec: FeatureSpec, weights: Tensor | None = None) -> None:
        super().__init__()
        self.backbone, self.spec = backbone, spec
        self.weights: Tensor | None
        self.register_buffer("weights", None if weights is None else weights.float())

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        norm = self.backbone.norm
        assert isinstance(norm, nn.Module)
        blocks = 0 if self.spec.source == "pooled" else self.spec.blocks
        found = feature(self.backbone(images, blocks=blocks), self.spec, norm)
        if self.weights is None:
            return found
        rows = F.normalize(found - found.mean(1, keepdim=True), dim=1)
        return found, (rows @ self.weights).softmax(1)


def fit_classifier(
    train: Labelled, *, lambd: float | None = None, device: torch.device | None = None
) -> Fitted:
    """Logistic regression on all of `train`, as `predict` uses it.

    lambd: the regularization; without it, chosen by inner cross-validation where a class has two labels, else
    published. Raises EvaluationError where fewer than two classes have labels.
    """
    check_classes(train.labels, train.classes)
    x, y, num_classes = logistic.preprocess(train.features.to(device)), train.y.to(device), len(train.classes)
    most = int(np.bincount(train.labels).max())
    lambdas, folds = regularization(x[None], y[None], most, num_classes=num_classes, lambd=lambd)
    weights = logistic.fit(x, y, lambdas[0], num_classes=num_classes)
    return Fitted(weights.cpu(), lambdas[0], folds)
