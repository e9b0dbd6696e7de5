# SPDX-License-Identifier: Apache-2.0
"""Gradients on either backend."""

from keras import backend, ops


def gradients(function, inputs, cotangent):
    """The value of `function(*inputs)`, and the gradients of sum(value * cotangent) in the inputs."""
    if backend.backend() == "jax":
        import jax

        @jax.jit
        def both(*inputs):
            value, pull = jax.vjp(function, *inputs)
            return value, pull(ops.cast(cotangent, value.dtype))

        return both(*inputs)
    import torch

    leaves = [x.detach().clone().requires_grad_(True) for x in inputs]
    value = function(*leaves)
    found = torch.autograd.grad((value * ops.cast(cotangent, value.dtype)).sum(), leaves, allow_unused=True)
    return value, [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def numpy(x):
    return ops.convert_to_numpy(ops.stop_gradient(x))
