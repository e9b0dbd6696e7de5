# SPDX-License-Identifier: Apache-2.0
"""The causal product of queries, keys and values."""

from performer.compat.fast_transformers.attention import causal_dot_product

__all__ = ["causal_dot_product"]
