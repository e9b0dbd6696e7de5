# SPDX-License-Identifier: Apache-2.0
"""The sections [model] and [attention] of a model folder's config.json (performer/nn/config.h has their meaning)."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from performer.features import FeatureMap, feature_map_names

FORMAT = 2  # of model folders; raised when an older program could misread one


@dataclasses.dataclass
class ModelConfig:
    """What a model is made of. Each field and default is that of `performer train --help`, section [model].

    Raises (in __post_init__):
        ValueError: for values that are impossible, naming the key.
    """

    objective: str = "causal"
    layers: int = 4
    width: int = 128
    heads: int = 4
    head_size: int = 0  # 0: width / heads
    ffn: int = 512
    max_length: int = 8192  # that learned and axial positions cover
    norm: str = "pre"
    norm_epsilon: float = 1e-6
    positions: str = "rotary"
    activation: str = "gelu-tanh"
    dropout: float = 0.1
    attention_bias: bool = False
    tied_output: bool = False
    regression_head: bool = False
    reversible: bool = False
    token_shift: bool = False

    def __post_init__(self) -> None:
        choices = {
            "objective": ("causal", "masked"),
            "norm": ("pre", "post"),
            "positions": ("rotary", "sinusoidal", "learned", "axial", "none"),
            "activation": ("gelu-tanh", "gelu", "relu"),
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"model.{name} must be one of {', '.join(known)}, not {value!r}")
        for name in ("layers", "width", "heads", "ffn", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        if not self.head_size and self.width % self.heads:
            raise ValueError(
                f"model.width ({self.width}) must be divisible by model.heads ({self.heads}); change one of them or "
                "set model.head_size"
            )
        if self.positions == "rotary" and self.size_of_head % 2:
            raise ValueError(f"model.positions = rotary needs an even head size, not {self.size_of_head}")
        if self.reversible and self.norm != "pre":
            raise ValueError(f"model.reversible = true needs model.norm = pre, not {self.norm}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be at least 0 and below 1, not {self.dropout}")

    @property
    def size_of_head(self) -> int:
        """head_size, or width / heads."""
        return self.head_size or self.width // self.heads

    @property
    def limits_length(self) -> bool:
        """Whether positions end at max_length."""
        return self.positions in ("learned", "axial")


_FAVOR_OPTIONS: dict[str, Any] = {
    "features": 256,
    "projection": "auto",
    "row_norm": "chi",
    "shared_projection": False,
    "epsilon": -1.0,
}


def kind_options() -> dict[str, dict[str, Any]]:
    """The attention kinds of models in Python, each with its own options and their defaults."""
    kinds = {"favor-softmax": _FAVOR_OPTIONS}
    kinds |= {f"favor-{name}": _FAVOR_OPTIONS for name in feature_map_names() if name != "favor+"}
    kinds["auto"] = {"linear": "favor-softmax", "break_even": 0, **_FAVOR_OPTIONS}
    kinds["exact"] = {}
    kinds["local"] = {"window": 128, "look_backward": 1, "look_forward": -1}
    kinds["identity"] = {"projections": False}
    return kinds


class NotInPython(ValueError):
    """A model that the program computes and this package does not."""


@dataclasses.dataclass
class AttentionConfig:
    """What attention computes; section [attention]. `options` are the keys that belong to the kind.

    Raises (in __post_init__):
        ValueError: for an unknown kind or option, with the nearest known name.
    """

    kind: str = "favor-relu"
    local_heads: int = 0
    local_window: int = 128
    begin_kernel: int = 0
    redraw_every: int = 1000
    seed: int = 0
    qk_norm: bool = False
    learned_temperature: bool = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = kind_options()
        if self.kind not in kinds:
            near = difflib.get_close_matches(self.kind, kinds, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise NotInPython(
                f"attention.kind = {self.kind} has no form in Python{hint}; there are {', '.join(kinds)}. Models of "
                "other kinds run with the program: performer score, performer generate"
            )
        for name in self.options:
            if name not in kinds[self.kind]:
                raise ValueError(f"attention.{name} is not an option of attention.kind = {self.kind}")
        if self.kind == "local" and self.local_heads == 0 and self.option("window") < 1:
            raise ValueError(f"attention.window must be at least 1, not {self.option('window')}")

    def option(self, name: str) -> Any:
        """The value of an option of the kind."""
        return self.options.get(name, kind_options()[self.kind][name])

    def feature_map(self) -> FeatureMap:
        """The map of a favor-* kind, or of the linear part of `auto`."""
        kind = self.option("linear") if self.kind == "auto" else self.kind
        epsilon = self.option("epsilon")
        return FeatureMap(
            kind,
            self.option("features"),
            self.option("projection"),
            self.option("row_norm"),
            None if epsilon == -1 else epsilon,
            self.option("shared_projection"),
        )

    def as_dict(self) -> dict[str, Any]:
        """All keys of the section, the kind's own ones beside the others."""
        own = {name: self.option(name) for name in kind_options()[self.kind]}
        common = dataclasses.asdict(self)
        del common["options"]
        return {**common, **own}


# Keys of the program, most of them for imported models, that Python has with these values only.
_FIXED: dict[str, Any] = {
    "norm_type": "layer",
    "embedding_norm": False,
    "final_norm": True,
    "axial_axes": "64",
    "added_positions": False,
    "rotary_base": 10000,
    "rotary_stored": False,
    "embedding_scale": 1,
    "token_dropout": False,
    "ffn_gate": False,
    "ffn_bias": True,
    "kv_heads": 0,
    "output_head": "linear",
    "output_scale": 0,
}


def read_model(section: dict[str, Any]) -> ModelConfig:
    """A [model] section; raises ValueError naming an unknown key, or a value without a form in Python."""
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    _check_keys("model", section, known + list(_FIXED))
    for name, value in _FIXED.items():
        if section.get(name, value) != value:
            raise NotInPython(
                f"model.{name} = {section[name]} has no form in Python, only {value}; such models run with the program"
            )
    return ModelConfig(**{name: value for name, value in section.items() if name in known})


def read_attention(section: dict[str, Any]) -> AttentionConfig:
    """An [attention] section; raises ValueError naming an unknown key."""
    common = [field.name for field in dataclasses.fields(AttentionConfig) if field.name != "options"]
    kind = section.get("kind", AttentionConfig.kind)
    own = list(kind_options().get(kind, {}))
    if kind in kind_options():
        _check_keys("attention", section, common + own)
    return AttentionConfig(
        **{name: value for name, value in section.items() if name in common},
        options={name: value for name, value in section.items() if name in own},
    )


def _check_keys(section: str, values: dict[str, Any], known: list[str]) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; the nearest known one is '{section}.{near[0]}'" if near else ""
            raise ValueError(f"unknown key '{section}.{name}'{hint}")
