# SPDX-License-Identifier: Apache-2.0
"""favor_attention: its values, its gradients and JAX's transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from performer.jax import State, draw_projection, favor_attention

B, T, H, D, E, M = 2, 37, 3, 8, 5, 16
FAMILIES = pytest.mark.parametrize("family", ["exponential", "elementwise"])
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def inputs(seed=0, tokens=T, dtype=jnp.float32, std=1.0):
    r = np.random.default_rng(seed)
    shapes = ((B, tokens, H, D), (B, tokens, H, D), (B, tokens, H, E))
    return tuple(jnp.asarray(std * r.normal(size=s), dtype) for s in shapes)


def by_definition(q, k, v, projection, causal, family, key_mask=None, query_mask=None, offset=None, epsilon=0.0):
    """The attention in double, with the matrix of all weights."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    projection = np.asarray(projection, np.float64)
    scale = D**-0.25 if family == "exponential" else 1
    u_q, u_k = (np.einsum("bthd,hmd->bhtm", x * scale, projection) for x in (q, k))
    if offset is not None:
        u_q, u_k = u_q + offset, u_k + offset
    seen = np.ones((1, 1, q.shape[1], k.shape[1]), bool)
    if causal:
        seen = np.tril(seen)
    if key_mask is not None:
        seen = seen & np.asarray(key_mask)[:, None, None, :]
    if family == "exponential":
        u_k = u_k - np.moveaxis(np.square(k * scale).sum(-1, keepdims=True), 2, 1) / 2
        exponents = u_q[:, :, :, None] + u_k[:, :, None]
        exponents = np.where(seen[..., None], exponents, -1e300)
        scores = np.exp(exponents - exponents.max((3, 4), keepdims=True)).sum(-1)
    else:
        scores = np.einsum("bhtm,bhsm->bhts", np.maximum(u_q, 0) + epsilon, np.maximum(u_k, 0) + epsilon)
    scores = scores * seen
    total = scores.sum(-1, keepdims=True)
    out = np.einsum("bhts,bshe->bthe", scores / np.where(total == 0, 1, total), v)
    return out if query_mask is None else out * np.asarray(query_mask)[..., None, None]


@FAMILIES
@CAUSAL
@pytest.mark.parametrize("tokens", [1, 37, 70])
def test_values_are_those_of_the_definition(family, causal, tokens):
    q, k, v = inputs(tokens=tokens)
    r = np.random.default_rng(1)
    projection, offset = draw_projection(M, D, H), r.normal(size=(H, 1, M)).astype(np.float32)
    key_mask, query_mask = r.random((B, tokens)) > 0.3, r.random((B, tokens)) > 0.2
    options = dict(causal=causal, family=family, epsilon=1e-3, key_mask=key_mask, query_mask=query_mask)
    expected = by_definition(q, k, v, projection, offset=offset, **options)
    for implementation in ("kernel", "composed"):
        actual = favor_attention(
            q, k, v, projection=projection, offset=offset[:, 0], implementation=implementation, **options
        )
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5, err_msg=implementation)


@FAMILIES
@CAUSAL
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_those_of_the_composed_operations(family, causal, dtype):
    q, k, v = inputs(dtype=dtype)
    projection = draw_projection(M, D, H)
    weights = jax.random.normal(jax.random.PRNGKey(0), (B, T, H, E))
    mask = jnp.arange(T)[None] < jnp.asarray([[T], [T - 9]])

    def loss(implementation, q, k, v):
        out = favor_attention(
            q,
            k,
            v,
            projection=projection,
            causal=causal,
            family=family,
            epsilon=1e-3,
            key_mask=mask,
            implementation=implementation,
        )
        assert out.dtype == dtype
        return (out.astype(jnp.float32) * weights).sum()

    kernel = jax.jit(jax.grad(lambda *x: loss("auto", *x), (0, 1, 2)))(q, k, v)
    exact = tuple(x.astype(jnp.float32) for x in (q, k, v))
    dtype = jnp.float32
    composed = jax.jit(jax.grad(lambda *x: loss("composed", *x), (0, 1, 2)))(*exact)
    # By norms: where bfloat16 rounds u to the other side of relu's corner, single elements differ.
    bound = 1e-5 if q.dtype == jnp.float32 else 3e-2
    for a, b in zip(kernel, composed, strict=True):
        assert a.dtype == q.dtype
        assert float(jnp.linalg.norm(a.astype(jnp.float32) - b)) < bound * float(jnp.linalg.norm(b))


@FAMILIES
@CAUSAL
def test_vmap_is_a_loop(family, causal):
    q, k, v = (jnp.stack([x, 2 * x, -x]) for x in inputs())
    projections = jnp.stack([draw_projection(M, D, H, redraw=i) for i in range(3)])
    masks = jax.random.bernoulli(jax.random.PRNGKey(1), 0.7, (3, B, T))

    def one(q, k, v, projection, mask):
        return favor_attention(
            q, k, v, projection=projection, key_mask=mask, causal=causal, family=family, epsilon=1e-3
        )

    def gradient(*x):
        return jax.grad(lambda q, k, v: jnp.square(one(q, k, v, *x[3:])).sum(), (0, 1, 2))(*x[:3])

    def check(axes, *x):
        for f in (one, gradient):
            mapped = jax.jit(jax.vmap(f, axes))(*x)
            rows = [f(*(a if axis is None else a[i] for a, axis in zip(x, axes, strict=True))) for i in range(3)]
            looped = jax.tree.map(lambda *a: jnp.stack(a), *rows)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), mapped, looped)

    check((0, 0, 0, None, 0), q, k, v, projections[0], masks)  # one large batch for the kernel
    check((0, 0, 0, 0, None), q, k, v, projections, masks[0])
    check((0, None, None, None, None), q, k[0], v[0], projections[0], masks[0])


def test_nested_vmap():
    q, k, v = (jnp.stack([x, 2 * x, -x]) for x in inputs())
    projection = draw_projection(M, D, H)
    f = lambda q, k, v: favor_attention(q[None], k[None], v[None], projection=projection, causal=True)[0]  # noqa: E731
    expected = jnp.stack([favor_attention(*x, projection=projection, causal=True) for x in zip(q, k, v, strict=True)])
    np.testing.assert_allclose(jax.vmap(jax.vmap(f))(q, k, v), expected, rtol=1e-6)


def test_remat_and_scan_leave_gradients_as_they_are():
    q, k, _ = inputs()
    projection = draw_projection(M, D, H)

    def layer(x):
        return favor_attention(x, k, x, projection=projection, causal=True)

    def loss(f, x):
        return jnp.square(jax.lax.scan(lambda x, _: (f(x), None), x, length=3)[0]).sum()

    plain = jax.jit(jax.grad(lambda x: loss(layer, x)))(q)
    recomputed = jax.jit(jax.grad(lambda x: loss(jax.checkpoint(layer), x)))(q)
    np.testing.assert_allclose(plain, recomputed, rtol=1e-5, atol=1e-6)
    unrolled = jax.grad(lambda x: jnp.square(layer(layer(layer(x)))).sum())(q)
    np.testing.assert_allclose(plain, unrolled, rtol=1e-5, atol=1e-6)


@FAMILIES
def test_a_state_continues_a_sequence(family):
    q, k, v = inputs()
    projection = draw_projection(M, D, H)
    options = dict(projection=projection, causal=True, family=family, epsilon=1e-3)
    whole, final = favor_attention(q, k, v, return_state=True, **options)
    state, parts = None, []
    for begin, end in ((0, 1), (1, 20), (20, T)):
        out, state = favor_attention(
            q[:, begin:end], k[:, begin:end], v[:, begin:end], state=state, return_state=True, **options
        )
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-6)
    for a, b in zip(state, final, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@FAMILIES
def test_gradients_go_through_states(family):
    q, k, v = inputs()
    projection = draw_projection(M, D, H)

    def in_two(q, k, v):
        options = dict(projection=projection, causal=True, family=family, epsilon=1e-3)
        a, state = favor_attention(q[:, :9], k[:, :9], v[:, :9], return_state=True, **options)
        b = favor_attention(q[:, 9:], k[:, 9:], v[:, 9:], state=state, **options)
        return jnp.square(jnp.concatenate([a, b], 1)).sum()

    def at_once(q, k, v):
        out = favor_attention(q, k, v, projection=projection, causal=True, family=family, epsilon=1e-3)
        return jnp.square(out).sum()

    for a, b in zip(jax.grad(in_two, (0, 1, 2))(q, k, v), jax.grad(at_once, (0, 1, 2))(q, k, v), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


@FAMILIES
@CAUSAL
def test_projections_and_offsets_have_gradients_where_they_are_asked_for(family, causal):
    q, k, v = inputs()
    projection, offset = draw_projection(M, D, H), jnp.zeros((M,))

    def loss(implementation, projection, offset):
        out = favor_attention(
            q,
            k,
            v,
            projection=projection,
            offset=offset,
            causal=causal,
            family=family,
            epsilon=1e-3,
            implementation=implementation,
        )
        return jnp.square(out).sum()

    ours = jax.grad(lambda *x: loss("auto", *x), (0, 1))(projection, offset)
    composed = jax.grad(lambda *x: loss("composed", *x), (0, 1))(projection, offset)
    for a, b in zip(ours, composed, strict=True):
        assert float(jnp.abs(b).max()) > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_inputs_of_any_size_are_safe():
    q, k, v = inputs(std=100.0)
    projection = draw_projection(M, D, H)
    for implementation in ("kernel", "composed"):
        for causal in (False, True):
            f = functools.partial(favor_attention, projection=projection, causal=causal, implementation=implementation)
            expected = by_definition(q, k, v, projection, causal, "exponential")
            np.testing.assert_allclose(f(q, k, v), expected, rtol=2e-2, atol=2.0)
            for gradient in jax.grad(lambda *x, f=f: f(*x).sum(), (0, 1, 2))(q, k, v):
                assert jnp.isfinite(gradient).all()


@CAUSAL
def test_rows_without_keys_are_zero(causal):
    q, k, v = inputs()
    mask = jnp.zeros((B, T), bool).at[1, 5:].set(True)
    for implementation in ("kernel", "composed"):
        f = functools.partial(
            favor_attention,
            projection=draw_projection(M, D, H),
            causal=causal,
            key_mask=mask,
            implementation=implementation,
        )
        out = f(q, k, v)
        assert (out[0] == 0).all()
        assert (out[1, :5] == 0).all() == causal
        assert all(jnp.isfinite(g).all() for g in jax.grad(lambda *x, f=f: f(*x).sum(), (0, 1, 2))(q, k, v))


def test_a_prefix_does_not_depend_on_what_follows():
    q, k, v = inputs()
    f = lambda q, k, v: favor_attention(q, k, v, projection=draw_projection(M, D, H), causal=True)  # noqa: E731
    np.testing.assert_allclose(f(q, k, v)[:, :10], f(q, k.at[:, 10:].multiply(50), v)[:, :10], rtol=1e-5, atol=1e-6)


def test_double_is_computed_in_double():
    with jax.enable_x64(True):
        q, k, v = inputs(dtype=jnp.float64)
        projection = draw_projection(M, D, H)
        expected = by_definition(q, k, v, projection, True, "exponential")
        for implementation in ("kernel", "composed"):
            out = favor_attention(q, k, v, projection=projection, causal=True, implementation=implementation)
            np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)


def test_second_derivatives_need_the_composed_operations():
    q, k, v = inputs(tokens=5)
    f = lambda implementation, x: favor_attention(  # noqa: E731
        x, k, v, projection=draw_projection(M, D, H), implementation=implementation
    ).sum()
    direction = jnp.ones_like(q)
    jax.jvp(jax.grad(lambda x: f("composed", x)), (q,), (direction,))
    with pytest.raises((TypeError, ValueError), match=r"(?i)differentiate|jvp"):
        jax.jvp(jax.grad(lambda x: f("kernel", x)), (q,), (direction,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": (B, T, H, D + 1)}, "must agree"),
        ({"value": (B, T + 1, H, E)}, "must agree"),
        ({"query": (B, T, H, D, 1)}, "4 dimensions"),
        ({"query": (B, T + 1, H, D), "causal": True}, "as many keys as queries"),
        ({"projection": (M, D + 1)}, "projection must be"),
        ({"projection": (H + 1, M, D)}, "projection must be"),
        ({"offset": (M + 1,)}, "offset must be"),
        ({"key_mask": (B, T + 1)}, "key_mask must be bool"),
        ({"query_mask": (B,)}, "query_mask must be bool"),
        ({"function": "swish", "family": "elementwise"}, "function 'swish' is unknown"),
        ({"family": "log"}, "family must be"),
        ({"chunk": 257}, "chunk must be"),
        ({"implementation": "cuda"}, "implementation 'cuda'"),
        ({"state": State(jnp.zeros((B, H, M, E)), jnp.zeros((B, H, M)), jnp.zeros((B, H)))}, "the state must"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"query": (B, T, H, D), "key": (B, T, H, D), "value": (B, T, H, E), "projection": (M, D)} | change
    arrays = {
        name: jnp.zeros(x, bool if name.endswith("mask") else jnp.float32)
        for name, x in arguments.items()
        if isinstance(x, tuple) and not isinstance(x, State)
    }
    with pytest.raises(ValueError, match=message):
        favor_attention(**(arguments | arrays))


def test_types_that_are_not_taken_are_named():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="key must be float32"):
        favor_attention(q, k.astype(jnp.int32), v)
    with pytest.raises(ValueError, match="key_mask must be bool"):
        favor_attention(q, k, v, key_mask=jnp.ones((B, T)))


def test_projections_are_orthogonal_and_the_same_everywhere():
    drawn = draw_projection(12, 8, 2, seed=5, layer=3)
    directions = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        directions[:, :8] @ directions[:, :8].swapaxes(1, 2), np.eye(8)[None].repeat(2, 0), atol=1e-6
    )
    np.testing.assert_array_equal(drawn, draw_projection(12, 8, 2, seed=5, layer=3))
    np.testing.assert_array_equal(drawn[:, :8], draw_projection(8, 8, 2, seed=5, layer=3))
    assert not np.allclose(drawn, draw_projection(12, 8, 2, seed=5, layer=3, redraw=1))
    with pytest.raises(ValueError, match="orthogonal"):
        draw_projection(12, 8, kind="diagonal")
    with pytest.raises(ValueError, match="at least 1"):
        draw_projection(0, 8)
    with pytest.raises(ValueError, match="seed must be"):
        draw_projection(4, 8, seed=-1)
