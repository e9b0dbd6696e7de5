# SPDX-License-Identifier: Apache-2.0
"""A causal language model with its loss and its sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from performer.compat.performer_pytorch.performer_pytorch import PerformerLM


def top_k(logits: Tensor, thres: float = 0.9) -> Tensor:
    """The int((1 - thres) V) largest logits; the others are minus infinity.

    Raises:
        ValueError: where that is no logit at all, from which nothing can be drawn.
    """
    kept = int((1 - thres) * logits.shape[-1])
    if kept < 1:
        raise ValueError(
            f"top_k with a threshold of {thres} keeps none of {logits.shape[-1]} tokens: lower filter_thres"
        )
    values, places = logits.topk(kept)
    return torch.full_like(logits, -math.inf).scatter(1, places, values)


def top_p(logits: Tensor, thres: float = 0.9) -> Tensor:
    """The tokens that hold the upper 1 - thres of the probability, at least one."""
    ordered, places = logits.sort(descending=True)
    gone = ordered.softmax(-1).cumsum(-1) > 1 - thres
    gone = F.pad(gone[:, :-1], (1, 0), value=False)
    return torch.empty_like(logits).scatter(1, places, ordered.masked_fill(gone, -math.inf))


def repetition_penalty_fn(logits: Tensor, ctx: Tensor, theta: float = 1.2) -> Tensor:
    """Logits of all tokens of ctx divided by theta, in every row."""
    divisor = torch.ones(logits.shape[1], device=logits.device)
    divisor[torch.unique(ctx)] = theta
    return logits / divisor


class AutoregressiveWrapper(nn.Module):
    """A causal PerformerLM with its loss and its sampling."""

    def __init__(self, net: PerformerLM, ignore_index: int = 0, pad_value: int = 0) -> None:
        super().__init__()
        self.pad_value, self.ignore_index = pad_value, ignore_index
        self.net, self.max_seq_len = net, net.max_seq_len

    @torch.no_grad()
    def generate(
        self,
        start_tokens: Tensor,
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_logits_fn: Callable[..., Tensor] = top_k,
        filter_thres: float = 0.9,
        repetition_penalty: float = 1.0,
        repetition_penalty_ctx: int = 32,
        **kwargs: Any,
    ) -> Tensor:
        """Samples seq_len tokens after start_tokens [B, L] or [L]; each reads the last max_seq_len tokens again."""
        was_training = self.net.training
        single = start_tokens.dim() == 1
        out = start_tokens[None] if single else start_tokens
        begun = out.shape[1]
        self.net.eval()
        mask = kwargs.pop("mask", None)
        mask = torch.ones_like(out, dtype=torch.bool) if mask is None else mask
        context_mask = kwargs.pop("context_mask", None)
        if "context" in kwargs and context_mask is None:
            context_mask = torch.ones(kwargs["context"].shape[:2], dtype=torch.bool, device=out.device)
        if context_mask is not None:
            kwargs["context_mask"] = context_mask
        for _ in range(seq_len):
            mask = mask[:, -self.max_seq_len :]
            logits = self.net(out[:, -self.max_seq_len :], mask=mask, **kwargs)[:, -1, :]
            if repetition_penalty > 1.0:
                logits = repetition_penalty_fn(logits, out[-repetition_penalty_ctx:], theta=repetition_penalty)
            sample = torch.multinomial((filter_logits_fn(logits, thres=filter_thres) / temperature).softmax(-1), 1)
            out = torch.cat([out, sample], -1)
            mask = F.pad(mask, (0, 1), value=True)
            if eos_token is not None and bool((sample == eos_token).all()):
                break
        self.net.train(was_training)
        out = out[:, begun:]
        return out[0] if single else out

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The mean cross-entropy of x [B, L]'s tokens after the first."""
        mask = kwargs.get("mask")
        if mask is not None and mask.shape[1] == x.shape[1]:
            kwargs["mask"] = mask[:, :-1]
        logits = self.net(x[:, :-1], **kwargs)
        return F.cross_entropy(logits.transpose(1, 2), x[:, 1:], ignore_index=self.ignore_index)
