# SPDX-License-Identifier: Apache-2.0
"""Linear attention as an attention function and a mask function of transformers."""

from __future__ import annotations

import logging
import math
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from performer._arguments import Features, feature_map
from performer.attention import mapped_attention
from performer.features import FeatureMap, MapWeights, default_projection, feature_map_names, feature_map_traits
from performer.integrations.transformers.cache import STREAM, FavorCacheLayer
from performer.state import empty_state, favor_step, key_state

_log = logging.getLogger(__name__)
_REFUSED = {
    "position_bias": "biases of positions are added to scores, which linear attention does not have",
    "softcap": "soft caps bound scores, which linear attention does not have",
    "s_aux": "attention sinks are scores of their own, which linear attention does not have",
    "head_mask": "head masks are not supported",
}
_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        _log.warning(message)


def _mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    device: Any = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask of keys, bool [B, kv_length]; None where all are kept."""
    if local_size is not None:
        raise ValueError(f"sliding windows (of {local_size} tokens here) have no linear form; choose another attention")
    if mask_function not in (None, causal_mask_function, bidirectional_mask_function):
        # Without elements: the attention function refuses it unless bounds of packed sequences say what it says.
        return torch.empty(batch_size, 1, 0, 0, dtype=torch.bool, device=device)
    return None if attention_mask is None else attention_mask[:, -kv_length:]


def _key_mask(mask: Tensor | None, keys: int, packed: bool) -> Tensor | None:
    if mask is None or packed:
        return None
    if mask.dim() != 2:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)} or distinguishes queries: linear attention hides keys from "
            "all queries alike and needs a mask [batch, tokens]; for packed sequences give cu_seq_lens_q"
        )
    return mask[:, -keys:].to(torch.bool)


def _check_arguments(kwargs: dict[str, Any]) -> None:
    if kwargs.get("output_attentions"):
        raise ValueError(
            "output_attentions: linear attention never forms attention weights; load the model with 'eager'"
        )
    for name, why in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{name}: {why}")
    if kwargs.get("sliding_window") is not None:
        raise ValueError("sliding_window: sliding windows have no linear form; choose another attention")


class _Function:
    """The attention function of one feature map."""

    def __init__(self, described: FeatureMap, seed: int) -> None:
        self.map, self.seed = described, seed

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """Attention of query [B, H, L, D]; gives ([B, L, H, E], None)."""
        _check_arguments(kwargs)
        if dropout > 0 and module.training:
            _warn_once(
                "linear attention has no attention weights to drop: the dropout of attention weights is not applied"
            )
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        bounds = kwargs.get("cu_seq_lens_q")
        mask = _key_mask(attention_mask, key.shape[2], bounds is not None)
        if scaling is not None and self.map.traits.exponential:
            factor = scaling * math.sqrt(query.shape[-1])
            query = query if factor == 1 else query * factor
        layer = int(getattr(module, "layer_idx", None) or 0)
        projection = None
        if self.map.default_drawn:
            heads, size = query.shape[1], query.shape[3]
            projection = default_projection(self.map, heads, size, self.seed, query.device, layer)
        weights = MapWeights(projection)
        stream: FavorCacheLayer | None = kwargs.get(STREAM)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        if stream is not None:
            return self._stream(stream, query, key, value, mask, weights), None
        if causal and query.shape[1] != key.shape[1]:
            return self._continue(query, key, value, mask, weights), None
        out = mapped_attention(
            query,
            key,
            value,
            self.map,
            weights,
            causal=causal,
            key_mask=mask,
            cu_seqlens=bounds,
            cu_seqlens_key=kwargs.get("cu_seq_lens_k"),
            layout="bthd",
        )
        return out, None

    def _continue(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, weights: MapWeights) -> Tensor:
        """Causal attention of the last tokens: those before them are a state."""
        before = key.shape[1] - query.shape[1]
        if before < 0:
            raise ValueError(f"causal attention of {query.shape[1]} queries to {key.shape[1]} keys has no meaning")
        groups = query.shape[2] // key.shape[2]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 2), value.repeat_interleave(groups, 2)
        earlier = None if mask is None else mask[:, :before]
        state = key_state(key[:, :before], value[:, :before], self.map, weights, key_mask=earlier, layout="bthd")
        return mapped_attention(
            query,
            key[:, before:],
            value[:, before:],
            self.map,
            weights,
            causal=True,
            key_mask=None if mask is None else mask[:, before:],
            state=state,
            layout="bthd",
        )

    def _stream(
        self,
        stream: FavorCacheLayer,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        weights: MapWeights,
    ) -> Tensor:
        """Attention that goes on from the cached state, which moves on."""
        stream.tokens += query.shape[1]
        hidden = mask is not None and not bool(mask.all())
        if query.shape[1] == 1 and not hidden and not torch.is_grad_enabled():
            token = [x.squeeze(1) for x in (query, key, value)]
            if stream.state is None:
                stream.state = empty_state(token[0], token[2], self.map, weights)
            return favor_step(token[0], token[1], token[2], stream.state, self.map, weights).unsqueeze(1)
        out, stream.state = mapped_attention(
            query,
            key,
            value,
            self.map,
            weights,
            causal=True,
            key_mask=mask if hidden else None,
            state=stream.state,
            return_state=True,
            layout="bthd",
        )
        return out


def implementation_name(map_name: str) -> str:
    """The attn_implementation of a feature map: of "favor+" "favor_softmax", of "elu+1" "favor_elu"."""
    plain = "softmax" if map_name == "favor+" else map_name.removesuffix("+1")
    return "favor_" + plain.replace("-", "_")


def register(name: str | None = None, features: Features = "softmax", *, seed: int = 0) -> list[str]:
    """Makes linear attention known to transformers, and says under which names.

    Args:
        name: of one implementation with `features`; None: one for each feature map without learned parts, with 256
            features: favor_softmax, favor_relu, favor_elu, favor_hyperbolic and so on.
        features: a map's name, a number of softmax features, or a FeatureMap.
        seed: names the random projections, with each layer's `layer_idx`; models without one (ESM) share a projection
            among their layers.

    Raises:
        ValueError: for a map that needs learned weights, and for a name that transformers reserves.
    """
    if name is None:
        chosen = {
            implementation_name(each): FeatureMap(each)
            for each in feature_map_names()
            if not feature_map_traits(each).learned
        }
    else:
        chosen = {name: feature_map(features)}
    for each, described in chosen.items():
        if any(word in each for word in ("flash", "sdpa", "flex_attention", "paged|", "/")):
            raise ValueError(
                f"{each!r} cannot be registered: transformers reserves flash, sdpa, flex_attention, paged| and /"
            )
        if described.traits.learned:
            raise ValueError(f"feature map {described.map} needs learned weights, which a model of transformers lacks")
        AttentionInterface.register(each, cast(Any, _Function(described, seed)))
        AttentionMaskInterface.register(each, _mask_function)
    return list(chosen)
