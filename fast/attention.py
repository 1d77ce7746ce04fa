"""Attention of one query per row, as in decoding."""

import math

import torch
from torch import Tensor

from fast.head import exact_product


def attend_one(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """model.attend for one query per row, q (B, H, 1, D), with `as_bias` of its mask →
    (B, 1, H·D). k and v (B, G, S, D).

    The cost is that of reading the cache, which matrix products read fastest. The heads that share
    a key head are the rows of one product.
    """
    B, G, S, D = k.shape
    q = q.reshape(B * G, -1, D)  # (B·G, H/G, D)
    k, v = k.view(B * G, S, D), v.view(B * G, S, D)
    if k.dtype == bias.dtype:
        scores = torch.baddbmm(bias, q, k.mT, alpha=scale)  # (B·G, H/G, S)
    else:
        scores = scale * exact_product(q, k) + bias
    return torch.bmm(scores.softmax(-1).to(v.dtype), v).view(B, 1, -1)


def as_bias(mask: Tensor, k: Tensor) -> Tensor:
    """The mask of one query per row, (B, 1, S), as an additive bias of 0 or −∞ on its scores,
    (B·G, 1, S), in float32 at least. k (B, G, S, D): keys like those to be attended to."""
    mask = mask.expand(-1, k.shape[1], -1)  # (B, G, S)
    bias = torch.where(mask, 0.0, -math.inf)
    return bias.to(torch.promote_types(k.dtype, torch.float32)).view(-1, 1, mask.shape[2])
