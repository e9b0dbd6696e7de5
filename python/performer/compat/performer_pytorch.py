# SPDX-License-Identifier: Apache-2.0
"""performer-pytorch 1.1.4 by other means: the same classes, constructor arguments, state-dict names and numbers.

    from performer.compat.performer_pytorch import PerformerLM, AutoregressiveWrapper

Outputs equal recordings of that package, its epsilons, shifts and quirks included: a padding mask hides values and not
keys, causal attention adds 1e-6 to each feature of the key sum, softmax features are shifted by a maximum over the
whole sequence. Attention takes memory in proportion to the length; sums are taken in float64. For new models,
performer.LanguageModel is faster, and its causal attention never sees the future. Projections come from
torch's global generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from performer.compat import _arithmetic
from performer.compat._local import LocalAttention
from performer.models.blocks import shift_tokens
from performer.models.kinds import Batch

Activation = Callable[[Tensor], Tensor]


def gaussian_orthogonal_random_matrix(
    nb_rows: int, nb_columns: int, scaling: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """A projection [nb_rows, nb_columns]; rows have the length of Gaussian ones (scaling 0) or sqrt(columns) (1).

    Raises:
        ValueError: for another scaling.
    """
    rows = _arithmetic.orthogonal_rows(nb_rows, nb_columns)
    if scaling == 0:
        lengths: Tensor = torch.linalg.vector_norm(torch.randn(nb_rows, nb_columns), dim=1)
    elif scaling == 1:
        lengths = torch.full((nb_rows,), math.sqrt(nb_columns))
    else:
        raise ValueError(f"scaling must be 0 or 1, not {scaling}")
    return (lengths.unsqueeze(-1) * rows).to(device)


def softmax_kernel(
    data: Tensor,
    *,
    projection_matrix: Tensor,
    is_query: bool,
    normalize_data: bool = True,
    eps: float = 1e-4,
    device: Any = None,
) -> Tensor:
    """Positive softmax features [B, H, L, M] of data [B, H, L, D]: M^(-1/2) (exp(u - |x|^2 / 2 - max u) + eps)."""
    x = data * data.shape[-1] ** -0.25 if normalize_data else data
    u = x @ projection_matrix.to(x.dtype).transpose(-1, -2)
    shift = u.amax(-1, keepdim=True) if is_query else u.amax((-1, -2), keepdim=True)
    half = x.square().sum(-1, keepdim=True) / 2
    ratio: float = projection_matrix.shape[0] ** -0.5
    return (torch.exp(u - half - shift.detach()) + eps) * ratio


def generalized_kernel(
    data: Tensor,
    *,
    projection_matrix: Tensor | None,
    kernel_fn: Activation = F.relu,
    kernel_epsilon: float = 0.001,
    normalize_data: bool = True,
    device: Any = None,
) -> Tensor:
    """f(W x) + epsilon, or f(x) + epsilon without a projection."""
    x = data * data.shape[-1] ** -0.25 if normalize_data else data
    if projection_matrix is not None:
        x = x @ projection_matrix.to(x.dtype).transpose(-1, -2)
    return kernel_fn(x) + kernel_epsilon


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of features q [..., L, M], k [..., S, M] and values v [..., S, E], without a guard."""
    numerator, denominator = _arithmetic.linear_attention(q, k, v)
    return (numerator / denominator).to(v.dtype)


def causal_linear_attention(q: Tensor, k: Tensor, v: Tensor, chunk_size: int = 128, eps: float = 1e-6) -> Tensor:
    """The causal form; eps is added to each feature of the running key sum.

    Raises:
        ValueError: for different numbers of queries and keys beyond 128, which the original pairs up by pieces.
    """
    length = min(q.shape[-2], k.shape[-2])
    if q.shape[-2] != k.shape[-2] and max(q.shape[-2], k.shape[-2]) > chunk_size:
        raise ValueError(f"causal attention needs as many keys as queries, found {k.shape[-2]} and {q.shape[-2]}")
    q, k, v = q[..., :length, :], k[..., :length, :], v[..., :length, :]
    if not bool(torch.isfinite(k).all()):  # exp of large keys: overflows as the original does
        sums = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(-3)
        denominator = 1.0 / torch.einsum("...nd,...nd->...n", q, k.cumsum(-2).to(q.dtype) + eps)
        return torch.einsum("...nde,...nd,...n->...ne", sums, q, denominator).to(v.dtype)
    numerator, denominator = _arithmetic.causal_linear_attention(q, k, v)
    return (numerator / (denominator + eps * q.double().sum(-1, keepdim=True))).to(v.dtype)


causal_linear_attention_noncuda = causal_linear_attention


class FastAttention(nn.Module):
    """Attention of heads: q, k, v [B, H, L, D] -> [B, H, L, D].

    Args and names are performer-pytorch's; the projection is the buffer ``projection_matrix``.
    """

    projection_matrix: Tensor

    def __init__(
        self,
        dim_heads: int,
        nb_features: int | None = None,
        ortho_scaling: int = 0,
        causal: bool = False,
        generalized_attention: bool = False,
        kernel_fn: Activation = F.relu,
        no_projection: bool = False,
    ) -> None:
        super().__init__()
        self.dim_heads, self.ortho_scaling = dim_heads, ortho_scaling
        self.nb_features = int(dim_heads * math.log(dim_heads)) if nb_features is None else nb_features
        self.create_projection = functools.partial(
            gaussian_orthogonal_random_matrix, self.nb_features, dim_heads, ortho_scaling
        )
        self.register_buffer("projection_matrix", self.create_projection())
        self.causal, self.generalized_attention = causal, generalized_attention
        self.kernel_fn, self.no_projection = kernel_fn, no_projection

    @torch.no_grad()
    def redraw_projection_matrix(self, device: Any = None) -> None:
        """Draws a new projection."""
        self.projection_matrix.copy_(self.create_projection(device=device))

    def _features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.no_projection:
            return q.softmax(-1), k.exp() if self.causal else k.softmax(-2)
        if self.generalized_attention:
            make = functools.partial(
                generalized_kernel, projection_matrix=self.projection_matrix, kernel_fn=self.kernel_fn
            )
            return make(q), make(k)
        features = functools.partial(softmax_kernel, projection_matrix=self.projection_matrix)
        return features(q, is_query=True), features(k, is_query=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, L, D] -> [B, H, L, E]."""
        q_features, k_features = self._features(q.double(), k.double())
        if q.dtype != torch.float64 and not bool(torch.isfinite(k_features.float()).all()):
            q_features, k_features = self._features(q, k)
        return (causal_linear_attention if self.causal else linear_attention)(q_features, k_features, v)


class ProjectionUpdater(nn.Module):
    """Redraws the projections of an instance every feature_redraw_interval + 1 training calls."""

    calls_since_last_redraw: Tensor

    def __init__(self, instance: nn.Module, feature_redraw_interval: int | None) -> None:
        super().__init__()
        self.instance, self.feature_redraw_interval = instance, feature_redraw_interval
        self.register_buffer("calls_since_last_redraw", torch.tensor(0))

    def fix_projections_(self) -> None:
        """Never redraws again."""
        self.feature_redraw_interval = None

    def redraw_projections(self) -> None:
        """Counts a training call, and redraws when it is time."""
        if not self.training or self.feature_redraw_interval is None:
            return
        if self.calls_since_last_redraw >= self.feature_redraw_interval:
            for module in self.instance.modules():
                if isinstance(module, FastAttention):
                    module.redraw_projection_matrix(module.projection_matrix.device)
            self.calls_since_last_redraw.zero_()
            return
        self.calls_since_last_redraw += 1

    def forward(self, x: Tensor) -> Tensor:
        """Not for calls."""
        raise NotImplementedError("ProjectionUpdater is not called; redraw_projections() counts")


class ReZero(nn.Module):
    """fn(x) times a learned number that begins at 1e-3."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.tensor(1e-3))
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] -> same."""
        return cast(Tensor, self.fn(x, **kwargs) * self.g)


class PreScaleNorm(nn.Module):
    """fn of x divided by its length, times a learned number."""

    def __init__(self, dim: int, fn: nn.Module, eps: float = 1e-5) -> None:
        super().__init__()
        self.fn, self.eps = fn, eps
        self.g = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] -> same."""
        length = torch.norm(x, dim=-1, keepdim=True).clamp(min=self.eps)
        return cast(Tensor, self.fn(x / length * self.g, **kwargs))


class PreLayerNorm(nn.Module):
    """fn of a layer norm of x."""

    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] -> same."""
        return cast(Tensor, self.fn(self.norm(x), **kwargs))


class Chunk(nn.Module):
    """fn of pieces of x along a dimension, one after the other."""

    def __init__(self, chunks: int, fn: nn.Module, along_dim: int = -1) -> None:
        super().__init__()
        self.dim, self.chunks, self.fn = along_dim, chunks, fn

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The same shape."""
        if self.chunks == 1:
            return cast(Tensor, self.fn(x, **kwargs))
        return torch.cat([self.fn(part, **kwargs) for part in x.chunk(self.chunks, dim=self.dim)], self.dim)


class PreShiftTokens(nn.Module):
    """fn of x with groups of features taken from neighbouring tokens."""

    def __init__(self, shifts: Sequence[int], fn: nn.Module) -> None:
        super().__init__()
        self.fn, self.shifts = fn, tuple(shifts)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[B, L, D] -> same."""
        return cast(Tensor, self.fn(shift_tokens(x, self.shifts, Batch(kwargs.get("mask"))), **kwargs))


class FeedForward(nn.Module):
    """Two linear layers around an activation, with a gate when `glu`."""

    def __init__(
        self, dim: int, mult: int = 4, dropout: float = 0.0, activation: Any = None, glu: bool = False
    ) -> None:
        super().__init__()
        self.glu = glu
        self.w1 = nn.Linear(dim, dim * mult * (2 if glu else 1))
        self.act = (activation or nn.GELU)()
        self.dropout = nn.Dropout(dropout)
        self.w2 = nn.Linear(dim * mult, dim)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[..., D] -> same."""
        if not self.glu:
            inner = self.act(self.w1(x))
        else:
            first, gate = self.w1(x).chunk(2, dim=-1)
            inner = self.act(first) * gate
        return cast(Tensor, self.w2(self.dropout(inner)))


def apply_rotary_pos_emb(q: Tensor, k: Tensor, sinu_pos: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbouring channels of q and k [B, H, L, D] turned by a table [1, L, D] of sines and cosines."""
    sine, cosine = (part.to(q.dtype) for part in sinu_pos[0].chunk(2, dim=-1))

    def turned(x: Tensor) -> Tensor:
        first, second = x[..., ::2], x[..., 1::2]
        return torch.stack([first * cosine - second * sine, second * cosine + first * sine], -1).flatten(-2)

    return turned(q), turned(k)


class Attention(nn.Module):
    """Attention with its projections; base of SelfAttention and CrossAttention, which say what is attended to."""

    def __init__(
        self,
        dim: int,
        causal: bool = False,
        heads: int = 8,
        dim_head: int | None = 64,
        local_heads: int = 0,
        local_window_size: int = 256,
        nb_features: int | None = None,
        feature_redraw_interval: int | None = 1000,
        generalized_attention: bool = False,
        kernel_fn: Activation = F.relu,
        dropout: float = 0.0,
        no_projection: bool = False,
        qkv_bias: bool = False,
        attn_out_bias: bool = True,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim ({dim}) must be divisible by heads ({heads})")
        dim_head = dim_head or dim // heads
        inner = dim_head * heads
        self.fast_attention = FastAttention(
            dim_head,
            nb_features,
            causal=causal,
            generalized_attention=generalized_attention,
            kernel_fn=kernel_fn,
            no_projection=no_projection,
        )
        self.heads, self.global_heads = heads, heads - local_heads
        self.local_attn = LocalAttention(dim_head, local_window_size, causal, dropout) if local_heads else None
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_k = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_v = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_out = nn.Linear(inner, dim, bias=attn_out_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        pos_emb: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """x [B, L, D] -> same; masks bool, True keeps."""
        cross = context is not None
        source = x if context is None else context
        key_mask = context_mask if context_mask is not None else None if cross else mask
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.to_q, x), (self.to_k, source), (self.to_v, source))
        )
        outputs = []
        split = self.global_heads
        if split:
            gq, gk, gv = q[:, :split], k[:, :split], v[:, :split]
            if key_mask is not None:
                gv = gv.masked_fill(~key_mask[:, None, :, None], 0.0)
            if pos_emb is not None and not cross:
                gq, gk = apply_rotary_pos_emb(gq, gk, pos_emb)
            outputs.append(self.fast_attention(gq, gk, gv))
        if self.local_attn is not None:
            if cross:
                raise ValueError("local attention is not compatible with cross attention")
            outputs.append(self.local_attn(q[:, split:], k[:, split:], v[:, split:], input_mask=mask))
        out = torch.cat(outputs, 1).transpose(1, 2).flatten(-2)
        return cast(Tensor, self.dropout(self.to_out(out)))


class SelfAttention(Attention):
    """Attention to the own sequence."""

    def forward(self, *args: Any, context: Tensor | None = None, **kwargs: Any) -> Tensor:
        """x [B, L, D] -> same; raises ValueError for a context."""
        if context is not None:
            raise ValueError("self attention takes no context: use CrossAttention")
        return super().forward(*args, **kwargs)


class CrossAttention(Attention):
    """Attention to a context [B, S, D]."""

    def forward(self, *args: Any, context: Tensor | None = None, **kwargs: Any) -> Tensor:
        """x [B, L, D] -> same; raises ValueError without a context."""
        if context is None:
            raise ValueError("cross attention needs a context")
        kwargs["context"] = context
        return super().forward(*args, **kwargs)


class FixedPositionalEmbedding(nn.Module):
    """A table of sines, then cosines, [1, L, D]."""

    emb: Tensor

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        rates = 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))
        angles = torch.einsum("i,j->ij", torch.arange(max_seq_len).float(), rates)
        self.register_buffer("emb", torch.cat([angles.sin(), angles.cos()], -1))

    def forward(self, x: Tensor) -> Tensor:
        """The rows of x's tokens [B, L, ...]."""
        return self.emb[None, : x.shape[1]].to(x)


class AbsolutePositionalEmbedding(nn.Module):
    """Learned positions."""

    def __init__(self, dim: int, max_seq_len: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_seq_len, dim)
        nn.init.normal_(self.emb.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[L, D]."""
        return self.emb.weight[: x.shape[1]]


class AxialPositionalEmbedding(nn.Module):
    """Learned positions as a sum of two smaller tables."""

    def __init__(self, dim: int, axial_shape: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.shape = dim, tuple(axial_shape)
        self.weights = nn.ParameterList()
        for axis, size in enumerate(self.shape):
            shape = [1] * (len(self.shape) + 2)
            shape[axis + 1], shape[-1] = size, dim
            self.weights.append(nn.Parameter(torch.randn(shape) * 0.02))

    def forward(self, x: Tensor) -> Tensor:
        """[1, L, D]."""
        total = sum(self.weights[1:], self.weights[0])
        return cast(Tensor, total.reshape(1, -1, self.dim)[:, : x.shape[1]])


class SequentialSequence(nn.Module):
    """Layers one after the other with residuals; keyword arguments go where `args_route` says."""

    def __init__(self, layers: nn.ModuleList, args_route: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.layers, self.args_route = layers, args_route or {}

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[B, L, D] -> same."""
        for layer, (f_args, g_args) in zip(
            self.layers, _routed(self.args_route, kwargs, len(self.layers)), strict=True
        ):
            f, g = cast(nn.ModuleList, layer)
            x = x + f(x, **f_args)
            x = x + g(x, **g_args)
        return x


class Deterministic(nn.Module):
    """A branch of a reversible block."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """net(x)."""
        return cast(Tensor, self.net(x, **kwargs))


class ReversibleBlock(nn.Module):
    """Two branches over two streams."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = Deterministic(f), Deterministic(g)

    def forward(self, x1: Tensor, x2: Tensor, f_args: dict[str, Any], g_args: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Both streams moved on."""
        y1 = x1 + self.f(x2, **f_args)
        return y1, x2 + self.g(y1, **g_args)


class ReversibleSequence(nn.Module):
    """Reversible blocks; begins with both streams as x and ends with their sum.

    In training each block is recomputed in the backward pass, so that memory holds two tensors a block.
    """

    def __init__(self, blocks: nn.ModuleList, args_route: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.args_route = args_route or {}
        self.blocks = nn.ModuleList(ReversibleBlock(*cast(nn.ModuleList, pair)) for pair in blocks)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """[B, L, D] -> same."""
        first = second = x
        recompute = self.training and torch.is_grad_enabled()
        for block, (f_args, g_args) in zip(
            self.blocks, _routed(self.args_route, kwargs, len(self.blocks)), strict=True
        ):
            args = (first, second, f_args, g_args)
            if recompute:
                first, second = torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)
            else:
                first, second = block(*args)
        return first + second


def _routed(route: dict[str, Any], kwargs: dict[str, Any], depth: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    routed: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {}) for _ in range(depth)]
    for name in kwargs:
        if name not in route:
            continue
        for (f_args, g_args), (to_f, to_g) in zip(routed, route[name], strict=True):
            if to_f:
                f_args[name] = kwargs[name]
            if to_g:
                g_args[name] = kwargs[name]
    return routed


class Performer(nn.Module):
    """A stack of blocks: x [B, L, D] -> same. Arguments are performer-pytorch's."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int | None,
        local_attn_heads: int | Sequence[int] = 0,
        local_window_size: int = 256,
        causal: bool = False,
        ff_mult: int = 4,
        nb_features: int | None = None,
        feature_redraw_interval: int | None = 1000,
        reversible: bool = False,
        ff_chunks: int = 1,
        generalized_attention: bool = False,
        kernel_fn: Activation = F.relu,
        use_scalenorm: bool = False,
        use_rezero: bool = False,
        ff_glu: bool = False,
        ff_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        cross_attend: bool = False,
        no_projection: bool = False,
        auto_check_redraw: bool = True,
        qkv_bias: bool = True,
        attn_out_bias: bool = True,
        shift_tokens: bool = False,
    ) -> None:
        super().__init__()
        local = (local_attn_heads,) * depth if isinstance(local_attn_heads, int) else tuple(local_attn_heads)
        local = local * depth if len(local) == 1 else local
        if len(local) != depth or not all(0 <= n <= heads for n in local):
            raise ValueError(
                f"local_attn_heads {local} must be one number from 0 to {heads} for each of {depth} layers"
            )

        def wrapped(module: nn.Module) -> nn.Module:
            if use_scalenorm:
                return PreScaleNorm(dim, module)
            return ReZero(module) if use_rezero else PreLayerNorm(dim, module)

        def attention(kind: type[Attention], is_causal: bool, local_heads: int) -> nn.Module:
            return kind(
                dim,
                causal=is_causal,
                heads=heads,
                dim_head=dim_head,
                local_heads=local_heads,
                local_window_size=local_window_size,
                nb_features=nb_features,
                generalized_attention=generalized_attention,
                kernel_fn=kernel_fn,
                dropout=attn_dropout,
                no_projection=no_projection,
                qkv_bias=qkv_bias,
                attn_out_bias=attn_out_bias,
            )

        def feed_forward() -> nn.Module:
            return Chunk(ff_chunks, FeedForward(dim, ff_mult, ff_dropout, glu=ff_glu), along_dim=1)

        shifts = (0, 1) if causal else (-1, 0, 1)

        def shifted(module: nn.Module) -> nn.Module:
            return PreShiftTokens(shifts, module) if shift_tokens else module

        layers = nn.ModuleList()
        for local_heads in local:
            own = (shifted(attention(SelfAttention, causal, local_heads)), shifted(feed_forward()))
            layers.append(nn.ModuleList(wrapped(module) for module in own))
            if cross_attend:
                cross = (attention(CrossAttention, False, 0), feed_forward())
                layers.append(nn.ModuleList(wrapped(module) for module in cross))
        to_self = ((True, False), (False, False)) if cross_attend else ((True, False),)
        to_cross = ((False, False), (True, False)) if cross_attend else ((False, False),)
        route = dict.fromkeys(("mask", "pos_emb"), to_self * depth)
        if cross_attend:
            route |= dict.fromkeys(("context", "context_mask"), to_cross * depth)
        self.net = ReversibleSequence(layers, route) if reversible else SequentialSequence(layers, route)
        self.auto_check_redraw = auto_check_redraw
        self.proj_updater = ProjectionUpdater(self.net, feature_redraw_interval)

    def fix_projection_matrices_(self) -> None:
        """Never redraws projections again."""
        self.proj_updater.feature_redraw_interval = None

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """x [B, L, D]; keywords mask, pos_emb, context, context_mask."""
        if self.auto_check_redraw:
            self.proj_updater.redraw_projections()
        return cast(Tensor, self.net(x, **kwargs))


class PerformerLM(nn.Module):
    """A language model: tokens [B, L] -> logits [B, L, num_tokens]. Arguments are performer-pytorch's."""

    def __init__(
        self,
        *,
        num_tokens: int,
        max_seq_len: int,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int | None = 64,
        local_attn_heads: int | Sequence[int] = 0,
        local_window_size: int = 256,
        causal: bool = False,
        ff_mult: int = 4,
        nb_features: int | None = None,
        feature_redraw_interval: int | None = 1000,
        reversible: bool = False,
        ff_chunks: int = 1,
        ff_glu: bool = False,
        emb_dropout: float = 0.0,
        ff_dropout: float = 0.0,
        attn_dropout: float = 0.0,
        generalized_attention: bool = False,
        kernel_fn: Activation = F.relu,
        use_scalenorm: bool = False,
        use_rezero: bool = False,
        cross_attend: bool = False,
        no_projection: bool = False,
        tie_embed: bool = False,
        rotary_position_emb: bool = True,
        axial_position_emb: bool = False,
        axial_position_shape: Sequence[int] | None = None,
        auto_check_redraw: bool = True,
        qkv_bias: bool = False,
        attn_out_bias: bool = False,
        shift_tokens: bool = False,
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb: nn.Module
        self.layer_pos_emb: nn.Module
        if rotary_position_emb:
            self.pos_emb = FixedPositionalEmbedding(dim, max_seq_len)
            self.layer_pos_emb = FixedPositionalEmbedding(dim_head or dim // heads, max_seq_len)
        elif axial_position_emb:
            shape = axial_position_shape or (math.ceil(max_seq_len / 64), 64)
            self.pos_emb, self.layer_pos_emb = AxialPositionalEmbedding(dim, shape), Always(None)
        else:
            self.pos_emb, self.layer_pos_emb = AbsolutePositionalEmbedding(dim, max_seq_len), Always(None)
        self.dropout = nn.Dropout(emb_dropout)
        self.performer = Performer(
            dim,
            depth,
            heads,
            dim_head,
            local_attn_heads,
            local_window_size,
            causal,
            ff_mult,
            nb_features,
            feature_redraw_interval,
            reversible,
            ff_chunks,
            generalized_attention,
            kernel_fn,
            use_scalenorm,
            use_rezero,
            ff_glu,
            ff_dropout,
            attn_dropout,
            cross_attend,
            no_projection,
            auto_check_redraw,
            qkv_bias,
            attn_out_bias,
            shift_tokens,
        )
        self.norm = nn.LayerNorm(dim)
        self.to_out = None if tie_embed else nn.Linear(dim, num_tokens)
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def check_redraw_projections(self) -> None:
        """Counts a training call of the stack (auto_check_redraw=False)."""
        self.performer.proj_updater.redraw_projections()

    def fix_projection_matrices_(self) -> None:
        """Never redraws projections again."""
        self.performer.fix_projection_matrices_()

    def forward(self, x: Tensor, return_encodings: bool = False, **kwargs: Any) -> Tensor:
        """Logits, or with return_encodings the final norm's output.

        Raises:
            ValueError: for a sequence beyond max_seq_len.
        """
        if x.shape[1] > self.max_seq_len:
            raise ValueError(f"sequence length {x.shape[1]} must be at most max_seq_len {self.max_seq_len}")
        positions = self.layer_pos_emb(x.float() if isinstance(self.layer_pos_emb, FixedPositionalEmbedding) else x)
        embedded = self.token_emb(x)
        embedded = self.dropout(embedded + self.pos_emb(embedded))
        encoded = self.norm(self.performer(embedded, pos_emb=positions, **kwargs))
        if return_encodings:
            return cast(Tensor, encoded)
        if self.to_out is None:
            return cast(Tensor, encoded @ self.token_emb.weight.t())
        return cast(Tensor, self.to_out(encoded))


class Always(nn.Module):
    """Gives the same whatever it is called with."""

    def __init__(self, val: Any) -> None:
        super().__init__()
        self.val = val

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The value."""
        return self.val


def top_k(logits: Tensor, thres: float = 0.9) -> Tensor:
    """The int((1 - thres) V) largest logits; the others are minus infinity."""
    values, places = logits.topk(int((1 - thres) * logits.shape[-1]))
    return torch.full_like(logits, -math.inf).scatter(1, places, values)


def top_p(logits: Tensor, thres: float = 0.9) -> Tensor:
    """The tokens that hold the upper 1 - thres of the probability, at least one."""
    ordered, places = logits.sort(descending=True)
    gone = ordered.softmax(-1).cumsum(-1) > 1 - thres
    gone = F.pad(gone[:, :-1], (1, 0), value=False)
    return torch.empty_like(logits).scatter(1, places, ordered.masked_fill(gone, -math.inf))


def repetition_penalty_fn(logits: Tensor, ctx: Tensor, theta: float = 1.2) -> Tensor:
    """Logits of all tokens of ctx divided by theta, in every row."""
    divisor = torch.ones(logits.shape[1], device=logits.device)
    divisor[torch.unique(ctx)] = theta
    return logits / divisor


class AutoregressiveWrapper(nn.Module):
    """A causal PerformerLM with its loss and its sampling."""

    def __init__(self, net: PerformerLM, ignore_index: int = 0, pad_value: int = 0) -> None:
        super().__init__()
        self.pad_value, self.ignore_index = pad_value, ignore_index
        self.net, self.max_seq_len = net, net.max_seq_len

    @torch.no_grad()
    def generate(
        self,
        start_tokens: Tensor,
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_logits_fn: Callable[..., Tensor] = top_k,
        filter_thres: float = 0.9,
        repetition_penalty: float = 1.0,
        repetition_penalty_ctx: int = 32,
        **kwargs: Any,
    ) -> Tensor:
        """Samples seq_len tokens after start_tokens [B, L] or [L]; each reads the last max_seq_len tokens again."""
        was_training = self.net.training
        single = start_tokens.dim() == 1
        out = start_tokens[None] if single else start_tokens
        begun = out.shape[1]
        self.net.eval()
        mask = kwargs.pop("mask", None)
        mask = torch.ones_like(out, dtype=torch.bool) if mask is None else mask
        context_mask = kwargs.pop("context_mask", None)
        if "context" in kwargs and context_mask is None:
            context_mask = torch.ones(kwargs["context"].shape[:2], dtype=torch.bool, device=out.device)
        if context_mask is not None:
            kwargs["context_mask"] = context_mask
        for _ in range(seq_len):
            mask = mask[:, -self.max_seq_len :]
            logits = self.net(out[:, -self.max_seq_len :], mask=mask, **kwargs)[:, -1, :]
            if repetition_penalty > 1.0:
                logits = repetition_penalty_fn(logits, out[-repetition_penalty_ctx:], theta=repetition_penalty)
            sample = torch.multinomial((filter_logits_fn(logits, thres=filter_thres) / temperature).softmax(-1), 1)
            out = torch.cat([out, sample], -1)
            mask = F.pad(mask, (0, 1), value=True)
            if eos_token is not None and bool((sample == eos_token).all()):
                break
        self.net.train(was_training)
        out = out[:, begun:]
        return out[0] if single else out

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The mean cross-entropy of x [B, L]'s tokens after the first."""
        mask = kwargs.get("mask")
        if mask is not None and mask.shape[1] == x.shape[1]:
            kwargs["mask"] = mask[:, :-1]
        logits = self.net(x[:, :-1], **kwargs)
        return F.cross_entropy(logits.transpose(1, 2), x[:, 1:], ignore_index=self.ignore_index)


_SHARED = ("dim", "no_projection")


class PerformerEncDec(nn.Module):
    """An encoder and a decoder that reads it; arguments with the prefixes enc_ and dec_."""

    def __init__(
        self, dim: int, ignore_index: int = 0, pad_value: int = 0, tie_token_embeds: bool = False, **kwargs: Any
    ) -> None:
        super().__init__()
        shared = {"dim": dim, "no_projection": kwargs.pop("no_projection", False)}
        enc = {name[4:]: value for name, value in kwargs.items() if name.startswith("enc_")}
        dec = {name[4:]: value for name, value in kwargs.items() if name.startswith("dec_")}
        unknown = [name for name in kwargs if name[:4] not in ("enc_", "dec_")]
        if unknown or "dim" in enc or "dim" in dec:
            raise ValueError(
                f"unknown arguments {unknown or 'enc_dim, dec_dim'}: give dim, and others as enc_ and dec_"
            )
        dec |= {"causal": True, "cross_attend": True}
        self.enc = PerformerLM(**{**shared, **enc})
        decoder = PerformerLM(**{**shared, **dec})
        if tie_token_embeds:
            self.enc.token_emb = decoder.token_emb
        self.dec = AutoregressiveWrapper(decoder, ignore_index=ignore_index, pad_value=pad_value)

    @torch.no_grad()
    def generate(
        self,
        seq_in: Tensor,
        seq_out_start: Tensor,
        seq_len: int,
        enc_mask: Tensor | None = None,
        dec_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Samples seq_len tokens given a source."""
        encodings = self.enc(seq_in, mask=enc_mask, return_encodings=True)
        if dec_mask is not None:
            kwargs["mask"] = dec_mask
        return self.dec.generate(seq_out_start, seq_len, context=encodings, context_mask=enc_mask, **kwargs)

    def forward(
        self,
        seq_in: Tensor,
        seq_out: Tensor,
        enc_mask: Tensor | None = None,
        dec_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The decoder's loss."""
        encodings = self.enc(seq_in, mask=enc_mask, return_encodings=True)
        return cast(Tensor, self.dec(seq_out, context=encodings, mask=dec_mask, context_mask=enc_mask, **kwargs))
