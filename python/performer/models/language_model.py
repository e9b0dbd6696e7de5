# SPDX-License-Identifier: Apache-2.0
"""The project's language model (performer/models/language_model.h): the same names, numbers and folder."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from performer.models import folder as folders
from performer.models.blocks import Block, BlockCache
from performer.models.config import AttentionConfig, ModelConfig
from performer.models.kinds import Batch
from performer.models.positions import rotary_table, sinusoids, token_positions
from performer.models.vocabulary import Vocabulary
from performer.modules import FavorAttention

_DENSE_BIAS_STD = 1e-6


@dataclasses.dataclass
class DecodeState:
    """What the blocks remember of a batch of streamed sequences, and how many tokens each has seen."""

    blocks: list[BlockCache]
    positions: Tensor  # int64 [B]

    def select(self, rows: Tensor) -> DecodeState:
        """The sequences `rows` (int64) of the batch, in that order; a row may be named twice."""
        return DecodeState([block.select(rows) for block in self.blocks], self.positions.index_select(0, rows))


class Representations(NamedTuple):
    """What a model computes on the way to its logits, each [B, T, width] unless said otherwise."""

    input: Tensor
    layers: list[Tensor]
    output: Tensor
    logits: Tensor


class _Axial(nn.Module):
    """Learned positions as a sum of two smaller tables."""

    def __init__(self, max_length: int, width: int) -> None:
        super().__init__()
        rows = (max_length + 63) // 64
        self.weights_0 = nn.Parameter(torch.randn(1, rows, 1, width) * 0.02)
        self.weights_1 = nn.Parameter(torch.randn(1, 1, 64, width) * 0.02)

    def table(self) -> Tensor:
        """[positions, width]."""
        return (self.weights_0 + self.weights_1).reshape(-1, self.weights_0.shape[-1])


class LanguageModel(nn.Module):
    """Embedding, blocks, final norm, output layer, over any attention kind that Python has.

    Args:
        model, attention: the configuration; None: the defaults.
        vocabulary: of the tokens, or their number; None: proteins.
        data: the section [data] of the folder, kept as it is.

    Raises:
        ValueError: for configurations that are impossible or have no form in Python.
    """

    def __init__(
        self,
        model: ModelConfig | None = None,
        attention: AttentionConfig | None = None,
        vocabulary: Vocabulary | int | None = None,
        *,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._build(model or ModelConfig(), attention or AttentionConfig(), vocabulary, data)

    def _build(
        self,
        model: ModelConfig,
        attention: AttentionConfig,
        vocabulary: Vocabulary | int | None,
        data: dict[str, Any] | None,
    ) -> None:
        """The parts, apart from the constructor so that a class of another library can have them, too."""
        self.model_config = model
        self.attention_config = attention
        self.vocabulary: Vocabulary | None
        if isinstance(vocabulary, int):
            self.vocabulary, self.vocabulary_size = None, vocabulary
        else:
            self.vocabulary = vocabulary or Vocabulary.protein()
            self.vocabulary_size = len(self.vocabulary)
        self.data_config = data or {}
        self.gradient_checkpointing = False
        self.embedding = nn.Embedding(self.vocabulary_size, model.width)
        if model.positions == "learned":
            table = sinusoids(torch.arange(model.max_length), model.width)
            self.positions = nn.Parameter(table.to(torch.float32))
        elif model.positions == "axial":
            self.axial_positions = _Axial(model.max_length, model.width)
        for layer in range(model.layers):
            self.add_module(f"blocks_{layer}", Block(model, attention, layer))
        self.final_norm = nn.LayerNorm(model.width, eps=model.norm_epsilon)
        if model.tied_output:
            self.output_bias = nn.Parameter(torch.empty(self.vocabulary_size).normal_(0, _DENSE_BIAS_STD))
        else:
            self.output = nn.Linear(model.width, self.vocabulary_size)
            nn.init.xavier_uniform_(self.output.weight)
            nn.init.normal_(self.output.bias, 0, _DENSE_BIAS_STD)
        if model.regression_head:
            self.regression = nn.Linear(model.width, 1)
            nn.init.xavier_uniform_(self.regression.weight)

    @property
    def blocks(self) -> list[Block]:
        """The blocks, first to last."""
        return [cast(Block, self.get_submodule(f"blocks_{layer}")) for layer in range(self.model_config.layers)]

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> LanguageModel:
        """The model of a folder that `performer train`, `performer convert` or `save_pretrained` has written.

        It is in evaluation mode.

        Args:
            folder: the model folder.
            dtype: of the parameters; None: float32, as they are stored.
            device: where to.

        Raises:
            FileNotFoundError: when the folder or a file of it is not there.
            ValueError: for another format, unknown keys, attention kinds without a form in Python, and weights that do
                not fit, naming them.
        """
        content = folders.read(folder)
        model = cls(content.model, content.attention, content.vocabulary, data=content.data)
        folders.load_weights(model, content.weights, content.weights_path)
        return model.eval().to(device=device, dtype=dtype)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes a model folder that the program and from_pretrained() read: configuration, tokenizer, weights.

        Raises:
            ValueError: for a model without a vocabulary.
        """
        if self.vocabulary is None:
            raise ValueError("a model without a vocabulary cannot be saved; give one to the constructor")
        folders.write(folder, self)

    def parameter_count(self) -> int:
        """The number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        config = self.model_config
        soft = tokens.is_floating_point()
        if soft and tokens.shape[-1] != self.vocabulary_size:
            raise ValueError(
                f"soft tokens {list(tokens.shape)} must be distributions over the {self.vocabulary_size} tokens"
            )
        if config.limits_length and not torch.compiler.is_compiling() and positions.numel():
            length = int(positions.max()) + 1
            if length > config.max_length:
                raise ValueError(
                    f"a sequence of {length} tokens is longer than the positions of this model (model.max_length = "
                    f"{config.max_length}); shorten it, or train with model.positions = rotary, which has no limit"
                )
        x = tokens.to(self.embedding.weight.dtype) @ self.embedding.weight if soft else self.embedding(tokens)
        if config.positions == "learned":
            x = x + self.positions[positions]
        elif config.positions == "axial":
            x = x + self.axial_positions.table()[positions]
        elif config.positions == "sinusoidal":
            x = x + sinusoids(positions, config.width).to(x.dtype)
        return F.dropout(x, config.dropout, self.training)

    def _table(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.model_config.positions != "rotary":
            return None
        return rotary_table(positions, self.model_config.size_of_head, self.embedding.weight.dtype)

    def _through_blocks(
        self, x: Tensor, batch: Batch, table: tuple[Tensor, Tensor] | None, outputs: list[Tensor] | None
    ) -> Tensor:
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()

        def run(function: Any, *args: Any) -> Any:
            return (
                torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)
                if recompute
                else function(*args)
            )

        first = second = x
        for block in self.blocks:
            if self.model_config.reversible:
                first, second = run(block.reversible, first, second, batch, table)
                x = first + second
            else:
                x = run(block, x, batch, table)
            if outputs is not None:
                outputs.append(x)
        return x

    def _batch(
        self, tokens: Tensor, key_mask: Tensor | None, cu_seqlens: Tensor | None, positions: Tensor | None
    ) -> tuple[Batch, Tensor]:
        if tokens.dim() - tokens.is_floating_point() != 2:
            raise ValueError(f"tokens must be [batch, tokens], found {list(tokens.shape)}")
        bounds = None if cu_seqlens is None else cu_seqlens.to("cpu", torch.int64)
        if bounds is not None and key_mask is not None:
            raise ValueError("packed segments (cu_seqlens) have no padding: leave key_mask out")
        if positions is None:
            positions = token_positions(tokens.shape[:2], bounds, tokens.device)
        return Batch(key_mask, bounds), positions

    def hidden(
        self,
        tokens: Tensor,
        *,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The output of the final norm, [B, T, width]; arguments of forward()."""
        batch, positions = self._batch(tokens, key_mask, cu_seqlens, positions)
        x = self._through_blocks(self._embed(tokens, positions), batch, self._table(positions), None)
        return cast(Tensor, self.final_norm(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of final-norm outputs [..., width]."""
        if not self.model_config.tied_output:
            return cast(Tensor, self.output(hidden))
        scale = 1 / math.sqrt(self.model_config.width)
        return F.linear(hidden * scale, self.embedding.weight, self.output_bias)

    def forward(
        self,
        tokens: Tensor,
        *,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, vocabulary].

        Args:
            tokens: int64 [B, T]; or soft tokens, distributions [B, T, vocabulary].
            key_mask: bool [B, T], False at padding.
            cu_seqlens: int [N + 1], bounds of N segments packed into one row, which never see each other.
            positions: int64 [B, T]; None: from 0 in each sequence.

        Raises:
            ValueError: for a sequence beyond learned or axial positions, and shapes that do not fit.
        """
        return self.logits(self.hidden(tokens, key_mask=key_mask, cu_seqlens=cu_seqlens, positions=positions))

    def represent(
        self,
        tokens: Tensor,
        *,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Representations:
        """The outputs of embedding, each block and final norm, and the logits; arguments of forward()."""
        x, layers, output = self._every_output(tokens, key_mask, cu_seqlens, positions)
        return Representations(x, layers, output, self.logits(output))

    def _every_output(
        self, tokens: Tensor, key_mask: Tensor | None, cu_seqlens: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        batch, positions = self._batch(tokens, key_mask, cu_seqlens, positions)
        x = self._embed(tokens, positions)
        layers: list[Tensor] = []
        output = self.final_norm(self._through_blocks(x, batch, self._table(positions), layers))
        return x, layers, output

    def begin(self, batch_size: int) -> DecodeState:
        """The state of `batch_size` streamed sequences without tokens.

        Raises:
            ValueError: for a masked model, which sees both sides of a token.
        """
        blocks = [block.begin(batch_size) for block in self.blocks]
        return DecodeState(blocks, torch.zeros(batch_size, dtype=torch.int64, device=self.embedding.weight.device))

    @property
    def advances(self) -> bool:
        """Whether advance() reads many tokens at once and takes a mask: linear attention alone, no token shift."""
        return all(block.advances for block in self.blocks)

    @torch.no_grad()
    def advance(self, tokens: Tensor, state: DecodeState, *, key_mask: Tensor | None = None) -> Tensor:
        """Logits [B, T, vocabulary] after further tokens [B, T] of each sequence; `state` moves on. No gradients.

        Args:
            key_mask: bool [B, T]; where it is False there is no token, as in batches padded on the left.

        Raises:
            ValueError: for a key_mask of a model that does not advance.
        """
        if not self.advances:
            if key_mask is not None:
                raise ValueError("this model streams token by token, and cannot leave out those that key_mask hides")
            rows = [self.step(token, state) for token in tokens.unbind(1)]
            return torch.stack(rows, 1)
        if key_mask is None:
            places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        else:
            places = (key_mask.cumsum(1) - 1).clamp(min=0)
        positions = state.positions.unsqueeze(1) + places
        x, table = self._embed(tokens, positions), self._table(positions)
        first = second = x
        for block, cache in zip(self.blocks, state.blocks, strict=True):
            batch = Batch(key_mask, stream=cache.attention.kind)
            if self.model_config.reversible:
                first, second = block.reversible(first, second, batch, table)
                x = first + second
            else:
                x = block(x, batch, table)
        state.positions = state.positions + (tokens.shape[1] if key_mask is None else key_mask.sum(1))
        return self.logits(self.final_norm(x))

    @torch.no_grad()
    def step(self, tokens: Tensor, state: DecodeState) -> Tensor:
        """Logits [B, vocabulary] after one further token [B] of each sequence; `state` moves on. No gradients."""
        table = self._table(state.positions.unsqueeze(1))
        x = self._embed(tokens.unsqueeze(1), state.positions.unsqueeze(1)).squeeze(1)
        first = second = x
        for block, cache in zip(self.blocks, state.blocks, strict=True):
            if self.model_config.reversible:
                first, second = block.step_reversible(first, second, cache, table)
                x = first + second
            else:
                x = block.step(x, cache, table)
        state.positions = state.positions + 1
        return self.logits(self.final_norm(x))

    def redraw(self, index: int) -> None:
        """Draw number `index` of every layer's projection; between optimizer steps only."""
        for module in self.modules():
            if isinstance(module, FavorAttention):
                module.redraw(index)

    def after_step(self) -> None:
        """Moves running statistics on; call it after each optimizer step."""
        for module in self.modules():
            if isinstance(module, FavorAttention):
                module.after_step()
