# SPDX-License-Identifier: Apache-2.0
"""What KernelAttention keeps between the calls of a stream."""

from __future__ import annotations

from typing import Any

from performer.keras import _windows

Tensor = Any


class KernelAttentionCache:
    """What a streamed call continues from; start with an empty one for each batch of sequences.

    Attributes:
        kv, k_sum: the state of ``reference=True``, ``[B, H, E, M]`` and ``[B, H, M]``; None at first.
        tokens: how many tokens were seen.
    """

    def __init__(self) -> None:
        self.kv: Tensor | None = None
        self.k_sum: Tensor | None = None
        self.stream = _windows.Stream()
        # The first keys, values and masks, which begin_kernel reads exactly.
        self.first: tuple[Tensor, Tensor, Tensor | None] | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were seen."""
        return self.stream.tokens
