# SPDX-License-Identifier: Apache-2.0
"""Projections of TensorFlow Model Garden's KernelAttention, from its seeds (performer/references/keras).

None of them is Haar-distributed: signs of the QR decomposition stay as LAPACK leaves them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_Words = npt.NDArray[np.uint64]
_LOW = np.uint64(0xFFFFFFFF)


def _philox(counter: list[_Words], key: tuple[int, int]) -> list[_Words]:
    """Philox4x32-10 (Salmon et al., SC 2011) of many counters; words are kept in 64 bits."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            b & _LOW,
            (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            a & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def _words(seed: tuple[int, int], blocks: int) -> list[_Words]:
    """Four words of each of the first `blocks` blocks of TensorFlow's stateless generator.

    The seed is a counter under a fixed key; the block that it gives is key and upper counter of the stream.
    """
    first, second = (value & 0xFFFFFFFFFFFFFFFF for value in seed)
    halves = (first & 0xFFFFFFFF, first >> 32, second & 0xFFFFFFFF, second >> 32)
    mixed = [int(w[0]) for w in _philox([np.array([h], np.uint64) for h in halves], (0x3EC8F720, 0x02461E29))]
    index = np.arange(blocks, dtype=np.uint64)
    same = np.ones_like(index)
    counter = [index, 0 * same, np.uint64(mixed[2]) * same, np.uint64(mixed[3]) * same]
    return _philox(counter, (mixed[0], mixed[1]))


def stateless_normal(rows: int, columns: int, seed: tuple[int, int]) -> npt.NDArray[np.float32]:
    """N(0, 1) ``[rows, columns]`` as ``tf.random.stateless_normal`` gives them on a CPU (Box-Muller)."""
    count = rows * columns
    words = _words(seed, -(-count // 4))

    def unit(word: _Words) -> npt.NDArray[np.float32]:
        mantissa = (word & np.uint64(0x7FFFFF)).astype(np.uint32) | np.uint32(127 << 23)
        ones: npt.NDArray[np.float32] = mantissa.view(np.float32) - np.float32(1)
        return ones

    def pair(u: _Words, v: _Words) -> list[npt.NDArray[Any]]:
        angle = (2 * np.pi * unit(v).astype(np.float64)).astype(np.float32)
        radius = np.sqrt(np.float32(-2) * np.log(np.maximum(unit(u), np.float32(1e-7))))
        return [np.sin(angle) * radius, np.cos(angle) * radius]

    values = np.stack([*pair(words[0], words[1]), *pair(words[2], words[3])], -1).reshape(-1)[:count]
    return values.reshape(rows, columns).astype(np.float32)


def _next_seed(seed: tuple[int, int]) -> tuple[int, int]:
    words = _words(seed, 1)
    first, second = (int(np.uint32(w[0]).view(np.int32)) for w in words[:2])
    return first, second


def from_draws(blocks: npt.NDArray[Any], norms: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """``[rows, D]`` of Gaussian blocks ``[N, D, D]`` (directions) and row lengths ``[rows]``."""
    rows = np.concatenate([np.linalg.qr(block.astype(np.float64))[0].T for block in blocks])
    scaled: npt.NDArray[np.float32] = (rows[: len(norms)] * norms.astype(np.float64)[:, None]).astype(np.float32)
    return scaled


def from_seed(rows: int, size: int, seed: int) -> npt.NDArray[np.float32]:
    """The layer's matrix ``[rows, size]``: seeds of its blocks are chained from (seed, seed + 1)."""
    chain = (seed, seed + 1)
    blocks = []
    for _ in range(-(-rows // size)):
        blocks.append(stateless_normal(size, size, chain))
        chain = _next_seed(chain)
    return from_draws(np.stack(blocks), np.linalg.norm(stateless_normal(rows, size, chain), axis=-1))


def redrawn_norms(rows: int, size: int) -> npt.NDArray[np.float32]:
    """The row lengths of every redraw: there they come from one constant seed."""
    norms: npt.NDArray[np.float32] = np.linalg.norm(stateless_normal(rows, size, (0, 1)), axis=-1)
    return norms
