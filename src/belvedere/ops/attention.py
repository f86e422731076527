"""Attention by whichever kernel is fast where the tensors are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d)) value.

    query [B, H, S, d], key and value [B, H, T, d] -> [B, H, S, d].
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # torch's fused kernel is made for long sequences. At a ViT's few tokens two matrix products over
        # densely laid out heads take half its time, and a twelfth to a fourth of it in the backward pass.
        q, k, v = (part.flatten(0, 1) for part in (query, key, value))  # [B*H, T, d]
        scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))  # [B*H, S, T]
        return torch.bmm(scores.softmax(dim=-1), v).view(*query.shape[:2], *query.shape[2:])
    return F.scaled_dot_product_attention(query, key, value)


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d) + bias) value.

    query [B, H, S, d], key and value [B, H, T, d], bias [H, S, T] -> [B, H, S, d]. Or, with windows of which
    each may have a bias of its own, query [B, W, H, S, d] and so on, bias [H, S, T] or [W, H, S, T].
    """
    if query.device.type == "cpu" and (query.dtype == torch.bfloat16 or bias.requires_grad):
        # torch's fused kernel gives no gradient to a bias, and in bfloat16 is made for long sequences.
        return biased_weights(query, key, bias) @ value
    bias = bias.to(query.dtype)
    # [1, H, S, T] or [B * W, H, S, T]: half of what a copy of queries, keys and values with a batch of images
    # and "heads" of windows would take for windows of 7.
    mask = bias[None] if bias.dim() == 3 else bias.repeat(query.shape[0], 1, 1, 1)
    q, k, v = (part.flatten(0, -4) for part in (query, key, value))  # [B * W, H, T, d]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view_as(query)


def biased_weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d) + bias) [B, H, S, T], or [B, W, H, S, T] with windows."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores += bias.to(scores.dtype)
    weights: Tensor = scores.softmax(dim=-1)
    return weights
