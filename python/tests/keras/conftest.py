# SPDX-License-Identifier: Apache-2.0
"""The backend is that of the environment variable KERAS_BACKEND: torch, or jax (the default here)."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
# The reference's numbers are compared in double.
os.environ.setdefault("JAX_ENABLE_X64", "1")

if os.environ["KERAS_BACKEND"] == "torch" and os.environ.get("PERFORMER_OPS_LIBRARY"):
    import torch

    torch.ops.load_library(os.environ["PERFORMER_OPS_LIBRARY"])
