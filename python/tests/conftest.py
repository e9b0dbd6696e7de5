# SPDX-License-Identifier: Apache-2.0
"""Tests run on the installed package, or on the source tree where a built library is named or nothing is installed."""

import importlib.util
import os
import pathlib
import sys

# Tests compile a great many small functions, once each, and compute little: threads would only wait for each other.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

_FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(_FOLDER))
_named = "PERFORMER_OPS_LIBRARY" in os.environ or "PERFORMER_JAX_LIBRARY" in os.environ
_found = importlib.util.find_spec("performer")
if _named or _found is None or _found.origin is None:  # without an origin it is the folder of the C++ sources
    sys.path.insert(0, str(_FOLDER.parent))
