# SPDX-License-Identifier: Apache-2.0
"""The drop-in for fast-transformers against recorded outputs of that package."""

import argparse

import pytest
import recordings
import torch
import torch.nn.functional as F

from performer.compat import fast_transformers as ft
from performer.compat.fast_transformers import attention as attention_module
from performer.compat.fast_transformers import attention_registry as registry
from performer.compat.fast_transformers import weight_mapper
from performer.compat.fast_transformers.events import filters
from performer.compat.fast_transformers.recurrent.attention import (
    RecurrentCrossLinearAttention,
    RecurrentLinearAttention,
)
from performer.compat.fast_transformers.transformers import default_lengths, default_mask

CASES = [
    case
    for group in ("features", "attention", "recurrent", "layers", "masks")
    for case in recordings.cases(group, "fast-transformers")
]
FUNCTIONS = {"relu": F.relu, "gelu": F.gelu, "elu": lambda x: F.elu(x) + 1, "exp": torch.exp, "square": torch.square}
MAP_OPTIONS = ("n_dims", "softmax_temp", "orthogonal", "stabilize", "smoothing")


def tensor(case, name):
    found = torch.from_numpy(case.tensor(name).copy())
    return found.long() if found.dtype == torch.int32 else found


def leaf(case, name):
    return tensor(case, name).requires_grad_()


def function(name):
    key = str(name).split(" ")[0].lower().replace("torch.", "")
    return FUNCTIONS[key]


def map_factory(name, options):
    """A factory of the recorded map whose projection stays as it is set."""
    if name in ("elu", "elu_feature_map"):
        return ft.elu_feature_map
    if name in ("activation", "ActivationFunctionFeatureMap"):
        return ft.ActivationFunctionFeatureMap.factory(function(options.get("activation", "relu")))
    kept = {key: options[key] for key in MAP_OPTIONS if options.get(key) is not None}
    if name == "GeneralizedRandomFeatures" and options.get("kernel_fn"):
        kept["kernel_fn"] = function(options["kernel_fn"])
    return getattr(ft, name).factory(redraw=0, **kept)


def set_omega(case, made, name="omega"):
    if case.has(name):
        assert made.omega.shape == tensor(case, name).shape
        made.omega = tensor(case, name)


def check(case, out, leaves):
    results = {"out": out}
    names = [name for name in case.outputs if leaves.get(name) is not None]
    if names:
        grads = torch.autograd.grad((out * tensor(case, "cot")).sum(), [leaves[name] for name in names])
        results |= dict(zip(names, grads, strict=True))
    for name, result in results.items():
        case.check(name, result.detach().numpy())


def lengths(case, name, x):
    return ft.LengthMask(tensor(case, name), x.shape[1]) if case.has(name) else default_lengths(x)


def run_features(case):
    name = case.entry["function"]
    x = leaf(case, "x")
    made = map_factory(name, case.options)(x.shape[-1])
    set_omega(case, made)
    check(case, made(x), {"dx": x})


def run_attention(case):
    q, k, v = (leaf(case, name) for name in "qkv")
    leaves = {"dq": q, "dk": k, "dv": v}
    if case.entry["function"] == "causal_dot_product":
        check(case, ft.causal_dot_product(q, k, v), leaves)
        return
    options = case.options
    if "feature_map" not in options:
        run_exact(case)
        return
    form = getattr(ft, case.entry["function"])
    module = form(q.shape[-1], map_factory(options["feature_map"], options), eps=options["eps"])
    set_omega(case, module.feature_map)
    causal = case.entry["function"].startswith("Causal")
    mask = ft.TriangularCausalMask(q.shape[1]) if causal else default_mask(q.shape[1], k.shape[1], q.device)
    check(case, module(q, k, v, mask, default_lengths(q), lengths(case, "key_lengths", k)), leaves)


def run_exact(case):
    arguments = {name: value for name, value in case.options.items() if name != "mask"}
    module = getattr(ft, case.entry["function"])(attention_dropout=0.0, **arguments)
    for dtype in (torch.float32, torch.float64):
        q, k, v = inputs = [tensor(case, name).to(dtype).requires_grad_() for name in "qkv"]
        mask = ft.FullMask(tensor(case, "attn_mask").bool())
        out = module(q, k, v, mask, default_lengths(q), lengths(case, "key_lengths", k))
        check(case, out, dict(zip(("dq", "dk", "dv"), inputs, strict=True)))


def run_exact_recurrent(case):
    q, k, v = (tensor(case, name) for name in "qkv")
    module = getattr(ft, case.entry["function"])(attention_dropout=0.0, **case.options)
    state, rows = None, []
    for i in range(q.shape[1]):
        if case.has("key_lengths"):
            out, state = module(q[:, i], k, v, lengths(case, "key_lengths", k), state)
        else:
            out, state = module(q[:, i], k[:, i], v[:, i], state)
        rows.append(out)
    case.check("out", torch.stack(rows, 1).numpy())


def run_recurrent(case):
    options = case.options
    q, k, v = (tensor(case, name) for name in "qkv")
    if "feature_map" not in options:
        run_exact_recurrent(case)
        return
    factory = map_factory(options["feature_map"], options)
    state, rows = None, []
    if case.entry["function"] == "RecurrentLinearAttention":
        module = RecurrentLinearAttention(q.shape[-1], factory, options["eps"])
        set_omega(case, module.feature_map)
        for i in range(q.shape[1]):
            out, state = module(q[:, i], k[:, i], v[:, i], state)
            rows.append(out)
            for name, part in zip("SZ", state, strict=True):
                if f"{name}_{i}" in case.outputs:
                    case.check(f"{name}_{i}", part.numpy())
    else:
        module = RecurrentCrossLinearAttention(q.shape[-1], factory, options["eps"])
        set_omega(case, module.feature_map)
        for i in range(q.shape[1]):
            out, state = module(q[:, i], k, v, lengths(case, "key_lengths", k), state)
            rows.append(out)
        for name, part in zip("SZ", state, strict=True):
            case.check(name, part.numpy())
    case.check("out", torch.stack(rows, 1).numpy())


def build(case, builder, **more):
    options = case.options
    given = {name: value for name, value in options.items() if name != "feature_map"} | more
    if "feature_map" in options:
        given["feature_map"] = map_factory(options["feature_map"], options.get("feature_map_options") or {})
    return builder.from_kwargs(**given, strict=False).get()


def load(case, module):
    weights = {name[2:]: tensor(case, name) for name in case.entry["inputs"] if name.startswith("w.")}
    module.load_state_dict(weights)


def run_layers(case):
    kind, options = case.entry["function"], case.options
    if kind.startswith("AttentionLayer"):
        inner = ft.LinearAttention(options["d_keys"])
        module = ft.AttentionLayer(
            inner, options["d_model"], options["n_heads"], options["d_keys"], options["d_values"]
        )
        load(case, module)
        q, k, v = (leaf(case, name) for name in "qkv")
        mask = default_mask(q.shape[1], k.shape[1], q.device)
        out = module(q, k, v, mask, default_lengths(q), lengths(case, "key_lengths", k))
        check(case, out, {"dq": q, "dk": k, "dv": v})
        return
    x = leaf(case, "x")
    if kind == "TransformerEncoder":
        module = build(case, ft.TransformerEncoderBuilder)
        load(case, module)
        causal = options["attention_type"].startswith("causal")
        mask = ft.TriangularCausalMask(x.shape[1]) if causal else None
        out = module.eval()(x, attn_mask=mask, length_mask=lengths(case, "lengths", x))
        check(case, out, {"dx": x, **{"dw." + name: p for name, p in module.named_parameters()}})
        return
    if kind == "RecurrentTransformerEncoder":
        module = build(case, ft.RecurrentEncoderBuilder).eval()
        load(case, module)
        state, rows = None, []
        for i in range(x.shape[1]):
            out, state = module(x[:, i], state)
            rows.append(out)
        check(case, torch.stack(rows, 1), {})
        if "S_last_layer" in case.outputs:
            case.check("S_last_layer", state[-1][0].detach().numpy())
            case.check("Z_last_layer", state[-1][1].detach().numpy())
        return
    types = {"dropout": 0.0, "self_attention_type": options["self"], "cross_attention_type": options["cross"]}
    check(case, decoded(case, kind.startswith("Recurrent"), types), {})


def decoded(case, is_recurrent, types):
    """What a decoder makes of a case's inputs, whole or token by token."""
    x, memory = tensor(case, "x"), tensor(case, "memory")
    module = build(case, ft.RecurrentDecoderBuilder if is_recurrent else ft.TransformerDecoderBuilder, **types).eval()
    load(case, module)
    lengths_of_memory = lengths(case, "memory_lengths", memory)
    if not is_recurrent:
        return module(x, memory, x_mask=ft.TriangularCausalMask(x.shape[1]), memory_length_mask=lengths_of_memory)
    state, rows = None, []
    for i in range(x.shape[1]):
        out, state = module(x[:, i], memory, lengths_of_memory, state=state)
        rows.append(out)
    return torch.stack(rows, 1)


def run_masks(case):
    if case.entry["function"] == "LengthMask":
        mask = ft.LengthMask(torch.tensor(case.options["lengths"]), case.options["max_len"])
        assert torch.equal(mask.bool_matrix.int(), tensor(case, "bool_matrix").int())
        assert torch.equal(mask.float_matrix.int(), tensor(case, "float_matrix").int())
        assert torch.equal(mask.additive_matrix.isneginf().int(), tensor(case, "additive_matrix_is_neg_inf").int())
        return
    mask = ft.TriangularCausalMask(case.options["N"])
    assert torch.equal(mask.bool_matrix.int(), tensor(case, "bool_matrix").int())
    assert torch.equal(mask.lengths, tensor(case, "lengths"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recording(case):
    globals()["run_" + case.entry["group"]](case)


def test_recordings_are_there():
    assert CASES, "tests/golden/recorded holds no cases of fast-transformers"


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"redraw": 1}, [1, 2, 3, 4]), ({"redraw": 3}, [1, 4, 7, 10])],
)
def test_redraw_schedule(options, expected):
    made = ft.Favor(4, n_dims=4, **options)
    last, changed = made.omega.clone(), []
    for call in range(1, 11):
        made.new_feature_map()
        if not torch.equal(made.omega, last):
            changed.append(call)
        last = made.omega.clone()
    assert changed[: len(expected)] == expected


def test_refusals():
    x = torch.randn(1, 3, 2, 4)
    triangular = ft.TriangularCausalMask(3)
    with pytest.raises(RuntimeError, match="arbitrary attention masks"):
        ft.LinearAttention(4)(x, x, x, triangular, None, None)
    with pytest.raises(RuntimeError, match="lower triangular"):
        ft.CausalLinearAttention(4)(x, x, x, ft.FullMask(3, 3), None, None)
    with pytest.raises(ValueError, match="bool"):
        ft.FullMask(torch.ones(2, 2))
    with pytest.raises(ValueError, match="did you mean n_layers"):
        ft.TransformerEncoderBuilder.from_kwargs(n_layer=2)
    module = RecurrentLinearAttention(4)
    _, state = module(x[:, 0], x[:, 0], x[:, 0])
    with pytest.raises(ValueError, match="batch size changed"):
        module(*[torch.randn(2, 2, 4)] * 3, state)


def test_local_attention_is_exact_attention_of_a_band():
    q, k, v = (torch.randn(2, 37, 3, size) for size in (5, 5, 4))
    places = torch.arange(37)
    apart = places - places.unsqueeze(1)
    for context in (1, 2, 5, 16, 40, 100):
        band = ft.FullMask((apart >= -(context // 2)) & (apart < (context + 1) // 2))
        expected = ft.FullAttention(attention_dropout=0.0)(q, k, v, band, None, default_lengths(k))
        full = default_mask(37, 37, q.device)
        local = ft.LocalAttention(context, attention_dropout=0.0)(q, k, v, full, None, default_lengths(k))
        torch.testing.assert_close(local, expected)


def test_builders_take_every_attention_type():
    sizes = {"n_layers": 1, "n_heads": 2, "query_dimensions": 4, "value_dimensions": 4, "feed_forward_dimensions": 8}
    x = torch.randn(2, 6, 8)
    for kind in ("full", "linear", "causal-linear", "local", "exact-topk", "conditional-full:local"):
        options = {**sizes, "attention_type": kind, "local_context": 4, "topk": 3, "length_limit": 4}
        mask = ft.TriangularCausalMask(6) if kind == "causal-linear" else None
        assert ft.TransformerEncoderBuilder.from_kwargs(**options).get()(x, attn_mask=mask).shape == x.shape
    for kind in ("full", "linear", "causal-linear"):
        module = ft.RecurrentEncoderBuilder.from_kwargs(**sizes, attention_type=kind).get()
        out, state = module(x[:, 0])
        assert module(x[:, 1], state)[0].shape == out.shape == (2, 8)
    assert ft.RecurrentEncoderBuilder().attention_type == ft.TransformerDecoderBuilder().cross_attention_type == "full"
    assert set(ft.AttentionBuilder().available_attentions) >= {"full", "linear", "causal-linear", "local", "exact-topk"}


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        ("clustered", "'full'.*'linear'"),
        ("improved-clustered", "'full'.*'linear'"),
        ("causal-improved-clustered", "'full'.*'causal-linear'"),
        ("reformer", "'local' or 'linear'"),
        ("conditional-full:reformer", "'local' or 'linear'"),
        ("lineal", "it is unknown; known: .*linear"),
    ],
)
def test_refused_attention_types_say_what_to_use(kind, instead):
    with pytest.raises(ValueError, match=rf"attention type '{kind.split(':')[-1]}' is not there: .*{instead}"):
        ft.TransformerEncoderBuilder.from_kwargs(clusters=10, bits=8, chunk_size=4, attention_type=kind)
    with pytest.raises(ValueError, match="is not there"):
        ft.RecurrentDecoderBuilder().cross_attention_type = "causal-linear"


def test_refused_classes():
    for name in ("ClusteredAttention", "ImprovedClusteredAttention", "ImprovedClusteredCausalAttention"):
        with pytest.raises(ValueError, match="groups queries by random hashes"):
            getattr(attention_module, name)(100)
    with pytest.raises(ValueError, match="attention type 'reformer' is not there"):
        attention_module.ReformerAttention()


def test_builders_take_attentions_of_the_user():
    class Mean(torch.nn.Module):
        def __init__(self, strength, event_dispatcher=""):
            super().__init__()
            self.strength = strength

        def forward(self, queries, keys, values, attn_mask, query_lengths, key_lengths):
            return self.strength * values.mean(1, keepdim=True).expand(-1, queries.shape[1], -1, -1)

    registry.AttentionRegistry.register("mean-of-a-test", Mean, [("strength", registry.Float)])
    with pytest.raises(ValueError, match="already registered"):
        registry.AttentionRegistry.register("mean-of-a-test", Mean, [])
    with pytest.raises(ValueError, match="strength is already registered with spec Float"):
        registry.AttentionRegistry.register("other-of-a-test", Mean, [("strength", registry.Int)])
    builder = ft.AttentionBuilder.from_kwargs(strength="2")
    v = torch.randn(1, 3, 2, 4)
    torch.testing.assert_close(builder.get("mean-of-a-test")(v, v, v, None, None, None)[:, 0], 2 * v.mean(1))
    with pytest.raises(ValueError, match="Invalid value None for parameter 'strength'"):
        ft.AttentionBuilder().get("mean-of-a-test")


def test_options_of_a_command_line():
    found = argparse.Namespace(n_layers=1, n_heads=3, attention_type="local", local_context=5, learning_rate=0.1)
    builder = ft.TransformerEncoderBuilder.from_namespace(found)
    assert (builder.n_heads, builder.attention.local_context) == (3, 5)
    with pytest.raises(ValueError, match="unknown option 'learning_rate'"):
        ft.TransformerEncoderBuilder.from_namespace(found, strict=True)
    with pytest.raises(AttributeError, match="did you mean attention_dropout"):
        builder.attention_dropouts = 0.1
    with pytest.raises(ValueError, match="activation must be one of relu, gelu"):
        builder.activation = "tanh"


def test_events():
    dispatcher = ft.EventDispatcher()
    module = ft.TransformerEncoderBuilder.from_kwargs(n_layers=2, event_dispatcher=dispatcher).get().eval()
    weights, queries = [], []
    dispatcher.listen(ft.AttentionEvent & filters.layer_name_contains(module, "layers.1"), weights.append)
    dispatcher.listen(ft.QKVEvent & ~filters.from_layer(module.layers[0].attention), queries.append)
    x = torch.randn(2, 5, 256)
    module(x)
    assert [event.source for event in weights] == [module.layers[1].attention.inner_attention]
    assert [event.source for event in queries] == [module.layers[1].attention]
    torch.testing.assert_close(weights[0].attention_matrix.sum(-1), torch.ones(2, 4, 5))
    assert queries[0].values.shape == (2, 5, 4, 64)
    dispatcher.clear()
    module(x)
    assert (len(weights), len(queries)) == (1, 1)


def test_a_mirror_shares_parameters():
    sizes = {"n_layers": 1, "n_heads": 2, "query_dimensions": 4, "value_dimensions": 4, "feed_forward_dimensions": 8}
    whole = ft.TransformerEncoderBuilder.from_kwargs(**sizes, attention_type="causal-linear").get().eval()
    steps = ft.RecurrentEncoderBuilder.from_kwargs(**sizes, attention_type="causal-linear").get().eval()
    ft.make_mirror(whole, steps)
    with torch.no_grad():
        whole.layers[0].linear1.weight.mul_(1.5)
        x = torch.randn(2, 5, 8)
        state, rows = None, []
        for i in range(5):
            out, state = steps(x[:, i], state)
            rows.append(out)
        torch.testing.assert_close(torch.stack(rows, 1), whole(x, attn_mask=ft.TriangularCausalMask(5)))


def test_weights_of_torch():
    source = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    sizes = {"n_layers": 2, "n_heads": 2, "query_dimensions": 4, "value_dimensions": 4, "feed_forward_dimensions": 16}
    module = ft.TransformerEncoderBuilder.from_kwargs(**sizes, final_normalization=False).get().eval()
    module.load_state_dict(weight_mapper.PytorchMapper().map(source.state_dict()))
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(module(x), source(x))


def test_weights_of_bert():
    names = {
        "layer.0.attention.self.key.weight": "layers.0.attention.key_projection.weight",
        "layer.11.attention.output.dense.bias": "layers.11.attention.out_projection.bias",
        "layer.3.attention.output.LayerNorm.weight": "layers.3.norm1.weight",
        "layer.3.output.LayerNorm.weight": "layers.3.norm2.weight",
        "layer.3.intermediate.dense.weight": "layers.3.linear1.weight",
        "layer.3.output.dense.weight": "layers.3.linear2.weight",
    }
    weights = {name: torch.empty(0) for name in names}
    assert list(weight_mapper.HugginfaceBertEncoderMapper().map(weights)) == list(names.values())
    weights["layer.0.attention.self.key_global.weight"] = torch.empty(0)
    assert list(weight_mapper.LongformerMapper().map(weights)) == list(names.values())
