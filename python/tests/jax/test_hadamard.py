# SPDX-License-Identifier: Apache-2.0
"""Hadamard projections: the kernels find their factors, which change rounding only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from performer.jax import draw_projection, favor_attention

B, H, D, E, M = 2, 3, 64, 16, 150  # two blocks of 64 features, and rows beyond
LEAST = 512  # tokens that a projection serves where its factors are looked for
FAMILIES = pytest.mark.parametrize("family", ["exponential", "elementwise"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def inputs(tokens, batch=B, seed=0):
    r = np.random.default_rng(seed)
    return tuple(jnp.asarray(r.normal(size=(batch, tokens, H, size)), jnp.float32) for size in (D, D, E))


def hadamard(redraw=0):
    return draw_projection(M, D, H, kind="hadamard", redraw=redraw)


def without_factors(projection):
    """The same features in another order, which has no such factors."""
    return projection[:, np.random.default_rng(5).permutation(M)]


def results(q, k, v, projection, **options):
    """Outputs and gradients."""

    def loss(q, k, v):
        out = favor_attention(q, k, v, projection=projection, epsilon=1e-3, implementation="kernel", **options)
        return jnp.square(out).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def assert_close(found, expected, bound=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert float(jnp.linalg.norm(a - b)) < bound * float(jnp.linalg.norm(b))


@FAMILIES
@CAUSAL
def test_results_are_those_of_the_dense_product(family, causal):
    x = inputs(LEAST)
    options = dict(family=family, causal=causal)
    assert_close(results(*x, hadamard(), **options), results(*x, without_factors(hadamard()), **options))


@CAUSAL
def test_a_mask_and_one_projection_for_all_heads(causal):
    x = inputs(LEAST)
    mask = jax.random.bernoulli(jax.random.PRNGKey(1), 0.7, (B, LEAST))
    one = hadamard()[:1]
    options = dict(causal=causal, key_mask=mask)
    assert_close(results(*x, one, **options), results(*x, without_factors(one), **options))


def test_factors_are_used_from_so_many_tokens_on():
    """A sequence does not depend on the others of its batch, but for rounding: that of the factors."""
    two = inputs(LEAST // 2, batch=2)
    one = tuple(a[:1] for a in two)

    def outputs(x, projection):
        return favor_attention(*x, projection=projection, causal=True, implementation="kernel")[:1]

    dense = without_factors(hadamard())
    assert (outputs(two, dense) == outputs(one, dense)).all()
    found, expected = outputs(two, hadamard()), outputs(one, hadamard())
    assert (found != expected).any(), "the projection was multiplied as a dense matrix"
    assert_close([found], [expected])


def test_vmap_finds_the_factors_of_each_projection():
    q, k, v = (jnp.stack([x, -x, 0.5 * x]) for x in inputs(LEAST))
    projections = jnp.stack([hadamard(redraw=i) for i in range(3)])
    shuffled = jnp.stack([without_factors(p) for p in projections])

    def one(q, k, v, projection):
        return results(q, k, v, projection, causal=True)

    # One large batch for the kernel; a call for each; and a call for each with one projection for all.
    for axes, x, dense in (
        ((0, 0, 0, 0), (q, k, v, projections), shuffled),
        ((0, None, None, 0), (q, k[0], v[0], projections), shuffled),
        ((0, None, None, None), (q, k[0], v[0], projections[1]), shuffled[1]),
        ((0, 0, 0, None), (q, k, v, projections[1]), shuffled[1]),
    ):
        assert_close(jax.vmap(one, axes)(*x), jax.vmap(one, axes)(*x[:3], dense))
