# SPDX-License-Identifier: Apache-2.0
"""Performers for Keras 3, on its torch and jax backends."""

from performer.keras.cache import KernelAttentionCache
from performer.keras.kernel_attention import KernelAttention

__all__ = ["KernelAttention", "KernelAttentionCache"]
