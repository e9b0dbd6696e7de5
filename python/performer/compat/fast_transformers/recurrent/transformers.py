# SPDX-License-Identifier: Apache-2.0
"""Recurrent transformers."""

from performer.compat.fast_transformers.transformers import RecurrentTransformerDecoder, RecurrentTransformerEncoder

__all__ = ["RecurrentTransformerDecoder", "RecurrentTransformerEncoder"]
