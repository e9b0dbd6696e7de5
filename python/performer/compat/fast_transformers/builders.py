# SPDX-License-Identifier: Apache-2.0
"""Builders: objects whose attributes are options, and whose get() makes a transformer."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, TypeVar

from torch import nn

from performer.compat.fast_transformers import attention as attentions
from performer.compat.fast_transformers import transformers

_KINDS = ("linear", "causal-linear", "full")
_Self = TypeVar("_Self", bound="_Builder")


def _attention(kind: str, options: dict[str, Any], recurrent: bool, cross: bool) -> nn.Module:
    size, feature_map, eps = options["query_dimensions"], options["feature_map"], options["eps"]
    if kind not in _KINDS:
        raise ValueError(f"attention type {kind!r} is not one of this package's: {', '.join(_KINDS)}")
    if kind == "full":
        if recurrent:
            raise ValueError("attention type 'full' has no recurrent form here: its state would grow; use 'linear'")
        return attentions.FullAttention(options["softmax_temp"], options["attention_dropout"])
    if recurrent:
        form = attentions.RecurrentCrossLinearAttention if cross else attentions.RecurrentLinearAttention
        return form(size, feature_map, eps)
    return (attentions.LinearAttention if kind == "linear" else attentions.CausalLinearAttention)(
        size, feature_map, eps
    )


class _Builder:
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        object.__setattr__(self, "_options", dict(self._defaults))

    @classmethod
    def from_kwargs(cls: type[_Self], **kwargs: Any) -> _Self:
        """A builder with these options; raises ValueError for an unknown one."""
        builder = cls()
        for name, value in kwargs.items():
            setattr(builder, name, value)
        return builder

    @classmethod
    def from_dictionary(cls: type[_Self], dictionary: dict[str, Any], strict: bool = True) -> _Self:
        """The same; without `strict`, unknown options are passed over."""
        known = {name: value for name, value in dictionary.items() if not strict or name in cls._defaults}
        return cls.from_kwargs(**known)

    def __setattr__(self, name: str, value: Any) -> None:
        options: dict[str, Any] = self.__dict__["_options"]
        if name not in options:
            near = difflib.get_close_matches(name, options, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(options)}"
            raise ValueError(f"unknown option {name!r} of {type(self).__name__}{hint}")
        options[name] = value

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_options"][name]
        except KeyError:
            raise AttributeError(name) from None


_COMMON = {
    "n_layers": 4,
    "n_heads": 4,
    "feed_forward_dimensions": 1024,
    "query_dimensions": 64,
    "value_dimensions": 64,
    "dropout": 0.1,
    "activation": "relu",
    "final_normalization": True,
    "event_dispatcher": "",
    "feature_map": None,
    "eps": 1e-6,
    "softmax_temp": None,
    "attention_dropout": 0.1,
}


class AttentionBuilder(_Builder):
    """Makes attentions: get("linear")."""

    _defaults: ClassVar[dict[str, Any]] = {
        name: _COMMON[name] for name in ("query_dimensions", "feature_map", "eps", "softmax_temp", "attention_dropout")
    }

    def get(self, attention_type: str) -> nn.Module:
        """The attention of that type."""
        return _attention(attention_type, self.__dict__["_options"], recurrent=False, cross=False)


class _TransformerBuilder(_Builder):
    def _layer_arguments(self) -> dict[str, Any]:
        return {
            "d_model": self.value_dimensions * self.n_heads,
            "d_ff": self.feed_forward_dimensions,
            "dropout": self.dropout,
            "activation": self.activation,
        }

    def _attention_layer(self, form: type[nn.Module], kind: str, recurrent: bool, cross: bool = False) -> nn.Module:
        inner = _attention(kind, self.__dict__["_options"], recurrent, cross)
        width = self.value_dimensions * self.n_heads
        return form(inner, width, self.n_heads, self.query_dimensions, self.value_dimensions)

    def _norm(self) -> nn.Module | None:
        return nn.LayerNorm(self.value_dimensions * self.n_heads) if self.final_normalization else None


class TransformerEncoderBuilder(_TransformerBuilder):
    """Makes a TransformerEncoder."""

    _defaults: ClassVar[dict[str, Any]] = {**_COMMON, "attention_type": "full"}

    def get(self) -> transformers.TransformerEncoder:
        """The encoder."""
        layers: list[nn.Module] = [
            transformers.TransformerEncoderLayer(
                self._attention_layer(attentions.AttentionLayer, self.attention_type, False), **self._layer_arguments()
            )
            for _ in range(self.n_layers)
        ]
        return transformers.TransformerEncoder(layers, self._norm())


class RecurrentEncoderBuilder(_TransformerBuilder):
    """Makes a RecurrentTransformerEncoder."""

    _defaults: ClassVar[dict[str, Any]] = {**_COMMON, "attention_type": "linear"}

    def get(self) -> transformers.RecurrentTransformerEncoder:
        """The encoder, token by token."""
        layers: list[nn.Module] = [
            transformers.RecurrentTransformerEncoderLayer(
                self._attention_layer(attentions.RecurrentAttentionLayer, self.attention_type, True),
                **self._layer_arguments(),
            )
            for _ in range(self.n_layers)
        ]
        return transformers.RecurrentTransformerEncoder(layers, self._norm())


class TransformerDecoderBuilder(_TransformerBuilder):
    """Makes a TransformerDecoder."""

    _defaults: ClassVar[dict[str, Any]] = {**_COMMON, "self_attention_type": "full", "cross_attention_type": "full"}

    def get(self) -> transformers.TransformerDecoder:
        """The decoder."""
        layers: list[nn.Module] = [
            transformers.TransformerDecoderLayer(
                self._attention_layer(attentions.AttentionLayer, self.self_attention_type, False),
                self._attention_layer(attentions.AttentionLayer, self.cross_attention_type, False),
                **self._layer_arguments(),
            )
            for _ in range(self.n_layers)
        ]
        return transformers.TransformerDecoder(layers, self._norm())


class RecurrentDecoderBuilder(_TransformerBuilder):
    """Makes a RecurrentTransformerDecoder."""

    _defaults: ClassVar[dict[str, Any]] = {**_COMMON, "self_attention_type": "linear", "cross_attention_type": "linear"}

    def get(self) -> transformers.RecurrentTransformerDecoder:
        """The decoder, token by token."""
        layers: list[nn.Module] = [
            transformers.RecurrentTransformerDecoderLayer(
                self._attention_layer(attentions.RecurrentAttentionLayer, self.self_attention_type, True),
                self._attention_layer(attentions.RecurrentCrossAttentionLayer, self.cross_attention_type, True, True),
                **self._layer_arguments(),
            )
            for _ in range(self.n_layers)
        ]
        return transformers.RecurrentTransformerDecoder(layers, self._norm())
