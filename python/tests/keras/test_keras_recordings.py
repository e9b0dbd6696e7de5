# SPDX-License-Identifier: Apache-2.0
"""reference=True against what TensorFlow Model Garden's KernelAttention gave."""

import numpy as np
import pytest
from gradients import gradients, numpy
from keras import ops
from recordings import cases

from performer.keras import KernelAttention, KernelAttentionCache, _projection, _reference


def of(group):
    return pytest.mark.parametrize("case", cases(group, "keras"), ids=str)


DOUBLE = pytest.mark.parametrize("dtype", ["float32", "float64"])


def tensors(case, names, dtype):
    return [ops.convert_to_tensor(case.tensor(name), dtype) for name in names]


def optional(case, name, dtype):
    return tensors(case, [name], dtype)[0] if case.has(name) else None


def check(case, function, names, dtype):
    """The value of a function of the inputs `names`, and its gradients."""
    inputs = tensors(case, names, dtype)
    if not case.has("cot"):
        case.check("out", numpy(function(*inputs)))
        return
    value, found = gradients(function, inputs, optional(case, "cot", dtype))
    case.check("out", numpy(value))
    for name, gradient in zip(names, found, strict=True):
        if f"d{name}" in case.outputs:
            case.check(f"d{name}", numpy(gradient))


def attention_options(o):
    window = None
    if o.get("use_causal_windowed"):
        window = _reference.Window(
            o.get("causal_chunk_length", 1),
            o.get("causal_window_length", 3),
            o.get("causal_window_decay"),
            o.get("causal_padding"),
        )
    scale = o.get("scale")
    scale = o["key_dim"] ** -0.5 if scale is None else scale
    return _reference.Options(
        o["feature_transform"], o.get("is_short_seq", False), scale, o.get("scale_by_length", False), window
    )


@of("features")
@DOUBLE
def test_features(case, dtype):
    o = case.options
    name = o.get("feature_transform")
    fixed = ("normalize_data", "extra_renormalize_exp_fun", "numerical_renormalizer", "numerical_stabilizer")
    if any(option in o for option in fixed):
        pytest.skip("options of expplus that the layer cannot set")
    w, y = optional(case, "W", _reference.wide()), optional(case, "y", _reference.wide())

    def features(x):
        x_wide = ops.cast(x, _reference.wide())
        phi = _reference.transform(name, x_wide, x_wide if y is None else y, o["is_query"], w)
        return ops.cast(phi, dtype)

    check(case, features, ["x"], dtype)


@of("projection")
def test_projection(case):
    o = case.options
    if "seed" not in o or not case.has("normal_blocks"):
        pytest.skip("not drawn from a seed")
    if isinstance(o["seed"], list):
        assert o["seed"][1] == o["seed"][0] + 1
        drawn = _projection.from_seed(o["m"], o["d"], o["seed"][0])
        np.testing.assert_allclose(drawn, case.tensor("W"), rtol=1e-4, atol=1e-4)
    norms = np.linalg.norm(case.tensor("normal_rows"), axis=-1)
    case.check("W", _projection.from_draws(case.tensor("normal_blocks"), norms))


@of("attention")
@DOUBLE
def test_attention(case, dtype):
    w, mask = optional(case, "W", dtype), optional(case, "mask", dtype)
    options = attention_options(case.options)
    check(
        case,
        lambda q, k, v: _reference.compute_attention(q, k, v, options, w, mask),
        ["query", "key", "value"],
        dtype,
    )


@of("windowed")
@DOUBLE
def test_windowed(case, dtype):
    o = case.options
    if case.entry["function"].endswith("window_sum"):
        weights = o["window_weights"]
        if weights is None:
            check(case, lambda x: _reference.rectangular_window_sum(x, o["window_length"]), ["x"], dtype)
        else:
            check(case, lambda x: _reference.weighted_window_sum(x, o["window_length"], weights), ["x"], dtype)
    elif "query_prime" in case.entry["inputs"]:
        window = _reference.Window(o["chunk_length"], o["window_length"], o["window_decay"], o["padding"])

        def attend(q, k, v):
            q, k, v = (ops.cast(x, _reference.wide()) for x in (q, k, v))
            return ops.cast(_reference.causal_windowed_attention(q, k, v, window), dtype)

        check(case, attend, ["query_prime", "key_prime", "value"], dtype)
    else:
        test_attention(case, dtype)


@of("streaming")
def test_streaming(case):
    o = case.options
    if "chunks" not in o:
        test_attention(case, "float32")
        return
    w, mask = optional(case, "W", "float32"), optional(case, "mask", "float32")
    query, key, value = tensors(case, ["query", "key", "value"], "float32")
    cache, outs, begin = KernelAttentionCache(), [], 0
    if o["cache_init"] != "zeros":
        cache.kv, cache.k_sum = (optional(case, f"{n}_init", "float32") for n in ("kv", "k_sum"))
    for i, length in enumerate(o["chunks"]):
        part = [x[:, begin : begin + length] for x in (query, key, value)]
        part_mask = None if mask is None else mask[:, begin : begin + length]
        outs.append(_reference.compute_attention(*part, attention_options(o), w, part_mask, cache))
        for name in ("kv", "k_sum"):
            if f"{name}_{i}" in case.outputs:
                case.check(f"{name}_{i}", numpy(ops.cast(getattr(cache, name), "float32")))
        begin += length
    case.check("out", numpy(ops.concatenate(outs, 1)))


LAYER_OPTIONS = (
    *("num_heads", "key_dim", "value_dim", "feature_transform", "num_random_features", "seed", "use_bias"),
    *("output_shape", "is_short_seq", "scale", "scale_by_length", "use_causal_windowed", "causal_chunk_length"),
    *("causal_window_length", "causal_window_decay", "causal_padding", "begin_kernel", "redraw"),
)


@of("layer")
@DOUBLE
def test_layer(case, dtype, monkeypatch):
    o = case.options
    layer = KernelAttention(**{name: o[name] for name in LAYER_OPTIONS if name in o}, dtype=dtype, reference=True)
    names = [name for name in ("query", "value", "key") if case.has(name)]
    inputs = tensors(case, names, dtype)
    layer.build(*(x.shape for x in inputs))
    parts = {
        "query": layer._query_dense,
        "key": layer._key_dense,
        "value": layer._value_dense,
        "attention_output": layer._output_dense,
        "attention_output_softmax": layer._output_dense_softmax,
    }
    for name in case.entry["inputs"]:
        if name.startswith("w."):
            _, part, which = name.split(".")
            getattr(parts[part], which).assign(case.tensor(name))
    if case.has("W"):
        np.testing.assert_allclose(layer.projection, case.tensor("W"), rtol=1e-4, atol=1e-4)
        layer.projection.assign(case.tensor("W"))
    if case.has("W_redrawn"):
        # TensorFlow's global generator drew it.
        redrawn = optional(case, "W_redrawn", dtype)
        monkeypatch.setattr(KernelAttention, "_drawn", lambda self: redrawn)
    mask = optional(case, "mask", dtype)
    check(case, lambda *x: layer(*x, attention_mask=mask, training=o.get("training", False)), names, dtype)


def test_redraws_keep_their_row_lengths():
    layer = KernelAttention(2, 8, num_random_features=12, redraw=True, reference=True)
    layer.build((1, 3, 8), (1, 3, 8))
    first, second = (numpy(layer._drawn()) for _ in range(2))
    assert not np.allclose(first, second)
    for drawn in (first, second):
        np.testing.assert_allclose(np.linalg.norm(drawn, axis=-1), _projection.redrawn_norms(12, 8), rtol=1e-5)
