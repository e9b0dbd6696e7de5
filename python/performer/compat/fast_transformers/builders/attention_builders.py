# SPDX-License-Identifier: Apache-2.0
"""Builders of attentions."""

from __future__ import annotations

from typing import Any

from torch import nn

from performer.compat.fast_transformers.attention_registry import (
    AttentionRegistry,
    RecurrentAttentionRegistry,
    RecurrentCrossAttentionRegistry,
    Registry,
)
from performer.compat.fast_transformers.builders.base import BaseBuilder, unknown_option


class BaseAttentionBuilder(BaseBuilder):
    """Builds the attentions of a registry, whose parameters are its attributes."""

    _registry: Registry
    _parameters: dict[str, Any]

    def __init__(self, registry: Registry) -> None:
        object.__setattr__(self, "_registry", registry)
        object.__setattr__(self, "_parameters", {})

    @property
    def available_attentions(self) -> list[str]:
        """The names that get() takes."""
        return self._registry.keys

    @property
    def known_parameters(self) -> list[str]:
        """The parameters that can be set."""
        return self._registry.parameters

    def check_attention_type(self, attention_type: str) -> None:
        """Raises ValueError for a type that get() would refuse."""
        for name in attention_type.replace(":", ",").split(","):
            if name not in self._registry:
                raise ValueError(f"attention type {name!r} is not there: {self._registry.why_not(name)}")

    def validate_attention_type(self, attention_type: str) -> bool:
        """Whether get() knows all names in a type."""
        return all(name in self._registry for name in attention_type.replace(":", ",").split(","))

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._registry.contains_parameter(name):
            raise unknown_option(self, name, self.known_parameters)
        self._parameters[name] = self._registry.validate_parameter(name, value)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_parameters"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __repr__(self) -> str:
        parameters = ",\n".join(f"    {name}={value!r}" for name, value in self._parameters.items())
        return f"{type(self).__name__}.from_kwargs(\n{parameters}\n)"

    def get(self, attention_type: str) -> nn.Module:
        """An attention: "linear"; "a:b" is an attention a that is given b, "a:b,c" one that is given b and c.

        Raises:
            ValueError: for an unknown type, or a parameter that is needed and not set.
            TypeError: when an attention is not given what it needs.
        """
        self.check_attention_type(attention_type)
        built: list[nn.Module] = []
        for names in reversed(attention_type.split(":")):
            built = [self._construct(name, built) for name in names.split(",")]
        if len(built) != 1:
            raise ValueError(f"attention type {attention_type!r} must begin with one attention before its colon")
        return built[0]

    def _construct(self, name: str, given: list[nn.Module]) -> nn.Module:
        kind, parameters = self._registry[name]
        values = {p: self._registry.validate_parameter(p, self._parameters.get(p)) for p in parameters}
        built: nn.Module = kind(*given, **values)
        return built


class AttentionBuilder(BaseAttentionBuilder):
    """Builds attentions of whole sequences."""

    def __init__(self) -> None:
        super().__init__(AttentionRegistry)


class RecurrentAttentionBuilder(BaseAttentionBuilder):
    """Builds recurrent self-attentions."""

    def __init__(self) -> None:
        super().__init__(RecurrentAttentionRegistry)


class RecurrentCrossAttentionBuilder(BaseAttentionBuilder):
    """Builds recurrent cross-attentions."""

    def __init__(self) -> None:
        super().__init__(RecurrentCrossAttentionRegistry)
