# SPDX-License-Identifier: Apache-2.0
"""Performers for JAX and flax. Imports no torch.

- :func:`make_fast_softmax_attention` and :func:`make_fast_generalized_attention` return attention functions
  for ``flax.linen`` and ``flax.nnx`` (``attention_fn=``) and for the API of 2020;
- :func:`favor_attention` is the operator below them, with a state for streaming;
- :func:`draw_projection` draws random projections by name, :func:`redraw_index` redraws them in training.
"""

from performer._kernels_library import draw_projection
from performer.jax._composed import FUNCTIONS
from performer.jax.attention import FastAttention
from performer.jax.factories import make_fast_generalized_attention, make_fast_softmax_attention
from performer.jax.favor import State, favor_attention
from performer.jax.redraw import redraw_index

__all__ = [
    "FUNCTIONS",
    "FastAttention",
    "State",
    "draw_projection",
    "favor_attention",
    "make_fast_generalized_attention",
    "make_fast_softmax_attention",
    "redraw_index",
]
