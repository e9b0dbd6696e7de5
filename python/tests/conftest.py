# SPDX-License-Identifier: Apache-2.0
"""Finds the package in the source tree when it is not installed."""

import os
import pathlib
import sys

# Tests compile a great many small functions, once each.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

_FOLDER = pathlib.Path(__file__).resolve().parent
for _path in (_FOLDER, _FOLDER.parent):
    if str(_path) not in sys.path:
        sys.path.insert(0, str(_path))
