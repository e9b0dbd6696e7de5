# SPDX-License-Identifier: Apache-2.0
"""Linear-attention Transformers (Performers): attention, modules and models.

Names below are loaded when they are first used, so that ``import performer`` itself needs no framework:
``performer.jax`` runs without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "performer.attention": ("favor_attention", "mapped_attention"),
    "performer.dot_product": ("scaled_dot_product_attention",),
    "performer.state": ("State", "empty_state", "favor_step", "key_state", "merge_states"),
    "performer.features": (
        "FeatureMap",
        "MapStatistics",
        "MapWeights",
        "feature_map_names",
        "feature_map_traits",
        "measure_statistics",
    ),
    "performer.modules": ("FavorAttention", "MultiheadAttention"),
    "performer.models": (
        "AttentionConfig",
        "LanguageModel",
        "ModelConfig",
        "PerformerDecoder",
        "PerformerEncoder",
        "Vocabulary",
        "embed",
        "generate",
        "read_fasta",
        "score",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from performer.attention import favor_attention, mapped_attention
    from performer.dot_product import scaled_dot_product_attention
    from performer.features import (
        FeatureMap,
        MapStatistics,
        MapWeights,
        feature_map_names,
        feature_map_traits,
        measure_statistics,
    )
    from performer.models import (
        AttentionConfig,
        LanguageModel,
        ModelConfig,
        PerformerDecoder,
        PerformerEncoder,
        Vocabulary,
        embed,
        generate,
        read_fasta,
        score,
    )
    from performer.modules import FavorAttention, MultiheadAttention
    from performer.state import State, empty_state, favor_step, key_state, merge_states

__all__ = [
    "AttentionConfig",
    "FavorAttention",
    "FeatureMap",
    "LanguageModel",
    "MapStatistics",
    "MapWeights",
    "ModelConfig",
    "MultiheadAttention",
    "PerformerDecoder",
    "PerformerEncoder",
    "State",
    "Vocabulary",
    "embed",
    "empty_state",
    "favor_attention",
    "favor_step",
    "feature_map_names",
    "feature_map_traits",
    "generate",
    "key_state",
    "mapped_attention",
    "measure_statistics",
    "merge_states",
    "read_fasta",
    "scaled_dot_product_attention",
    "score",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'performer' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
