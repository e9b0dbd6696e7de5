# SPDX-License-Identifier: Apache-2.0
"""What recurrent attentions hand from one token to the next."""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import Tensor

State = list[Tensor]
_Any = TypeVar("_Any")


def check_state(state: _Any | None = None, memory: _Any | None = None) -> _Any | None:
    """`state`, or `memory`, the name that it once had."""
    if memory is not None:
        warnings.warn("the argument 'memory' of recurrent layers is now 'state'", DeprecationWarning, stacklevel=3)
    return memory if state is None else state
