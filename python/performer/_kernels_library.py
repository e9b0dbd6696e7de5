# SPDX-License-Identifier: Apache-2.0
"""The shared library ``performer_jax``: the kernels without LibTorch.

It holds the handlers that JAX calls (:mod:`performer.jax`) and the draws of random projections, which
:mod:`performer.keras` takes from it whatever its backend is. Nothing here imports JAX, Keras or torch.
"""

from __future__ import annotations

import ctypes
import functools
import os
import pathlib

import numpy as np
import numpy.typing as npt

import performer

#: Environment variable with the path of the shared library, for builds that lie elsewhere.
LIBRARY_VARIABLE = "PERFORMER_JAX_LIBRARY"
_NAMES = ("libperformer_jax.so", "libperformer_jax.dylib", "performer_jax.dll")


def _candidates() -> list[pathlib.Path]:
    # An editable install has the sources in one folder and the library in another.
    folders = [pathlib.Path(folder) / "lib" for folder in performer.__path__]
    source_tree = pathlib.Path(__file__).resolve().parents[2]
    if (source_tree / "CMakePresets.json").exists():
        folders += sorted((source_tree / "build").glob("*"))
    return [folder / name for folder in folders for name in _NAMES]


@functools.cache
def load() -> ctypes.CDLL:
    """The shared library, loaded once.

    It is the file that the environment variable ``PERFORMER_JAX_LIBRARY`` names, or the one in the installed
    package, or in a source tree the one in ``build/*/``.

    Raises:
        ImportError: no library was found, or it could not be loaded. The message says where it was sought.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    candidates = [pathlib.Path(named)] if named else _candidates()
    for candidate in candidates:
        if candidate.exists():
            try:
                return ctypes.CDLL(str(candidate))
            except OSError as error:
                raise ImportError(f"{candidate} could not be loaded: {error}") from error
    sought = f"{LIBRARY_VARIABLE}={named}" if named else ", ".join(sorted({str(c.parent) for c in candidates}))
    raise ImportError(
        f"the shared library performer_jax was not found (sought in {sought}). Build it with "
        "cmake -DPERFORMER_BUILD_JAX=ON and the target performer_jax, or name the file in "
        f"{LIBRARY_VARIABLE}"
    )


def draw_projection(
    features: int,
    head_size: int,
    heads: int = 1,
    *,
    kind: str = "orthogonal",
    row_norm: str = "chi",
    seed: int = 0,
    layer: int = 0,
    redraw: int = 0,
) -> npt.NDArray[np.float32]:
    """Draws the random rows of a feature map, a matrix for each head.

    The values depend on the arguments alone: they are the same on every machine, and the same as those of the
    program and of the C++ and torch interfaces (Philox4x32-10, performer/kernels/projection.h).

    Args:
        features: M, the number of rows; at least 1.
        head_size: D, the size of a head's queries and keys; at least 1.
        heads: H, the number of matrices; at least 1.
        kind: ``orthogonal`` (blocks of rows of Haar-distributed orthogonal matrices; Performers,
            arXiv 2009.14794, section 2.4), ``iid``, ``hadamard``, ``givens`` or ``simplex`` (arXiv 2301.13856).
        row_norm: ``chi``, the length of a fresh N(0, I) vector, or ``sqrt-d``, exactly sqrt(D).
        seed, layer, redraw: name the draw.

    Returns:
        ``[heads, features, head_size]`` float32.

    Raises:
        ValueError: a size, kind or row norm that is not possible.
    """
    if heads < 1 or features < 1 or head_size < 1:
        raise ValueError(
            f"a projection needs at least 1 head, 1 feature and head size 1, found {heads}, {features} and {head_size}"
        )
    for name, value, bits in (("seed", seed, 64), ("layer", layer, 32), ("redraw", redraw, 32)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name} must be from 0 to 2^{bits} - 1, found {value}")
    projection = np.empty((heads, features, head_size), np.float32)
    message = ctypes.create_string_buffer(1000)
    failed = load().performer_draw_projection(
        kind.encode(),
        row_norm.encode(),
        ctypes.c_int64(heads),
        ctypes.c_int64(features),
        ctypes.c_int64(head_size),
        ctypes.c_uint64(seed),
        ctypes.c_uint32(layer),
        ctypes.c_uint32(redraw),
        projection.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        message,
        ctypes.c_size_t(len(message)),
    )
    if failed:
        raise ValueError(message.value.decode())
    return projection
