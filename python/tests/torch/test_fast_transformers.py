# SPDX-License-Identifier: Apache-2.0
"""The drop-in for fast-transformers against recorded outputs of that package."""

import pytest
import recordings
import torch
import torch.nn.functional as F

from performer.compat import fast_transformers as ft
from performer.compat.fast_transformers.attention import (
    RecurrentCrossLinearAttention,
    RecurrentLinearAttention,
    default_lengths,
    default_mask,
)

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
    form = getattr(ft, case.entry["function"])
    module = form(q.shape[-1], map_factory(options["feature_map"], options), eps=options["eps"])
    set_omega(case, module.feature_map)
    causal = case.entry["function"].startswith("Causal")
    mask = ft.TriangularCausalMask(q.shape[1]) if causal else default_mask(q.shape[1], k.shape[1], q.device)
    check(case, module(q, k, v, mask, default_lengths(q), lengths(case, "key_lengths", k)), leaves)


def run_recurrent(case):
    options = case.options
    q, k, v = (tensor(case, name) for name in "qkv")
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
    known = builder._defaults
    given = {name: value for name, value in options.items() if name in known and name != "feature_map"}
    if "feature_map" in options:
        given["feature_map"] = map_factory(options["feature_map"], options.get("feature_map_options") or {})
    return builder.from_kwargs(**given, **more).get()


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
    dropouts = {} if "dropout" in options else {"dropout": 0.0}
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
        case.check("S_last_layer", state[-1][0].detach().numpy())
        case.check("Z_last_layer", state[-1][1].detach().numpy())
        return
    types = {"self_attention_type": options["self"], "cross_attention_type": options["cross"], **dropouts}
    memory = tensor(case, "memory")
    if kind == "TransformerDecoder":
        module = build(case, ft.TransformerDecoderBuilder, **types).eval()
        load(case, module)
        mask = ft.TriangularCausalMask(x.shape[1])
        lengths_of_memory = lengths(case, "memory_lengths", memory)
        check(case, module(x, memory, x_mask=mask, memory_length_mask=lengths_of_memory), {})
        return
    module = build(case, ft.RecurrentDecoderBuilder, **types).eval()
    load(case, module)
    state, rows = None, []
    for i in range(x.shape[1]):
        out, state = module(x[:, i], memory, state=state)
        rows.append(out)
    check(case, torch.stack(rows, 1), {})


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
