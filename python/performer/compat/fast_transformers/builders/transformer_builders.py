# SPDX-License-Identifier: Apache-2.0
"""Builders of transformers."""

from __future__ import annotations

from typing import Any

from torch import nn

from performer.compat.fast_transformers.attention import AttentionLayer
from performer.compat.fast_transformers.builders.attention_builders import (
    AttentionBuilder,
    BaseAttentionBuilder,
    RecurrentAttentionBuilder,
    RecurrentCrossAttentionBuilder,
)
from performer.compat.fast_transformers.builders.base import BaseBuilder, unknown_option
from performer.compat.fast_transformers.recurrent.attention import (
    RecurrentAttentionLayer,
    RecurrentCrossAttentionLayer,
)
from performer.compat.fast_transformers.recurrent.transformers import (
    RecurrentTransformerDecoder,
    RecurrentTransformerDecoderLayer,
    RecurrentTransformerEncoder,
    RecurrentTransformerEncoderLayer,
)
from performer.compat.fast_transformers.transformers import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

_DEFAULTS = {
    "n_layers": 4,
    "n_heads": 4,
    "feed_forward_dimensions": 1024,
    "query_dimensions": 64,
    "value_dimensions": 64,
    "dropout": 0.1,
    "activation": "relu",
    "final_normalization": True,
    "event_dispatcher": "",
}
_ACTIVATIONS = ("relu", "gelu")


class BaseTransformerBuilder(BaseBuilder):
    """Keeps the options of transformers, and hands the parameters of attentions to the builders of these.

    Args:
        builders: the builder of each attention, by the option that names its type.
    """

    _options: dict[str, Any]
    _builders: dict[str, BaseAttentionBuilder]

    def __init__(self, builders: dict[str, BaseAttentionBuilder]) -> None:
        object.__setattr__(self, "_options", {**_DEFAULTS, **dict.fromkeys(builders, "full")})
        object.__setattr__(self, "_builders", builders)
        for builder in builders.values():
            builder.query_dimensions = _DEFAULTS["query_dimensions"]

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        if name in self._builders:
            self._builders[name].check_attention_type(value)
        if name == "activation" and value not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, found {value!r}")
        takers = [builder for builder in self._builders.values() if name in builder.known_parameters]
        if name not in self._options and not takers:
            of_attentions = [known for builder in self._builders.values() for known in builder.known_parameters]
            raise unknown_option(self, name, {*self._options, *of_attentions})
        if name in self._options:
            self._options[name] = value
            takers = [] if value is None else takers
        for builder in takers:
            setattr(builder, name, value)

    def __getattr__(self, name: str) -> Any:
        options = self.__dict__.get("_options", {})
        if name not in options:
            raise AttributeError(name)
        return options[name]

    def _attention_layer(self, option: str, form: type[Any]) -> Any:
        """The attention that an option names, with its projections."""
        builder = self._builders[option]
        builder.event_dispatcher = self.event_dispatcher
        return form(
            builder.get(self._options[option]),
            self.value_dimensions * self.n_heads,
            self.n_heads,
            d_keys=self.query_dimensions,
            d_values=self.value_dimensions,
            event_dispatcher=self.event_dispatcher,
        )

    def _layer(self, form: type[Any], *attentions: Any) -> Any:
        """A layer with these attentions."""
        return form(
            *attentions,
            self.value_dimensions * self.n_heads,
            self.feed_forward_dimensions,
            self.dropout,
            self.activation,
            event_dispatcher=self.event_dispatcher,
        )

    def _stack(self, form: type[Any], layers: list[Any]) -> Any:
        """The transformer of these layers."""
        norm = nn.LayerNorm(self.value_dimensions * self.n_heads) if self.final_normalization else None
        return form(layers, norm, event_dispatcher=self.event_dispatcher)


class BaseTransformerEncoderBuilder(BaseTransformerBuilder):
    """Builds encoders of the classes that a subclass names by its methods _get_*."""

    def __init__(self) -> None:
        super().__init__({"attention_type": self._get_attention_builder()})

    def _get_attention_builder(self) -> BaseAttentionBuilder:
        raise NotImplementedError

    def _get_attention_layer_class(self) -> type[Any]:
        raise NotImplementedError

    def _get_encoder_class(self) -> type[Any]:
        raise NotImplementedError

    def _get_encoder_layer_class(self) -> type[Any]:
        raise NotImplementedError

    @property
    def attention(self) -> BaseAttentionBuilder:
        """The builder of attentions."""
        return self._builders["attention_type"]

    def get(self) -> Any:
        """The encoder."""
        layers = [
            self._layer(
                self._get_encoder_layer_class(),
                self._attention_layer("attention_type", self._get_attention_layer_class()),
            )
            for _ in range(self.n_layers)
        ]
        return self._stack(self._get_encoder_class(), layers)


class TransformerEncoderBuilder(BaseTransformerEncoderBuilder):
    """Builds a TransformerEncoder."""

    def _get_attention_builder(self) -> BaseAttentionBuilder:
        return AttentionBuilder()

    def _get_attention_layer_class(self) -> type[Any]:
        return AttentionLayer

    def _get_encoder_class(self) -> type[Any]:
        return TransformerEncoder

    def _get_encoder_layer_class(self) -> type[Any]:
        return TransformerEncoderLayer


class RecurrentEncoderBuilder(BaseTransformerEncoderBuilder):
    """Builds a RecurrentTransformerEncoder."""

    def _get_attention_builder(self) -> BaseAttentionBuilder:
        return RecurrentAttentionBuilder()

    def _get_attention_layer_class(self) -> type[Any]:
        return RecurrentAttentionLayer

    def _get_encoder_class(self) -> type[Any]:
        return RecurrentTransformerEncoder

    def _get_encoder_layer_class(self) -> type[Any]:
        return RecurrentTransformerEncoderLayer


class BaseTransformerDecoderBuilder(BaseTransformerBuilder):
    """Builds decoders of the classes that a subclass names by its methods _get_*."""

    def __init__(self) -> None:
        super().__init__(
            {
                "self_attention_type": self._get_self_attention_builder(),
                "cross_attention_type": self._get_cross_attention_builder(),
            }
        )

    def _get_self_attention_builder(self) -> BaseAttentionBuilder:
        raise NotImplementedError

    def _get_cross_attention_builder(self) -> BaseAttentionBuilder:
        raise NotImplementedError

    def _get_self_attention_layer_class(self) -> type[Any]:
        raise NotImplementedError

    def _get_cross_attention_layer_class(self) -> type[Any]:
        raise NotImplementedError

    def _get_decoder_class(self) -> type[Any]:
        raise NotImplementedError

    def _get_decoder_layer_class(self) -> type[Any]:
        raise NotImplementedError

    @property
    def self_attention(self) -> BaseAttentionBuilder:
        """The builder of self-attentions."""
        return self._builders["self_attention_type"]

    @property
    def cross_attention(self) -> BaseAttentionBuilder:
        """The builder of cross-attentions."""
        return self._builders["cross_attention_type"]

    def get(self) -> Any:
        """The decoder."""
        layers = [
            self._layer(
                self._get_decoder_layer_class(),
                self._attention_layer("self_attention_type", self._get_self_attention_layer_class()),
                self._attention_layer("cross_attention_type", self._get_cross_attention_layer_class()),
            )
            for _ in range(self.n_layers)
        ]
        return self._stack(self._get_decoder_class(), layers)


class TransformerDecoderBuilder(BaseTransformerDecoderBuilder):
    """Builds a TransformerDecoder."""

    def _get_self_attention_builder(self) -> BaseAttentionBuilder:
        return AttentionBuilder()

    def _get_cross_attention_builder(self) -> BaseAttentionBuilder:
        return AttentionBuilder()

    def _get_self_attention_layer_class(self) -> type[Any]:
        return AttentionLayer

    def _get_cross_attention_layer_class(self) -> type[Any]:
        return AttentionLayer

    def _get_decoder_class(self) -> type[Any]:
        return TransformerDecoder

    def _get_decoder_layer_class(self) -> type[Any]:
        return TransformerDecoderLayer


class RecurrentDecoderBuilder(BaseTransformerDecoderBuilder):
    """Builds a RecurrentTransformerDecoder."""

    def _get_self_attention_builder(self) -> BaseAttentionBuilder:
        return RecurrentAttentionBuilder()

    def _get_cross_attention_builder(self) -> BaseAttentionBuilder:
        return RecurrentCrossAttentionBuilder()

    def _get_self_attention_layer_class(self) -> type[Any]:
        return RecurrentAttentionLayer

    def _get_cross_attention_layer_class(self) -> type[Any]:
        return RecurrentCrossAttentionLayer

    def _get_decoder_class(self) -> type[Any]:
        return RecurrentTransformerDecoder

    def _get_decoder_layer_class(self) -> type[Any]:
        return RecurrentTransformerDecoderLayer
