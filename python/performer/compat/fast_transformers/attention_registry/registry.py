# SPDX-License-Identifier: Apache-2.0
"""Registries: the attentions by the names that builders take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from performer.compat.fast_transformers.attention_registry.spec import Spec


class Registry:
    """Classes of attentions by name, with the parameters that a builder hands to each."""

    def __init__(self) -> None:
        self._classes: dict[str, tuple[Any, list[str]]] = {}
        self._parameters: dict[str, Spec] = {}
        self._refused: dict[str, str] = {}

    def register(self, key: str, class_object: Any, parameter_tuples: Iterable[tuple[str, Spec]]) -> None:
        """Adds an attention, and the types of its parameters.

        Raises:
            ValueError: when the name is taken, or a parameter has another type already.
        """
        if key in self._classes:
            raise ValueError(f"{key} is already registered")
        parameters = list(parameter_tuples)
        self._add_parameters(parameters)
        self._classes[key] = (class_object, [name for name, _ in parameters])
        self._refused.pop(key, None)

    def refuse(self, key: str, reason: str, parameter_tuples: Iterable[tuple[str, Spec]] = ()) -> None:
        """Notes why an attention of fast-transformers is not here; its parameters can be set all the same."""
        self._add_parameters(parameter_tuples)
        self._refused[key] = reason

    def _add_parameters(self, parameters: Iterable[tuple[str, Spec]]) -> None:
        for name, spec in parameters:
            known = self._parameters.setdefault(name, spec)
            if known != spec:
                raise ValueError(f"{name} is already registered with spec {known!r} instead of {spec!r}")

    def why_not(self, key: str) -> str:
        """Why there is no attention of this name."""
        return self._refused.get(key, f"it is unknown; known: {', '.join(self._classes)}")

    def __contains__(self, key: str) -> bool:
        return key in self._classes

    def __getitem__(self, key: str) -> tuple[Any, list[str]]:
        return self._classes[key]

    @property
    def keys(self) -> list[str]:
        """The names."""
        return list(self._classes)

    @property
    def parameters(self) -> list[str]:
        """The names of all parameters."""
        return list(self._parameters)

    def contains_parameter(self, key: str) -> bool:
        """Whether some attention has a parameter of this name."""
        return key in self._parameters

    def validate_parameter(self, key: str, value: Any) -> Any:
        """The value that is used for `value`; raises ValueError where it is none of the parameter's type."""
        try:
            return self._parameters[key].get(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Invalid value {value!r} for parameter {key!r}") from error


AttentionRegistry = Registry()
RecurrentAttentionRegistry = Registry()
RecurrentCrossAttentionRegistry = Registry()
