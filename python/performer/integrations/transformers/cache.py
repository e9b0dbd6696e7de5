# SPDX-License-Identifier: Apache-2.0
"""Caches for transformers' generate() whose size does not grow with the tokens that were read."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

STREAM = "performer_stream"  # the keyword by which a layer of the cache reaches the attention function


class StateLayer(CacheLayerMixin):  # type: ignore[misc, unused-ignore]
    """A state in the place of keys and values: anything with ``select(rows)``, or None before the first token."""

    is_sliding = False
    is_compileable = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.state: Any = None
        self.tokens = 0
        self.rows = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is allocated before the first attention."""
        self.device = key_states.device
        self.rows = key_states.shape[0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raises TypeError: a model that has such a layer moves its state itself."""
        raise TypeError("this cache belongs to performer's own models; other models take FavorCache")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys of the present call alone, which stand after those read before."""
        return query_length, self.tokens

    def get_seq_length(self) -> int:
        """Tokens read so far."""
        return self.tokens

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    def reset(self) -> None:
        """Forgets all tokens."""
        self.state, self.tokens, self.rows, self.is_initialized = None, 0, 0, False

    def _select(self, rows: Tensor) -> None:
        self.rows = len(rows)
        if self.state is not None:
            self.state = self.state.select(rows.to(self.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The sequences `beam_idx`, in that order."""
        self._select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """The sequences `indices` alone."""
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times."""
        self._select(torch.arange(self.rows).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError: a sum does not forget single tokens."""
        if tokens_to_remove:
            raise ValueError(
                "a cache of states cannot drop tokens that it has read (assisted decoding needs that); use the "
                "default cache, or use_cache=False"
            )

    def offload(self) -> None:
        """The state is small: it stays."""

    def prefetch(self, *args: Any) -> None:
        """The state is there."""


class FavorCacheLayer(StateLayer):
    """What one layer of a foreign model keeps of the tokens that it has read: a performer.State."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, kwargs: Any = None, **more: Any
    ) -> tuple[Tensor, Tensor]:
        """Gives the new keys and values back, and itself to the attention function by way of `kwargs`.

        Raises:
            ValueError: for a model that does not hand its keyword arguments to the cache.
        """
        if kwargs is None:
            raise ValueError(
                "this model does not hand its keyword arguments to the cache, which FavorCache needs; generate with "
                "the default cache"
            )
        self.lazy_initialization(key_states, value_states)
        kwargs[STREAM] = self
        return key_states, value_states


class FavorCache(Cache):  # type: ignore[misc, unused-ignore]
    """A cache for ``generate(..., cache=FavorCache())`` of models with a favor_* attention: one state a layer."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=FavorCacheLayer)


class ModelCache(Cache):  # type: ignore[misc, unused-ignore]
    """The cache of a PerformerForCausalLM: one state of the whole model, a performer.models.DecodeState."""

    def __init__(self, state: Any, like: Tensor) -> None:
        """For the sequences of `like` [B, ...]."""
        layer = StateLayer()
        layer.lazy_initialization(like, like)
        layer.state = state
        super().__init__(layers=[layer])

    @property
    def state(self) -> Any:
        """The model's state."""
        return cast(StateLayer, self.layers[0]).state

    def read(self, tokens: int) -> None:
        """Counts tokens that the state has taken in."""
        cast(StateLayer, self.layers[0]).tokens += tokens
