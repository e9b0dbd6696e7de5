# SPDX-License-Identifier: Apache-2.0
"""The operator performer::mapped_attention as torch.func's transforms see it.

Plain calls, torch.compile and torch.export take the operator itself, whose derivative is in C++. Inside torch.func's
transforms no C++ derivative is allowed; there a torch.autograd.Function stands in for it. Its backward pass
computes the forward pass once more. vmap folds the mapped dimension into the batch; with mapped projections, learned
matrices or packed segments it runs one call after the other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from performer._library import ops

_attention = ops.mapped_attention

# Places of arguments in the operator's schema.
_QUERY, _KEY, _VALUE, _MATRIX, _BIAS, _KEY_MASK, _QUERY_MASK = 0, 1, 2, 9, 10, 15, 16
_KV, _KEY_SUM, _LOG_SCALE = 19, 20, 21
_DIFFERENTIABLE = (_QUERY, _KEY, _VALUE, _MATRIX, _BIAS, _KV, _KEY_SUM)
_BATCHED = frozenset((_QUERY, _KEY, _VALUE, _KEY_MASK, _QUERY_MASK, _KV, _KEY_SUM, _LOG_SCALE))
_COUNT = 27


def transformed(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """performer::mapped_attention inside torch.func's transforms, with its arguments in the order of the schema."""
    return _Attention.apply(*args)  # type: ignore[no-any-return, no-untyped-call]


def _folded(tensor: Any, dim: int | None, size: int) -> Any:
    """[..., B, ...] with the mapped dimension `dim` as [size * B, ...]."""
    if not isinstance(tensor, Tensor):
        return tensor
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.reshape(moved.shape[0] * moved.shape[1], *moved.shape[2:])


def _folds(in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> bool:
    """Whether one call over a larger batch is the same as many calls."""
    packed = isinstance(args[17], Tensor)
    return not packed and all(dim is None or place in _BATCHED for place, dim in enumerate(in_dims[:_COUNT]))


def _unfolded(tensor: Tensor, size: int) -> Tensor:
    return tensor.reshape(size, -1, *tensor.shape[1:])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _attention(*args)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.save_for_backward(*(inputs[i] for i in ctx.places))
        ctx.plain = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.mark_non_differentiable(output[3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        args = list(ctx.plain)
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            args[place] = tensor
        wanted = tuple(i for i in _DIFFERENTIABLE if isinstance(args[i], Tensor) and ctx.needs_input_grad[i])
        results: list[Tensor | None] = [None] * _COUNT
        for place, grad in zip(wanted, _Backward.apply(*args, wanted, *grads[:3]), strict=True):  # type: ignore[no-untyped-call]
            results[place] = grad
        return tuple(results)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        size = info.batch_size
        if not _folds(in_dims, args):
            return _one_by_one(_Attention, size, in_dims, args)
        results = _Attention.apply(  # type: ignore[no-untyped-call]
            *(_folded(x, in_dims[i], size) if i in _BATCHED else x for i, x in enumerate(args))
        )
        out, *state = results
        if not args[24]:  # no state is returned: three tensors without elements
            return (_unfolded(out, size), *state), (0, None, None, None)
        return tuple(_unfolded(x, size) for x in results), (0, 0, 0, 0)


class _Backward(torch.autograd.Function):
    """Arguments of the operator, the places whose gradients are wanted, and gradients of out, kv and key_sum."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        call, wanted, grads = list(args[:_COUNT]), args[_COUNT], args[_COUNT + 1 :]
        with torch.enable_grad():
            for place in wanted:
                call[place] = call[place].detach().requires_grad_()
            results = _attention(*call)
            pairs = [(x, g) for x, g in zip(results[:3], grads, strict=True) if g is not None and x.requires_grad]
            inputs = [call[place] for place in wanted]
            found = torch.autograd.grad([x for x, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)
        return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise NotImplementedError("performer attention: second derivatives are not implemented")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        size, wanted = info.batch_size, args[_COUNT]
        call_dims, grad_dims = in_dims[:_COUNT], in_dims[_COUNT + 1 :]
        if not _folds(call_dims, args) or any(place not in _BATCHED for place in wanted):
            return _one_by_one(_Backward, size, (*call_dims, None, *grad_dims), args)
        call = [_folded(x, call_dims[i], size) if i in _BATCHED else x for i, x in enumerate(args[:_COUNT])]
        grads = [_folded(x, dim, size) for x, dim in zip(args[_COUNT + 1 :], grad_dims, strict=True)]
        results = _Backward.apply(*call, wanted, *grads)  # type: ignore[no-untyped-call]
        return tuple(_unfolded(x, size) for x in results), (0,) * len(results)


def _one_by_one(
    function: Any, size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    rows = []
    for index in range(size):
        chosen = [
            x.select(dim, index) if isinstance(x, Tensor) and isinstance(dim, int) else x
            for x, dim in zip(args, in_dims, strict=True)
        ]
        rows.append(function.apply(*chosen))
    results = tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
    return results, (0,) * len(results)
