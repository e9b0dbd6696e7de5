# SPDX-License-Identifier: Apache-2.0
"""The layer as it is meant: exact attention in the limit, masks, windows, streams, training, saving."""

import keras
import numpy as np
import pytest
from gradients import gradients, numpy
from keras import ops

from performer.keras import KernelAttention, KernelAttentionCache, _linear

B, T, H, D, WIDTH = 2, 12, 2, 8, 10


def tokens(seed=0, length=T, width=WIDTH, std=1.0):
    x = np.random.default_rng(seed).normal(size=(B, length, width)) * std
    return ops.convert_to_tensor(x.astype(np.float32))


def layer_of(**options):
    keras.utils.set_random_seed(1)
    layer = KernelAttention(H, D, **({"num_random_features": 16} | options))
    layer.build((B, T, WIDTH), (B, T, WIDTH))
    return layer


def exact_heads(layer, x, mask=None, seen=None, scale=D**-0.5):
    q, k, v = layer._query_dense(x), layer._key_dense(x), layer._value_dense(x)
    return _linear.exact(q, k, v, scale, key_mask=mask, seen=seen)


def close(a, b, rtol=1e-4, atol=1e-5):
    np.testing.assert_allclose(numpy(a), numpy(b), rtol=rtol, atol=atol)


@pytest.mark.parametrize("transform", ["exp", "expplus"])
def test_converges_to_softmax_attention_with_features(transform):
    def error(features):
        layer = layer_of(feature_transform=transform, num_random_features=features)
        x = tokens(std=0.4)
        exact = layer._output_dense(exact_heads(layer, x))
        return float(np.abs(numpy(layer(x, x)) - numpy(exact)).max())

    assert error(4096) < 0.05
    assert error(4096) < error(8)


@pytest.mark.parametrize("transform", ["relu", "elu", "square", "identity"])
@pytest.mark.parametrize("features", [0, 16])
def test_elementwise_transforms_are_their_definition(transform, features):
    layer = layer_of(feature_transform=transform, num_random_features=features, scale=0.3)
    x = tokens()
    q, k, v = (numpy(dense(x)) for dense in (layer._query_dense, layer._key_dense, layer._value_dense))
    u = [np.sqrt(0.3) * y for y in (q, k)]
    if features:
        u = [np.einsum("bthd,hmd->bthm", y, numpy(layer.projection.value)) for y in u]
    g = {"relu": lambda u: np.maximum(u, 0) + 1e-3, "elu": lambda u: np.where(u > 0, u + 1, np.exp(u))}
    g |= {"square": np.square, "identity": lambda u: u}
    phi = [g[transform](y) for y in u]
    weights = np.einsum("bthm,bshm->bhts", *phi)
    heads = np.einsum("bhts,bshe->bthe", weights / weights.sum(-1, keepdims=True), v)
    size = max(1.0, float(np.abs(heads).max()))
    close(layer(x, x), layer._output_dense(ops.convert_to_tensor(heads.astype(np.float32))), 1e-2, 1e-3 * size)


@pytest.mark.parametrize("options", [{}, {"feature_transform": "expplus"}, {"is_short_seq": True}, {"begin_kernel": 3}])
def test_masked_keys_do_not_exist(options):
    layer = layer_of(**options)
    x = tokens()
    mask = np.arange(T)[None] < np.array([[12], [7]])
    out = numpy(layer(x, x, attention_mask=ops.convert_to_tensor(mask)))
    short = numpy(layer(x[1:], x[1:, :7]))
    np.testing.assert_allclose(out[1:], short, rtol=1e-4, atol=1e-5)
    floats = numpy(layer(x, x, attention_mask=ops.convert_to_tensor(mask.astype(np.float32))[:, None]))
    np.testing.assert_allclose(out, floats, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"scale_by_length": True}, {"is_short_seq": True}, {"feature_transform": "expplus"}]
)
def test_a_fully_masked_example_has_zero_attention_and_finite_gradients(options):
    layer = layer_of(**options)
    x = tokens()
    mask = ops.convert_to_tensor(np.array([[False] * T, [True] * T]))
    out, (gradient,) = gradients(lambda x: layer(x, x, attention_mask=mask), [x], ops.ones_like(x))
    np.testing.assert_allclose(numpy(out)[0], np.broadcast_to(numpy(layer._output_dense.bias), (T, WIDTH)), atol=1e-6)
    assert np.isfinite(numpy(gradient)).all()


def test_short_sequences_are_exact():
    layer = layer_of(is_short_seq=True)
    x = tokens()
    close(layer(x, x), layer._output_dense(exact_heads(layer, x)))


def test_scale_by_length_is_a_scale():
    x = tokens()
    mask = np.arange(T)[None] < np.array([[12], [7]])
    out = numpy(layer_of(scale_by_length=True)(x, x, attention_mask=ops.convert_to_tensor(mask)))
    for i, length in enumerate((12, 7)):
        scaled = layer_of(scale=D**-0.5 * np.log(length) / np.log(512))
        np.testing.assert_allclose(
            out[i : i + 1], numpy(scaled(x[i : i + 1], x[i : i + 1, :length])), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ValueError, match="scale_by_length needs"):
        layer_of(scale_by_length=True)(x, x)


WINDOWS = pytest.mark.parametrize(
    ("chunk", "length", "decay"), [(1, 3, None), (4, 2, None), (4, 3, 0.5), (5, 9, 0.9), (3, 1, None), (4, 2, 0.0)]
)
TRANSFORMS = pytest.mark.parametrize("transform", ["exp", "relu"])


def window_options(chunk, length, decay, transform):
    return dict(
        feature_transform=transform,
        use_causal_windowed=True,
        causal_chunk_length=chunk,
        causal_window_length=length,
        causal_window_decay=decay,
    )


@WINDOWS
@TRANSFORMS
def test_windows_are_their_definition(chunk, length, decay, transform):
    layer = layer_of(**window_options(chunk, length, decay, transform))
    x = tokens()
    q, k, v = (
        numpy(dense(x)).astype(np.float64) for dense in (layer._query_dense, layer._key_dense, layer._value_dense)
    )
    w, scale = numpy(layer.projection.value), D**-0.25
    u_q, u_k = (np.einsum("bthd,hmd->bhtm", scale * y, w) for y in (q, k))
    if transform == "exp":
        norm = np.moveaxis(np.square(scale * k).sum(-1, keepdims=True) / 2, 2, 1)
        phi_q, phi_k = np.exp(u_q), np.exp(u_k - norm)
    else:
        phi_q, phi_k = np.maximum(u_q, 0) + 1e-3, np.maximum(u_k, 0) + 1e-3
    i, j = np.arange(T)[:, None], np.arange(T)[None]
    distance = i // chunk - j // chunk
    counts = (1.0 if decay is None else decay) ** np.maximum(distance, 0) * ((j <= i) & (distance < length))
    weights = np.einsum("bhtm,bhsm->bhts", phi_q, phi_k) * counts
    heads = np.einsum("bhts,bshe->bthe", weights / weights.sum(-1, keepdims=True), v)
    close(layer(x, x), layer._output_dense(ops.convert_to_tensor(heads.astype(np.float32))), 1e-3, 1e-4)


@pytest.mark.parametrize(
    ("chunk", "length", "decay", "transform", "begin_kernel"),
    [
        (1, 3, None, "exp", 0),
        (4, 3, 0.5, "exp", 5),
        (5, 9, 0.9, "relu", 0),
        (4, 2, 0.0, "relu", 5),
        (3, 1, None, "exp", 5),
    ],
)
def test_streams_are_their_batch_form(chunk, length, decay, transform, begin_kernel):
    layer = layer_of(**window_options(chunk, length, decay, transform), begin_kernel=begin_kernel)
    x = tokens()
    mask = ops.convert_to_tensor(np.random.default_rng(3).random((B, T)) > 0.3)
    whole = numpy(layer(x, x, attention_mask=mask))
    cache, begin = KernelAttentionCache(), 0
    for count in (1, 2, 6, 1, 2):
        part = x[:, begin : begin + count]
        out = layer(part, part, attention_mask=mask[:, begin : begin + count], cache=cache)
        np.testing.assert_allclose(numpy(out), whole[:, begin : begin + count], rtol=1e-3, atol=1e-4)
        begin += count
        assert cache.tokens == begin


def test_a_window_that_is_masked_is_a_zero_row():
    layer = layer_of(**window_options(2, 2, None, "relu"))
    mask = ops.convert_to_tensor(np.arange(T)[None].repeat(B, 0) < 2)
    out = numpy(layer(tokens(), tokens(), attention_mask=mask))
    np.testing.assert_allclose(
        out[:, 4:], np.broadcast_to(numpy(layer._output_dense.bias), out[:, 4:].shape), atol=1e-6
    )


def test_windows_see_nothing_of_the_future():
    layer = layer_of(**window_options(4, 2, 0.9, "exp"))
    x = tokens()
    changed = ops.concatenate([x[:, :6], 3 * x[:, 6:]], 1)
    close(layer(changed, changed)[:, :6], layer(x, x)[:, :6])


def test_causal_masks_need_no_windows():
    layer = layer_of(num_random_features=4096)
    x = tokens(std=0.4)
    seen = ops.tril(ops.ones((T, T), "bool"))
    close(layer(x, x, use_causal_mask=True), layer._output_dense(exact_heads(layer, x, seen=seen)), 0.1, 0.05)


def test_the_first_tokens_are_exact_and_have_their_own_output_projection():
    layer = layer_of(begin_kernel=3)
    x = tokens()
    exact = layer._output_dense_softmax(exact_heads(layer, x))
    plain = layer_of()
    for a, b in (
        (plain._query_dense, layer._query_dense),
        (plain._key_dense, layer._key_dense),
        (plain._value_dense, layer._value_dense),
        (plain._output_dense, layer._output_dense),
    ):
        a.set_weights(b.get_weights())
    out = layer(x, x)
    close(out[:, :3], exact[:, :3])
    close(out[:, 3:], plain(x, x)[:, 3:])
    assert numpy(layer(x[:, :2], x)).shape == (B, 2, WIDTH)


def test_inputs_of_any_size_are_safe():
    for options in ({}, window_options(4, 2, 1e-3, "exp"), {"feature_transform": "expplus"}):
        layer = layer_of(**options)
        x = tokens(std=100.0)
        out, (gradient,) = gradients(lambda x: layer(x, x), [x], ops.ones_like(x))  # noqa: B023
        assert np.isfinite(numpy(out)).all()
        assert np.isfinite(numpy(gradient)).all()


def test_expplus_takes_zero_inputs():
    layer = layer_of(feature_transform="expplus")
    assert np.isfinite(numpy(layer(0 * tokens(), tokens()))).all()


def test_sequences_do_not_depend_on_their_neighbours():
    for transform in ("exp", "expplus", "relu"):
        layer = layer_of(feature_transform=transform)
        x = tokens()
        changed = ops.concatenate([x[:1], 5 * x[1:]], 0)
        close(layer(changed, changed)[:1], layer(x, x)[:1])


def test_redraws_are_kept_for_inference():
    layer = layer_of(redraw=True)
    x = tokens()
    first = numpy(layer.projection.value).copy()
    assert layer.count_params() > 0
    before = numpy(layer(x, x))
    layer(x, x, training=True)
    second = numpy(layer.projection.value).copy()
    assert not np.allclose(first, second)
    assert not np.allclose(np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1))
    block = second[:, :D] / np.linalg.norm(second[:, :D], axis=-1, keepdims=True)
    np.testing.assert_allclose(block @ block.swapaxes(1, 2), np.eye(D)[None].repeat(H, 0), atol=1e-5)
    after = numpy(layer(x, x))
    assert not np.allclose(before, after)
    np.testing.assert_array_equal(after, numpy(layer(x, x)))


def test_redrawn_directions_are_haar_distributed():
    """Without the signs of R, E[Q_ii] would be about -0.29 at D = 8."""
    layer = KernelAttention(64, D, num_random_features=D, redraw=True)
    layer.build((1, 1, 4), (1, 1, 4))
    rows = np.concatenate([numpy(layer._drawn()) for _ in range(16)])
    directions = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    assert abs(directions[:, range(D), range(D)].mean()) < 0.03


def test_moments_of_causal_expplus_come_from_training():
    layer = layer_of(**window_options(2, 2, None, "expplus"))
    x = tokens()
    before = numpy(layer(x, x))
    np.testing.assert_array_equal(numpy(layer._moments.value), 0)
    layer(x, x, training=True)
    assert (numpy(layer._moments.value) > 0).all()
    assert not np.allclose(numpy(layer(x, x)), before)


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 0.1, "redraw": True},
        window_options(2, 2, 0.9, "expplus"),
        {"feature_transform": "relu", "num_random_features": 0, "begin_kernel": 2},
        {"reference": True, "feature_transform": "elu"},
    ],
)
def test_models_fit_predict_and_reload(options, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(7, WIDTH)(inputs)
    x = x + KernelAttention(H, D, **({"num_random_features": 16} | options), name="attention")(x, x)
    outputs = keras.layers.Dense(7)(x)
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.optimizer.learning_rate.assign(1e-2)
    data = np.random.default_rng(0).integers(0, 7, (16, T))
    losses = model.fit(data, data, epochs=12, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    predicted = model.predict(data, verbose=0)
    model.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(reloaded.predict(data, verbose=0), predicted, rtol=1e-5, atol=1e-6)
    assert reloaded.get_layer("attention").get_config() == model.get_layer("attention").get_config()


def test_masks_of_embeddings_arrive():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((T,), dtype="int32")
    x = keras.layers.Embedding(7, WIDTH, mask_zero=True)(inputs)
    attention = KernelAttention(H, D, num_random_features=16)
    model = keras.Model(inputs, attention(x, x))
    data = np.random.default_rng(0).integers(1, 7, (B, T))
    data[1, 7:] = 0
    out = numpy(model(ops.convert_to_tensor(data)))
    embedded = model.layers[1](ops.convert_to_tensor(data))
    np.testing.assert_allclose(out[1:, :7], numpy(attention(embedded[1:, :7], embedded[1:, :7])), rtol=1e-4, atol=1e-5)


def test_every_argument_survives_its_config():
    options = dict(
        num_heads=3, key_dim=4, value_dim=5, dropout=0.2, use_bias=False, output_shape=(6,), attention_axes=1,
        kernel_initializer="he_normal", kernel_regularizer="l2", bias_constraint="non_neg", activity_regularizer="l1",
        feature_transform="relu", num_random_features=7, seed=9, redraw=True, begin_kernel=2, scale=0.25,
        scale_by_length=True, use_causal_windowed=True, causal_chunk_length=2, causal_window_length=4,
        causal_window_decay=0.5, causal_padding="left", reference=True,
    )  # fmt: skip
    layer = KernelAttention(**options)
    config = layer.get_config()
    assert KernelAttention.from_config(config).get_config() == config
    for name, value in options.items():
        if not name.endswith(("initializer", "regularizer", "constraint")):
            assert config[name] == value


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(policy):
    if policy == "mixed_float16" and keras.backend.backend() == "jax":
        pytest.skip("XLA's float16 products on CPUs are not what is tested here")
    x = tokens()
    expected = numpy(layer_of()(x, x))
    keras.utils.set_random_seed(1)
    layer = KernelAttention(H, D, num_random_features=16, dtype=policy)
    out = layer(x, x)
    assert keras.backend.standardize_dtype(out.dtype) == policy.split("_")[1]
    np.testing.assert_allclose(numpy(ops.cast(out, "float32")), expected, atol=0.1)
    assert keras.backend.standardize_dtype(layer.projection.dtype) == "float32"


def test_kernels_and_composed_operations_agree():
    x = tokens()
    r = np.random.default_rng(0)
    q, k, v = (ops.convert_to_tensor(r.normal(size=(B, 70, H, D)).astype(np.float32)) for _ in range(3))
    mask = ops.convert_to_tensor(r.random((B, 70)) > 0.2)
    p = ops.convert_to_tensor(r.normal(size=(1, H, 16, D)).astype(np.float32))
    for family, function in (("exponential", "relu"), ("elementwise", "elu+1")):
        for causal in (False, True):
            features = _linear.FeatureMap(family, function, 0.5, projection=p)
            state = _linear.key_state(v, k, features, None)
            for initial in (None, state):
                out, final = _linear.attend(
                    q, k, v, features, causal=causal, key_mask=mask, initial=initial, return_state=True
                )
                expected, expected_final = _linear._composed(q, k, v, features, causal, mask, initial)
                close(out, expected, 1e-4, 1e-4)
                for a, b in zip(final, expected_final, strict=True):
                    close(a, b, 1e-3, 1e-3)
    del x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 0}, "num_heads must be"),
        ({"attention_axes": 2}, "attention_axes"),
        ({"feature_transform": "leakyrelu"}, "'leakyrelu' is unknown"),
        ({"redraw": True, "num_random_features": 0}, "redraw needs"),
        ({"use_causal_windowed": True, "is_short_seq": True}, "exclude each other"),
        ({"causal_padding": "both"}, "causal_padding 'both'"),
        ({"causal_window_decay": 1.5}, "causal_window_decay"),
        ({"feature_transform": "expplus", "num_random_features": 0}, "expplus needs"),
        ({"scale": -1.0}, "scale must not"),
        ({"dropout": 1.0}, "dropout must"),
        ({"seed": -1}, "seed must not"),
        ({"begin_kernel": -1}, "begin_kernel must"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        KernelAttention(**({"num_heads": 2, "key_dim": 4} | options))


def test_impossible_calls_are_named():
    x = tokens()
    with pytest.raises(ValueError, match="a cache needs use_causal_windowed"):
        layer_of()(x, x, cache=KernelAttentionCache())
    windowed = layer_of(use_causal_windowed=True)
    with pytest.raises(ValueError, match="no cache while training"):
        windowed(x, x, cache=KernelAttentionCache(), training=True)
    with pytest.raises(ValueError, match="cache must be a"):
        windowed(x, x, cache={})
    with pytest.raises(ValueError, match="as many keys as queries"):
        windowed(x[:, :4], x)
    with pytest.raises(ValueError, match="no matrix of queries and keys"):
        layer_of()(x, x, attention_mask=ops.ones((B, T, T)))
    reference = layer_of(reference=True)
    with pytest.raises(ValueError, match="must be floating"):
        reference(x, x, attention_mask=ops.ones((B, T), "bool"))
