# SPDX-License-Identifier: Apache-2.0
"""Masks: matrices of bool (True is seen), as lengths where they are lengths."""

from __future__ import annotations

import torch
from torch import Tensor


class BaseMask:
    """A mask; `bool_matrix` holds it."""

    @property
    def bool_matrix(self) -> Tensor:
        """True where seen."""
        raise NotImplementedError

    @property
    def float_matrix(self) -> Tensor:
        """1 where seen, 0 elsewhere."""
        return self.bool_matrix.float()

    @property
    def additive_matrix(self) -> Tensor:
        """0 where seen, minus infinity elsewhere."""
        return torch.log(self.bool_matrix.float())

    @property
    def additive_matrix_finite(self) -> Tensor:
        """0 where seen, -1e24 elsewhere."""
        return (~self.bool_matrix).float() * -1e24

    @property
    def shape(self) -> torch.Size:
        """Of the matrix."""
        return self.bool_matrix.shape

    @property
    def all_ones(self) -> bool:
        """Whether everything is seen."""
        return bool(self.bool_matrix.all())

    @property
    def lower_triangular(self) -> bool:
        """Whether row i sees columns 0 to i and no others."""
        matrix = self.bool_matrix
        return matrix.dim() == 2 and bool((matrix == torch.ones_like(matrix).tril()).all())

    @property
    def lengths(self) -> Tensor:
        """Columns that each row sees, for masks that see the first ones; raises ValueError for others."""
        matrix = self.bool_matrix
        counts = matrix.long().sum(-1)
        expected = torch.arange(matrix.shape[-1], device=matrix.device) < counts.unsqueeze(-1)
        if not bool((expected == matrix).all()):
            raise ValueError("this mask is no mask of lengths")
        return counts


class FullMask(BaseMask):
    """Any mask: FullMask(matrix), or FullMask(N, M) that sees everything; raises ValueError for other than bool."""

    def __init__(
        self, mask: Tensor | int | None = None, N: int | None = None, M: int | None = None, device: str = "cpu"
    ) -> None:
        if isinstance(mask, Tensor):
            if mask.dtype != torch.bool:
                raise ValueError("FullMask expects the mask to be bool")
            self._matrix = mask.clone()
            return
        rows, columns = (mask, N) if isinstance(mask, int) else (N, M)
        if rows is None:
            raise ValueError("FullMask needs a mask or its size")
        self._matrix = torch.ones(rows, rows if columns is None else columns, dtype=torch.bool, device=device)
        self._ones = True

    @property
    def bool_matrix(self) -> Tensor:
        """True where seen."""
        return self._matrix

    @property
    def all_ones(self) -> bool:
        """Whether everything is seen."""
        return getattr(self, "_ones", False) or super().all_ones


class LengthMask(BaseMask):
    """Row i sees its first lengths[i] columns."""

    def __init__(self, lengths: Tensor, max_len: int | None = None, device: torch.device | str | None = None) -> None:
        self._lengths = lengths.clone().to(device)
        self._max_len = int(self._lengths.max()) if max_len is None else max_len

    @property
    def bool_matrix(self) -> Tensor:
        """True where seen."""
        places = torch.arange(self._max_len, device=self._lengths.device)
        return places < self._lengths.unsqueeze(-1)

    @property
    def lengths(self) -> Tensor:
        """The lengths."""
        return self._lengths


class TriangularCausalMask(LengthMask):
    """Row i of N sees columns 0 to i."""

    def __init__(self, N: int, device: torch.device | str = "cpu") -> None:
        super().__init__(torch.arange(1, N + 1, device=device), N, device)

    @property
    def lower_triangular(self) -> bool:
        """True."""
        return True
