# SPDX-License-Identifier: Apache-2.0
"""Weights of other encoders under the names of TransformerEncoder's: encoder.load_state_dict(mapper.map(weights))."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

Items = list[tuple[str, Tensor]]


class MappingRule:
    """Says which weights it is for, and what becomes of one."""

    def matches(self, key: str) -> bool:
        """Whether the rule is for this name."""
        raise NotImplementedError

    def apply(self, key: str, value: Tensor) -> Items:
        """The new names and weights."""
        raise NotImplementedError


class IdentityRule(MappingRule):
    """Any weight as it is."""

    def matches(self, key: str) -> bool:
        """True."""
        return True

    def apply(self, key: str, value: Tensor) -> Items:
        """The weight as it is."""
        return [(key, value)]


class NotRule(MappingRule):
    """Weights that another rule is not for, as they are."""

    def __init__(self, rule: MappingRule) -> None:
        self.rule = rule

    def matches(self, key: str) -> bool:
        """Whether the other rule is not for this name."""
        return not self.rule.matches(key)

    def apply(self, key: str, value: Tensor) -> Items:
        """The weight as it is."""
        return [(key, value)]


class OrRule(MappingRule):
    """Weights that one of several rules is for, by those rules one after the other."""

    def __init__(self, *rules: MappingRule) -> None:
        self.rules = rules

    def matches(self, key: str) -> bool:
        """Whether one of the rules is for this name."""
        return any(rule.matches(key) for rule in self.rules)

    def apply(self, key: str, value: Tensor) -> Items:
        """The new names and weights."""
        items = [(key, value)]
        for rule in self.rules:
            items = [new for k, v in items for new in (rule.apply(k, v) if rule.matches(k) else [(k, v)])]
        return items


class RegexRule(MappingRule):
    """Weights whose name holds a pattern, which is replaced."""

    def __init__(self, search: str, replace: str | Callable[[re.Match[str]], str]) -> None:
        self.pattern, self.replace = re.compile(search), replace

    def matches(self, key: str) -> bool:
        """Whether the name holds the pattern."""
        return self.pattern.search(key) is not None

    def apply(self, key: str, value: Tensor) -> Items:
        """The weight under its new name."""
        return [(self.pattern.sub(self.replace, key), value)]


class PytorchAttentionWeightsRule(MappingRule):
    """The rows of torch.nn.MultiheadAttention's in_proj: queries, keys and values."""

    _PATTERN = re.compile(r"self_attn\.in_proj_(weight|bias)")

    def matches(self, key: str) -> bool:
        """Whether the name is that of such rows."""
        return self._PATTERN.search(key) is not None

    def apply(self, key: str, value: Tensor) -> Items:
        """A third for each of the three projections."""
        names = [rf"attention.{part}_projection.\1" for part in ("query", "key", "value")]
        return [(self._PATTERN.sub(name, key), rows) for name, rows in zip(names, value.chunk(3), strict=True)]


class SimpleMapper:
    """Applies to each weight the first rule that is for it; weights without a rule are left out."""

    def __init__(self, rules: Iterable[MappingRule] = (), add_identity: bool = True) -> None:
        self._rules = [*rules, *([IdentityRule()] if add_identity else [])]

    def map(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights under their new names."""
        mapped: dict[str, Tensor] = {}
        for key, value in state_dict.items():
            rule = next((rule for rule in self._rules if rule.matches(key)), None)
            mapped.update(rule.apply(key, value) if rule else [])
        return mapped

    @classmethod
    def load_file(
        cls, filepath: Any, model_root: str | None = None, map_location: Any = None, **other_args: Any
    ) -> dict[str, Any]:
        """What torch.load() reads, mapped, or with what lies under `model_root` mapped."""
        state: dict[str, Any] = torch.load(filepath, map_location=map_location, **other_args)
        if model_root is None:
            return cls().map(state)
        return {**state, model_root: cls().map(state[model_root])}


class PytorchMapper(SimpleMapper):
    """The weights of torch.nn.TransformerEncoder."""

    def __init__(self) -> None:
        projection = RegexRule(
            r"layers\.(\d+)\.self_attn\.([a-z]+)_proj(ection)?\.", r"layers.\1.attention.\2_projection."
        )
        rules = [PytorchAttentionWeightsRule(), projection, NotRule(RegexRule(r"\.softmax_temp$", ""))]
        super().__init__(rules, add_identity=False)


class HugginfaceBertEncoderMapper(SimpleMapper):
    """The weights of transformers' BertEncoder."""

    RULES: ClassVar[list[MappingRule]] = [
        RegexRule(r"layer\.(\d+)\.attention\.self\.(query|key|value)(?=\.)", r"layers.\1.attention.\2_projection"),
        RegexRule(r"layer\.(\d+)\.attention\.output\.dense", r"layers.\1.attention.out_projection"),
        RegexRule(r"layer\.(\d+)\.attention\.output\.LayerNorm", r"layers.\1.norm1"),
        RegexRule(r"layer\.(\d+)\.intermediate\.dense", r"layers.\1.linear1"),
        RegexRule(r"layer\.(\d+)\.output\.dense", r"layers.\1.linear2"),
        RegexRule(r"layer\.(\d+)\.output\.LayerNorm", r"layers.\1.norm2"),
    ]

    def __init__(self) -> None:
        super().__init__(self.RULES)


class LongformerMapper(SimpleMapper):
    """The weights of Longformer's encoder without those of its global attention."""

    def __init__(self) -> None:
        of_global = RegexRule(r"layer\.(\d+)\.attention\.self\.(query|key|value)_global", "")
        super().__init__([*HugginfaceBertEncoderMapper.RULES, NotRule(of_global)], add_identity=False)
