# SPDX-License-Identifier: Apache-2.0
"""Feature maps: what they are called, their numbers, and the random projections and weights that they need.

A feature map phi turns queries and keys into vectors of M features so that phi(q) . phi(k) takes the place of
exp(q . k / sqrt(D)). ``feature_map_names()`` lists all; docs/mechanisms.md gives formulas and sources.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from performer._library import ops

# Other names of maps; those of the program's attention kinds, favor-NAME, work too.
_ALIASES = {"softmax": "favor+", "elu": "elu+1"}


class Traits(NamedTuple):
    """What is known of a map: see :func:`feature_map_traits`."""

    exponential: bool
    projected: bool
    statistics: bool
    learned: bool
    signed_features: bool


class MapWeights(NamedTuple):
    """The data of a feature map. Parts that a map does not use are None.

    Shapes:
        projection: [H or 1, P, D] float32, random rows (P = M, or M / 2 for hyperbolic and trigonometric); a constant.
        matrix: geometry [H, R, D], hedgehog and t2r [H, P, D]; learned.
        bias: hedgehog and t2r [H, P]; learned.
    """

    projection: Tensor | None = None
    matrix: Tensor | None = None
    bias: Tensor | None = None


class MapStatistics(NamedTuple):
    """Moments of queries and keys, scaled by D^(-1/4), that oprf, sderf, aderf and saderf depend on.

    Shapes: means [H, D] and second moments [H, D, D] for all sequences, or with the batch in front, one a sequence.
    """

    query_mean: Tensor
    key_mean: Tensor
    query_moment: Tensor
    key_moment: Tensor


def feature_map_names() -> list[str]:
    """The names of all feature maps."""
    return list(ops.feature_map_names())


def map_name(name: str) -> str:
    """The name of a map in this library: of "softmax" "favor+", of the kind "favor-relu" "relu".

    Raises:
        ValueError: for an unknown map; the message lists the known ones.
    """
    plain = name.removeprefix("favor-").removeprefix("favor_")
    plain = _ALIASES.get(plain, plain)
    feature_map_traits(plain)
    return plain


def feature_map_traits(name: str) -> Traits:
    """What a map is like.

    exponential: it estimates softmax(q . k / sqrt(D)); projected: it uses random projections unless told otherwise;
    statistics: it depends on second moments of queries and keys; learned: it has parameters; signed_features: its
    denominators may vanish or change sign.

    Raises:
        ValueError: for an unknown name.
    """
    found = _TRAITS.get(name)
    return found if found is not None else Traits(*ops.feature_map_traits(name))  # which raises


_TRAITS = {name: Traits(*ops.feature_map_traits(name)) for name in feature_map_names()}


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """The description of a feature map: all but its data.

    Args:
        map: its name; "softmax" is "favor+".
        features: M, the number of features of maps with a projection.
        projection: "orthogonal", "iid", "hadamard", "givens", "simplex", "none", or "auto": orthogonal for maps of
            softmax, none (the features are functions of the inputs themselves) for element-wise ones.
        row_norm: lengths of the rows of the projection: "chi", or "sqrt-d" (SMREG, the regularised kernel).
        epsilon: added to element-wise features; None: 1e-3 for relu, else 0.
        shared_projection: one projection for all heads.

    Raises:
        ValueError: for an unknown name.

    Sources: FAVOR+, hyperbolic, trigonometric, element-wise maps arXiv 2009.14794; oprf 2205.15317; sderf, aderf,
    saderf 2302.00787; simplex projections 2301.13856; geometry 2603.04127; t2r 2103.13076; hedgehog 2402.04347.
    """

    map: str = "favor+"
    features: int = 256
    projection: str = "auto"
    row_norm: str = "chi"
    epsilon: float | None = None
    shared_projection: bool = False

    # What each call needs, made once: the arguments of the operators that name the map, and whether it is random.
    arguments: tuple[str, int, str, str, float] = dataclasses.field(init=False, repr=False, compare=False)
    default_drawn: bool = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        store = object.__setattr__
        store(self, "map", map_name(self.map))
        epsilon = -1.0 if self.epsilon is None else float(self.epsilon)
        arguments = (self.map, self.features, self.projection, self.row_norm, epsilon)
        store(self, "arguments", arguments)
        store(self, "default_drawn", self.projection not in ("auto", "none") or self.traits.projected)

    @property
    def traits(self) -> Traits:
        """What the map is like; see :func:`feature_map_traits`."""
        return feature_map_traits(self.map)

    def feature_count(self, head_size: int) -> int:
        """Features that a query or key of `head_size` numbers ends up with.

        Raises:
            ValueError: for options that are impossible together, naming them.
        """
        return int(ops.resolve_feature_map(*self.arguments, self.shared_projection, head_size)[2])

    def draw(self, heads: int, head_size: int, *, seed: int = 0, layer: int = 0, redraw: int = 0) -> Tensor | None:
        """A random projection [H or 1, P, D] float32 on the CPU; None for maps without one.

        It is named by (seed, layer, head, redraw): the same on every machine and in the program.

        Raises:
            ValueError: for options that are impossible together, naming them.
        """
        drawn: Tensor = ops.draw_map_projection(
            *self.arguments, self.shared_projection, heads, head_size, seed, layer, redraw
        )
        return drawn if drawn.numel() else None

    def initial_weights(self, heads: int, head_size: int) -> tuple[Tensor | None, Tensor | None]:
        """Matrix and bias of a learned map at their start; None where the map has none."""
        matrix, bias = ops.initial_map_weights(*self.arguments, self.shared_projection, heads, head_size)
        return (matrix if matrix.numel() else None), (bias if bias.numel() else None)


def measure_statistics(
    query: Tensor,
    key: Tensor,
    map: str,
    *,
    key_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    layout: str = "bhtd",
) -> MapStatistics:
    """Moments of queries and keys pooled over all sequences, to be frozen for causal attention.

    Args:
        query, key: [B, H, T, D], with layout "bthd" [B, T, H, D].
        map: oprf, sderf, aderf or saderf.
        key_mask, query_mask: bool [B, S] and [B, T], True keeps.
        cu_seqlens: int64 [N + 1], bounds of packed segments, for batch 1.

    Raises:
        ValueError: for a map without statistics.
    """
    if layout == "bhtd":
        query, key = query.transpose(1, 2), key.transpose(1, 2)
    cu = None if cu_seqlens is None else cu_seqlens.to("cpu", torch.int64)
    return MapStatistics(*ops.map_statistics(query, key, map_name(map), key_mask, query_mask, cu, cu))


_Arguments = tuple[str, int, str, str, float]
_drawn: dict[tuple[_Arguments, bool, int, int, int, torch.device, int], Tensor | None] = {}
_MOST_DRAWN = 256


def kept_projection(
    arguments: _Arguments, shared: bool, heads: int, head_size: int, seed: int, device: torch.device, layer: int
) -> Tensor | None:
    """The projection of redraw 0 of a map's `arguments`, drawn when it is first asked for; the last 256 are kept."""
    key = (arguments, shared, heads, head_size, seed, device, layer)
    try:
        return _drawn[key]
    except KeyError:
        pass
    while len(_drawn) >= _MOST_DRAWN:
        _drawn.pop(next(iter(_drawn)), None)
    with torch.inference_mode(False), torch.no_grad():
        drawn = ops.draw_map_projection(*arguments, shared, heads, head_size, seed, layer, 0)
        _drawn[key] = drawn.to(device) if drawn.numel() else None
    return _drawn[key]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constant_projection(
    arguments: _Arguments, shared: bool, heads: int, head_size: int, seed: int, device: torch.device, layer: int
) -> Tensor | None:
    return kept_projection(arguments, shared, heads, head_size, seed, device, layer)


def default_projection(
    feature_map: FeatureMap, heads: int, head_size: int, seed: int, device: torch.device, layer: int = 0
) -> Tensor | None:
    """The projection of a call that was given none.

    Under torch.compile it becomes a constant of the graph.
    """
    named = (feature_map.arguments, feature_map.shared_projection)
    if not torch.compiler.is_compiling():
        return kept_projection(*named, heads, head_size, seed, device, layer)
    # Sizes may be symbols here; the length of a tuple is a number, so the graph is one of this number of heads.
    heads, head_size = len((0,) * heads), len((0,) * head_size)
    constant: Tensor | None = _constant_projection(*named, heads, head_size, seed, device, layer)
    return constant
