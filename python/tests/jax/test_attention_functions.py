# SPDX-License-Identifier: Apache-2.0
"""make_fast_softmax_attention and make_fast_generalized_attention within flax and without."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from performer.jax import (
    favor_attention,
    make_fast_generalized_attention,
    make_fast_softmax_attention,
    redraw_index,
)

B, T, H, D = 2, 12, 2, 8


def rows(seed=0, tokens=T, heads=H, std=0.5):
    keys = jax.random.split(jax.random.PRNGKey(seed), 3)
    return tuple(std * jax.random.normal(k, (B, tokens, heads, D)) for k in keys)


def softmax_attention(q, k, v, mask=None):
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("nonnegative", [False, True], ids=["trigonometric", "positive"])
def test_converges_to_exact_attention_with_features(causal, nonnegative):
    q, k, v = rows()
    exact = softmax_attention(q, k, v, jnp.tril(jnp.ones((1, 1, T, T), bool)) if causal else None)

    def error(features):
        fn = make_fast_softmax_attention(
            D, nb_features=features, unidirectional=causal, nonnegative_features=nonnegative
        )
        return float(jnp.abs(fn(q, k, v) - exact).max())

    assert error(4096) < 0.1
    assert error(4096) < error(16) / 2


def test_the_parameters_are_the_originals():
    expected = {
        make_fast_softmax_attention: {
            "qkv_dim": inspect.Parameter.empty,
            "renormalize_attention": True,
            "numerical_stabilizer": 1e-6,
            "nb_features": 256,
            "ortho_features": True,
            "ortho_scaling": 0.0,
            "redraw_features": True,
            "unidirectional": False,
            "nonnegative_features": True,
            "lax_scan_unroll": 1,
        },
        make_fast_generalized_attention: {
            "qkv_dim": inspect.Parameter.empty,
            "renormalize_attention": True,
            "numerical_stabilizer": 0.0,
            "nb_features": 256,
            "features_type": "deterministic",
            "kernel_fn": jax.nn.relu,
            "kernel_epsilon": 0.001,
            "redraw_features": False,
            "unidirectional": False,
            "lax_scan_unroll": 1,
        },
    }
    for factory, names in expected.items():
        found = inspect.signature(factory).parameters
        positional = [p.name for p in found.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == list(names)
        assert {name: found[name].default for name in names} == names


def test_masks_of_flax_become_masks_of_keys_and_queries():
    q, k, v = rows()
    lengths = jnp.asarray([12, 7])
    real = jnp.arange(T)[None] < lengths[:, None]
    fn = make_fast_softmax_attention(D, nb_features=32)
    short = fn(q[1:, :7], k[1:, :7], v[1:, :7])
    for mask in (nn.make_attention_mask(real, real), nn.make_attention_mask(real, real, dtype=bool)):
        out = jax.jit(lambda *x: fn(*x[:3], mask=x[3]))(q, k, v, mask)
        np.testing.assert_allclose(out[1:, :7], short, rtol=1e-5, atol=1e-6)
        assert (out[1, 7:] == 0).all()
    key_only = fn(q, k, v, mask=real[:, None, None, :])
    np.testing.assert_allclose(key_only[1:, :7], short, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(key_only, fn(q, k, v, key_mask=real), rtol=1e-6)
    # A bias as flax of 2020 made it of masks.
    bias = jnp.where(real[:, None, None, :], 0.0, -1e10)
    np.testing.assert_allclose(fn(q, k, v, bias=bias), key_only, rtol=1e-6)


def test_causal_masks_are_understood_by_causal_attention():
    q, k, v = rows()
    real = jnp.arange(T)[None] < jnp.asarray([[12], [7]])
    mask = nn.combine_masks(nn.make_causal_mask(jnp.ones((B, T))), nn.make_attention_mask(real, real))
    causal = make_fast_softmax_attention(D, nb_features=32, unidirectional=True)
    out = jax.jit(causal)(q, k, v, mask=mask)
    np.testing.assert_allclose(out[1:, :7], causal(q[1:, :7], k[1:, :7], v[1:, :7]), rtol=1e-5, atol=1e-6)
    both = make_fast_softmax_attention(D, nb_features=32)
    np.testing.assert_allclose(both(q, k, v, mask=mask, is_causal=True), out, rtol=1e-6)
    with pytest.raises(Exception, match="no mask of keys and queries"):
        jax.block_until_ready(both(q, k, v, mask=mask))


@pytest.mark.parametrize("compiled", [False, True])
def test_masks_that_cannot_be_followed_are_refused_by_name(compiled):
    q, k, v = rows()
    fn = make_fast_softmax_attention(D, nb_features=16)
    f = jax.jit(fn) if compiled else fn
    local = jnp.abs(jnp.arange(T)[:, None] - jnp.arange(T)) < 3
    with pytest.raises(Exception, match=r"keeps query|drops query"):
        jax.block_until_ready(f(q, k, v, mask=local[None, None]))
    per_head = jnp.ones((B, H, T, T), bool).at[0, 1, :, 3].set(False)
    with pytest.raises(Exception, match="head 1"):
        jax.block_until_ready(f(q, k, v, mask=per_head))
    with pytest.raises(Exception, match="cannot add to its scores"):
        jax.block_until_ready(f(q, k, v, bias=jnp.full((1, 1, T, T), 0.5)))
    with pytest.raises(ValueError, match="the mask or bias must be"):
        f(q, k, v, mask=jnp.ones((B, T)))


def test_masks_on_other_devices_give_nan_where_they_cannot_be_followed():
    from performer.jax import _masks

    codes = jnp.ones((2, 1, T, T), jnp.uint8).at[1, 0, 2, 3].set(0)
    key_mask, query_mask, valid = _masks._composed(codes, False)
    assert valid.tolist() == [True, False]
    assert key_mask[0].all()
    assert query_mask[0].all()


def test_dropout_of_weights_is_refused():
    q, k, v = rows()
    fn = make_fast_softmax_attention(D)
    with pytest.raises(NotImplementedError, match=r"dropout_rate=0\.1"):
        fn(q, k, v, dropout_rate=0.1, deterministic=False)
    fn(q, k, v, dropout_rate=0.1, deterministic=True)


def test_several_axes_are_one_sequence_and_one_axis_is_many():
    q, k, v = (x.reshape(B, 3, 4, H, D) for x in rows())
    fn = make_fast_softmax_attention(D, nb_features=32)
    flat = fn(*(x.reshape(B, T, H, D) for x in (q, k, v)))
    np.testing.assert_allclose(fn(q, k, v), flat.reshape(q.shape), rtol=1e-5, atol=1e-6)
    first = fn(q, k, v, axis=1)
    for j in range(4):
        np.testing.assert_allclose(first[:, :, j], fn(q[:, :, j], k[:, :, j], v[:, :, j]), rtol=1e-5, atol=1e-6)
    causal = make_fast_softmax_attention(D, nb_features=32, unidirectional=True)
    for i in range(3):
        expected = causal(q[:, i], k[:, i], v[:, i])
        np.testing.assert_allclose(causal(q, k, v, axis=(2,))[:, i], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="exactly one attention axis"):
        causal(q, k, v)
    with pytest.raises(ValueError, match="axis must name"):
        fn(q, k, v, axis=3)


def test_grouped_heads_are_repeated():
    q, _, _ = rows(heads=4)
    _, k, v = rows(heads=2)
    fn = make_fast_softmax_attention(D, nb_features=16)
    np.testing.assert_array_equal(fn(q, k, v), fn(q, jnp.repeat(k, 2, 2), jnp.repeat(v, 2, 2)))


@pytest.mark.parametrize("features_type", ["deterministic", "ortho", "iid"])
@pytest.mark.parametrize("renormalize", [False, True])
def test_generalized_attention_is_its_definition(features_type, renormalize):
    q, k, v = rows()
    fn = make_fast_generalized_attention(
        D, nb_features=16, features_type=features_type, kernel_fn="elu+1", renormalize_attention=renormalize
    )
    w = fn.projection(H)
    assert (w is None) == (features_type == "deterministic")
    phi = [jax.nn.elu(x if w is None else jnp.einsum("bthd,hmd->bthm", x, w)) + 1.001 for x in (q, k)]
    weights = jnp.einsum("bthm,bshm->bhts", *phi)
    if renormalize:
        weights = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(fn(q, k, v), jnp.einsum("bhts,bshd->bthd", weights, v), rtol=1e-4, atol=1e-4)


def test_functions_of_ones_own_run_as_jax_operations():
    q, k, v = rows()
    own = make_fast_generalized_attention(D, kernel_fn=lambda x: jnp.where(x > 0, x, 0), unidirectional=True)
    named = make_fast_generalized_attention(D, unidirectional=True)
    np.testing.assert_allclose(own(q, k, v), named(q, k, v), rtol=1e-5, atol=1e-6)


def test_attention_without_renormalization_is_an_unbiased_sum():
    q, k, v = rows(tokens=4)
    exact = jnp.einsum("bhts,bshd->bthd", jnp.exp(jnp.einsum("bthd,bshd->bhts", q, k) / D**0.5), v)
    for nonnegative in (True, False):
        fn = make_fast_softmax_attention(
            D, renormalize_attention=False, nb_features=4096, nonnegative_features=nonnegative
        )
        assert float(jnp.linalg.norm(fn(q, k, v) - exact)) < 0.1 * float(jnp.linalg.norm(exact))


def test_redraws_are_chosen_by_the_context_and_may_be_traced():
    q, k, v = rows()
    fn = make_fast_softmax_attention(D, nb_features=16)
    fixed = make_fast_softmax_attention(D, nb_features=16, redraw_features=False)

    @jax.jit
    def at(index):
        with redraw_index(index):
            return fn(q, k, v), fixed(q, k, v)

    np.testing.assert_allclose(at(0)[0], fn(q, k, v), rtol=1e-6)
    redrawn, unchanged = at(3)
    assert not np.allclose(redrawn, fn(q, k, v), atol=1e-4)
    np.testing.assert_allclose(unchanged, fn(q, k, v), rtol=1e-6)
    np.testing.assert_allclose(redrawn, fn(q, k, v, projection=fn.projection(H, 3)), rtol=1e-6)
    with redraw_index(3):
        np.testing.assert_allclose(fn(q, k, v), redrawn, rtol=1e-6)
    other_layer = make_fast_softmax_attention(D, nb_features=16, layer=1)
    assert not np.allclose(other_layer(q, k, v), fn(q, k, v), atol=1e-4)


def test_linen_with_an_equal_favor_attention():
    fn = make_fast_softmax_attention(D, nb_features=16)
    layer = nn.MultiHeadDotProductAttention(num_heads=H, qkv_features=H * D, attention_fn=fn)
    x = jax.random.normal(jax.random.PRNGKey(0), (B, T, 6))
    real = jnp.arange(T)[None] < jnp.asarray([[12], [7]])
    variables = layer.init(jax.random.PRNGKey(1), x)
    out = jax.jit(layer.apply)(variables, x, mask=nn.make_attention_mask(real, real))
    p = variables["params"]
    q, k, v = (jnp.einsum("bte,ehd->bthd", x, p[n]["kernel"]) + p[n]["bias"] for n in ("query", "key", "value"))
    heads = favor_attention(q, k, v, projection=fn.projection(H), key_mask=real, query_mask=real)
    expected = jnp.einsum("bthd,hde->bte", heads, p["out"]["kernel"]) + p["out"]["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_linen_decodes_as_it_attends():
    fn = make_fast_softmax_attention(D, nb_features=16, unidirectional=True)
    layer = nn.MultiHeadDotProductAttention(num_heads=H, qkv_features=H * D, attention_fn=fn)
    x = jax.random.normal(jax.random.PRNGKey(0), (B, 5, 6))
    variables = layer.init(jax.random.PRNGKey(1), x)
    whole = layer.apply(variables, x)
    decoder = layer.clone(decode=True)
    cache = decoder.init(jax.random.PRNGKey(1), x)["cache"]
    for t in range(5):
        out, changed = decoder.apply({**variables, "cache": cache}, x[:, t : t + 1], mutable=["cache"])
        cache = changed["cache"]
        np.testing.assert_allclose(out, whole[:, t : t + 1], rtol=1e-4, atol=1e-5)


def test_nnx_attends_and_decodes():
    fn = make_fast_softmax_attention(D, nb_features=16, unidirectional=True)
    layer = nnx.MultiHeadAttention(
        num_heads=H, in_features=6, qkv_features=H * D, attention_fn=fn, decode=False, rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.PRNGKey(0), (B, 5, 6))
    whole = nnx.jit(lambda layer, x: layer(x, mask=nnx.make_causal_mask(x[..., 0])))(layer, x)
    layer.init_cache((B, 5, 6))
    for t in range(5):
        out = layer(x[:, t : t + 1], decode=True)
        np.testing.assert_allclose(out, whole[:, t : t + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_linen_model_trains(dtype):
    """One step after the other on one batch, with remat and a traced redraw."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Embed(11, 16, dtype=dtype)(x)
            for layer in range(2):
                fn = make_fast_softmax_attention(D, nb_features=16, unidirectional=True, layer=layer)
                attend = nn.remat(nn.MultiHeadDotProductAttention)
                x = x + attend(num_heads=2, attention_fn=fn, dtype=dtype)(nn.LayerNorm(dtype=dtype)(x))
            return nn.Dense(11)(x)

    tokens = jax.random.randint(jax.random.PRNGKey(0), (4, T), 0, 11)
    model = Model()
    params = model.init(jax.random.PRNGKey(1), tokens)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, number):
        def loss(params):
            logits = model.apply(params, tokens)[:, :-1].astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

        with redraw_index(number // 10):
            value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    losses = []
    for number in range(25):
        params, state, value = step(params, state, number)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]


def test_the_call_of_2020_is_understood():
    q, k, v = rows()
    fn = make_fast_softmax_attention(D, nb_features=16)
    out = fn(
        q,
        k,
        v,
        dtype=jnp.float32,
        bias=None,
        axis=(1,),
        broadcast_dropout=True,
        dropout_rng=None,
        dropout_rate=0.0,
        deterministic=False,
        precision=None,
    )
    np.testing.assert_array_equal(out, fn(q, k, v))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (functools.partial(make_fast_softmax_attention, 0), "at least 1"),
        (functools.partial(make_fast_softmax_attention, 8, ortho_scaling=2), "ortho_scaling"),
        (functools.partial(make_fast_softmax_attention, 8, projection=np.zeros((4, 7))), "projection must be"),
        (functools.partial(make_fast_generalized_attention, 8, features_type="regular"), "features_type"),
        (functools.partial(make_fast_generalized_attention, 8, kernel_fn="swish"), "kernel_fn 'swish'"),
    ],
)
def test_impossible_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_that_do_not_fit_are_named():
    q, k, v = rows()
    fn = make_fast_softmax_attention(D)
    with pytest.raises(ValueError, match="made for qkv_dim=8"):
        fn(q[..., :4], k[..., :4], v)
    with pytest.raises(ValueError, match="key and value in all but"):
        fn(q, k, v[:, :-1])
    with pytest.raises(ValueError, match="not attended over"):
        fn(q, k[:1], v[:1])
    with pytest.raises(ValueError, match="no multiple"):
        fn(q[:, :, [0, 1, 1]], k, v)
