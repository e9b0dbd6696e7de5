# SPDX-License-Identifier: Apache-2.0
"""Attentions of fast-transformers that are not here: those that hash queries and group them."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from performer.compat.fast_transformers.attention_registry import AttentionRegistry, Int, Optional
from performer.compat.fast_transformers.attention_registry.parameters import CLUSTERED, REFORMER


class _Refused:
    _key: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError(f"attention type {self._key!r} is not there: {AttentionRegistry.why_not(self._key)}")


class ClusteredAttention(_Refused):
    """Refused: raises ValueError."""

    _key = "clustered"


class ImprovedClusteredAttention(_Refused):
    """Refused: raises ValueError."""

    _key = "improved-clustered"


class ImprovedClusteredCausalAttention(_Refused):
    """Refused: raises ValueError."""

    _key = "causal-improved-clustered"


class ReformerAttention(_Refused):
    """Refused: raises ValueError."""

    _key = "reformer"


_CLUSTERED = (
    "it groups queries by random hashes, which is not done here; it approximates 'full', which takes its place in a "
    "trained model (attentions have no weights of their own); for long sequences train with {}"
)
_REFORMER = (
    "it groups keys by random hashes, which is not done here; for long sequences train with 'local' or 'linear', or "
    "with the kind 'lsh' of performer train"
)
_TOPK = ("topk", Optional(Int, 32))
AttentionRegistry.refuse("clustered", _CLUSTERED.format("'linear'"), CLUSTERED)
AttentionRegistry.refuse("improved-clustered", _CLUSTERED.format("'linear'"), [_TOPK, *CLUSTERED])
AttentionRegistry.refuse("causal-improved-clustered", _CLUSTERED.format("'causal-linear'"), [_TOPK, *CLUSTERED])
AttentionRegistry.refuse("reformer", _REFORMER, REFORMER)
