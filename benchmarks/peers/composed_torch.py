# SPDX-License-Identifier: Apache-2.0
"""FAVOR+ and exact attention written with PyTorch's operations, as a careful user would: features with a stabiliser, the
bidirectional form as two products, the causal one in chunks."""
import torch
import torch.nn.functional as F

CHUNK = 128


def features(q, k, w):
    """Positive features of queries and keys [B, H, L, D] -> [B, H, L, M], without constants that cancel."""
    scale = q.shape[-1] ** -0.25
    uq, uk = (q * scale) @ w.t(), (k * scale) @ w.t()
    uk = uk - (k * scale).square().sum(-1, keepdim=True) / 2
    return torch.exp(uq - uq.amax(-1, keepdim=True).detach()), torch.exp(uk - uk.amax((-1, -2), keepdim=True).detach())


def attend(fq, fk, v):
    state = fk.transpose(-1, -2) @ v
    return (fq @ state) / (fq @ fk.sum(-2).unsqueeze(-1))


def attend_causally(fq, fk, v):
    length = v.shape[2]
    missing = -length % CHUNK
    fq, fk, v = (F.pad(x, (0, 0, 0, missing)).unflatten(2, (-1, CHUNK)) for x in (fq, fk, v))
    v = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # the last column sums the weights
    states = (fk.transpose(-1, -2) @ v).cumsum(2)
    before = torch.cat([torch.zeros_like(states[:, :, :1]), states[:, :, :-1]], 2)
    out = fq @ before + (fq @ fk.transpose(-1, -2)).tril() @ v
    return (out[..., :-1] / out[..., -1:]).flatten(2, 3)[:, :, :length]


def favor(q, k, v, w, causal):
    fq, fk = features(q, k, w)
    return attend_causally(fq, fk, v) if causal else attend(fq, fk, v)


def favor_definition(q, k, v, w, causal):
    """What all must compute, in double: the same without constants that could vanish."""
    assert q.dtype == torch.float64
    return favor(q, k, v, w, causal)


def exact(q, k, v, w, causal):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
