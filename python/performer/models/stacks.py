# SPDX-License-Identifier: Apache-2.0
"""Stacks of the project's blocks over embeddings of one's own: an encoder, and a decoder that may read a context."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor, nn

from performer.models.blocks import Block, Context
from performer.models.config import AttentionConfig, ModelConfig
from performer.models.kinds import Batch
from performer.models.positions import rotary_table, sinusoids, token_positions


class _Stack(nn.Module):
    """Blocks and a final norm over embeddings of one's own."""

    def __init__(self, model: ModelConfig, attention: AttentionConfig, cross: bool) -> None:
        super().__init__()
        self.model_config, self.attention_config = model, attention
        self.blocks = nn.ModuleList(Block(model, attention, layer, cross) for layer in range(model.layers))
        self.final_norm = nn.LayerNorm(model.width, eps=model.norm_epsilon)

    def _run(
        self, x: Tensor, key_mask: Tensor | None, cu_seqlens: Tensor | None, positions: Tensor | None, context: Any
    ) -> Tensor:
        bounds = None if cu_seqlens is None else cu_seqlens.to("cpu", torch.int64)
        batch = Batch(key_mask, bounds)
        if positions is None:
            positions = token_positions(x.shape[:2], bounds, x.device)
        config = self.model_config
        table = rotary_table(positions, config.size_of_head, x.dtype) if config.positions == "rotary" else None
        if config.positions == "sinusoidal":
            x = x + sinusoids(positions, config.width).to(x.dtype)
        for block in self.blocks:
            x = block(x, batch, table, context)
        return cast(Tensor, self.final_norm(x))


def _stack_config(
    layers: int, width: int, heads: int, ffn: int | None, kind: str, options: dict[str, Any], objective: str
) -> tuple[ModelConfig, AttentionConfig]:
    in_model = {field.name for field in dataclasses.fields(ModelConfig)}
    in_attention = {field.name for field in dataclasses.fields(AttentionConfig)} - {"options"}
    model = {name: value for name, value in options.items() if name in in_model}
    attention = {name: value for name, value in options.items() if name in in_attention}
    own = {name: value for name, value in options.items() if name not in in_model | in_attention}
    config = ModelConfig(
        objective=objective, layers=layers, width=width, heads=heads, ffn=4 * width if ffn is None else ffn, **model
    )
    if config.limits_length:
        raise ValueError(f"positions = {config.positions} belong to the embedding: add yours to the input")
    return config, AttentionConfig(kind=kind, options=own, **attention)


class PerformerEncoder(_Stack):
    """Bidirectional blocks over embeddings: x [B, T, width] -> [B, T, width].

    Args:
        layers, width, heads, ffn: sizes; ffn None: 4 width.
        kind: an attention kind: "favor-softmax", "favor-relu", "exact", "auto", "local" ...
        options: further keys of a model's sections [model] and [attention]: dropout=0.1, positions="none",
            features=128, qk_norm=True ...

    Raises:
        ValueError: for unknown options and impossible sizes.
    """

    def __init__(
        self, layers: int, width: int, heads: int, ffn: int | None = None, kind: str = "favor-softmax", **options: Any
    ) -> None:
        super().__init__(*_stack_config(layers, width, heads, ffn, kind, options, "masked"), cross=False)

    def forward(
        self,
        x: Tensor,
        *,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Encodes x [B, T, width].

        Args:
            key_mask: bool [B, T], True keeps.
            cu_seqlens: int [N + 1], bounds of packed segments, for B = 1.
            positions: int [B, T]; None: from 0 in each sequence.
        """
        return self._run(x, key_mask, cu_seqlens, positions, None)


class PerformerDecoder(_Stack):
    """Causal blocks over embeddings, with cross_attend=True each reading a context between its two other parts.

    Arguments and errors are those of :class:`PerformerEncoder`.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        ffn: int | None = None,
        kind: str = "favor-softmax",
        cross_attend: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*_stack_config(layers, width, heads, ffn, kind, options, "causal"), cross=cross_attend)
        self.cross_attend = cross_attend

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        cu_seqlens_context: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Decodes x [B, T, width] given context [B, S, width]; masks and bounds as in PerformerEncoder.

        Raises:
            ValueError: for a context where the decoder reads none, and none where it needs one.
        """
        if (context is None) == self.cross_attend:
            wanted = "needs a context" if self.cross_attend else "has no cross-attention: leave out the context"
            raise ValueError(f"this decoder {wanted}")
        bounds = None if cu_seqlens_context is None else cu_seqlens_context.to("cpu", torch.int64)
        of_context = None if context is None else Context(context, Batch(context_mask, bounds))
        return self._run(x, key_mask, cu_seqlens, positions, of_context)
