# SPDX-License-Identifier: Apache-2.0
"""The causal product of queries, keys and values."""

from torch import Tensor

from performer.compat import _arithmetic


def causal_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows sum_{s <= l} (q_l . k_s) v_s, of q, k [N, H, L, M] and v [N, H, L, E]."""
    return _arithmetic.causal_linear_attention(q, k, v)[0].to(v.dtype)
