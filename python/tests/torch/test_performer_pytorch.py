# SPDX-License-Identifier: Apache-2.0
"""The drop-in for performer-pytorch against recorded outputs of that package."""

import pytest
import recordings
import torch
import torch.nn.functional as F
from torch import nn

from performer.compat import performer_pytorch as pp

GROUPS = (
    "features",
    "linear_attention",
    "fast_attention",
    "modules",
    "attention_layers",
    "performer",
    "lm",
    "wrapper",
    "projection",
)
CASES = [case for group in GROUPS for case in recordings.cases(group, "performer-pytorch")]
# How a case was recorded; not an argument of a constructor.
DESCRIPTION = {
    *("B", "L", "mask", "rotary_argument", "context_len", "context_mask", "inputs", "return_encodings", "loss"),
    *("filter", "filter_thres", "resolved_k", "steps", "enc_mask", "mode", "rotary", "mask_prefix"),
}
FUNCTIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
    "leakyrelu": F.leaky_relu,
    "elu+1": lambda x: F.elu(x) + 1,
    "elu1": lambda x: F.elu(x) + 1,
    "exp": torch.exp,
    "square": torch.square,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "abs": torch.abs,
    "silu": F.silu,
    "identity": lambda x: x,
}


def function(name):
    return FUNCTIONS[name.split(" ")[0].lower()] if name else F.relu


def tensor(case, name):
    found = torch.from_numpy(case.tensor(name).copy())
    if name in ("mask", "context_mask", "enc_mask"):
        return found.bool()
    return found.long() if found.dtype == torch.int32 else found


def leaf(case, name):
    return tensor(case, name).requires_grad_()


def build(case, form):
    options = {name: value for name, value in case.options.items() if name not in DESCRIPTION}
    if "kernel_fn" in options:
        options["kernel_fn"] = function(options["kernel_fn"])
    return form(**options)


def load(case, module):
    """Every recorded weight has its place under its name, and every parameter is recorded."""
    weights = {name[2:]: tensor(case, name) for name in case.entry["inputs"] if name.startswith("w.")}
    result = module.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert [name for name in result.missing_keys if "proj_updater" not in name] == []
    for part in module.modules():
        if isinstance(part, pp.Performer):
            part.auto_check_redraw = False


def check(case, out, leaves):
    """The output, and gradients of sum(out * cot), or of out where it is a loss."""
    results = {"loss" if "loss" in case.outputs else "out": out}
    names = [name for name in case.outputs if name in leaves]
    if names:
        loss = (out * tensor(case, "cot")).sum() if case.has("cot") else out
        grads = torch.autograd.grad(loss, [leaves[name] for name in names])
        results |= dict(zip(names, grads, strict=True))
    for name, result in results.items():
        if case.outputs[name].get("nonfinite_f32"):  # overflows where the original does, in float32
            expected = tensor(case, name)
            assert torch.equal(result.isfinite(), expected.isfinite())
            torch.testing.assert_close(result[expected.isfinite()], expected[expected.isfinite()])
            continue
        case.check(name, result.detach().numpy())


def weights_of(module, prefix="dw."):
    return {prefix + name: parameter for name, parameter in module.named_parameters()}


class Inner(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.l = nn.Linear(dim, dim)

    def forward(self, x, **kwargs):
        return self.l(x)


def run_layer(case, module, x, leaves=None):
    keywords = {}
    for name, argument in (("mask",) * 2, ("context",) * 2, ("context_mask",) * 2, ("pos_table", "pos_emb")):
        if case.has(name):
            keywords[argument] = tensor(case, name)
    if "pos_emb" in keywords and keywords["pos_emb"].dim() == 2:
        keywords["pos_emb"] = keywords["pos_emb"][None]
    if "context" in keywords:
        keywords["context"].requires_grad_()
    if case.options.get("return_encodings"):
        keywords["return_encodings"] = True
    out = module(x, **keywords)
    check(case, out, {"dx": x, "dcontext": keywords.get("context"), **weights_of(module)})


def run_features(case):
    options = case.options
    x = leaf(case, "x")
    projection = tensor(case, "W") if case.has("W") else None
    if case.entry["function"] == "softmax_kernel":
        out = pp.softmax_kernel(
            x,
            projection_matrix=projection,
            is_query=options["is_query"],
            normalize_data=options["normalize_data"],
            eps=options["eps"],
        )
    else:
        out = pp.generalized_kernel(
            x,
            projection_matrix=projection,
            kernel_fn=function(options["kernel_fn"]),
            kernel_epsilon=options["kernel_epsilon"],
            normalize_data=options["normalize_data"],
        )
    check(case, out, {"dx": x})


def run_linear_attention(case):
    q, k, v = (leaf(case, name) for name in "qkv")
    if case.entry["function"] == "linear_attention":
        out = pp.linear_attention(q, k, v)
    else:
        out = pp.causal_linear_attention_noncuda(q, k, v, eps=case.options.get("eps", 1e-6))
    check(case, out, {"dq": q, "dk": k, "dv": v})


def run_fast_attention(case):
    options = case.options
    module = pp.FastAttention(
        options["d"],
        options["nb_features"],
        causal=options["causal"],
        generalized_attention=options["mode"] == "generalized",
        no_projection=options["mode"] == "no_projection",
        kernel_fn=function(options["kernel_fn"]),
    )
    if case.has("W"):
        assert module.projection_matrix.shape == tensor(case, "W").shape
        module.projection_matrix = tensor(case, "W")
    q, k, v = (leaf(case, name) for name in "qkv")
    check(case, module(q, k, v), {"dq": q, "dk": k, "dv": v})


def run_modules(case):
    kind, options = case.entry["function"], case.options
    if kind == "FixedPositionalEmbedding":
        case.check("out", pp.FixedPositionalEmbedding(**options).emb.numpy())
        return
    if kind == "apply_rotary_pos_emb":
        q, table = leaf(case, "q"), tensor(case, "pos_table")
        out, out_k = pp.apply_rotary_pos_emb(q, tensor(case, "k"), table if table.dim() == 3 else table[None])
        case.check("out_k", out_k.numpy())
        check(case, out, {"dq": q})
        return
    dim = options["dim"]
    activation = {"gelu (exact erf)": nn.GELU, "relu": nn.ReLU, None: None}[options.get("activation")]
    module = {
        "PreScaleNorm": lambda: pp.PreScaleNorm(dim, Inner(dim)),
        "PreLayerNorm": lambda: pp.PreLayerNorm(dim, Inner(dim)),
        "ReZero": lambda: pp.ReZero(Inner(dim)),
        "PreShiftTokens": lambda: pp.PreShiftTokens(options["shifts"], Inner(dim)),
        "FeedForward": lambda: pp.FeedForward(dim, options["mult"], 0.0, activation, options["glu"]),
        "Chunk(FeedForward)": lambda: pp.Chunk(options["chunks"], pp.FeedForward(dim), options["along_dim"]),
    }[kind]()
    load(case, module)
    x = leaf(case, "x")
    keywords = {"mask": tensor(case, "mask")} if case.has("mask") else {}
    check(case, module(x, **keywords), {"dx": x, **weights_of(module)})


def run_attention_layers(case):
    module = build(case, getattr(pp, case.entry["function"])).eval()
    load(case, module)
    run_layer(case, module, leaf(case, "x"))


def run_performer(case):
    module = build(case, pp.Performer)
    load(case, module)
    run_layer(case, module.train(bool(case.options.get("reversible"))), leaf(case, "x"))


def run_lm(case):
    module = build(case, pp.PerformerLM).eval()
    load(case, module)
    run_layer(case, module, tensor(case, "tokens"))


def run_wrapper(case):
    kind, options = case.entry["function"], case.options
    if kind.startswith("top_k"):
        logits = tensor(case, "logits_in")
        for name, chosen in (("top_k_kept", pp.top_k), ("top_p_kept", pp.top_p)):
            kept = chosen(logits, thres=options["thres"]).isfinite()
            assert torch.equal(kept.int(), tensor(case, name).int())
        case.check("out_penalised", pp.repetition_penalty_fn(logits, tensor(case, "ctx"), options["theta"]).numpy())
        return
    if kind == "PerformerEncDec.forward":
        module = build(case, pp.PerformerEncDec).eval()
        load(case, module)
        mask = tensor(case, "enc_mask") if case.has("enc_mask") else None
        check(case, module(tensor(case, "seq_in"), tensor(case, "seq_out"), enc_mask=mask), weights_of(module))
        return
    ignored = options.get("loss", {}).get("ignore_index", 0)
    module = pp.AutoregressiveWrapper(build(case, pp.PerformerLM), ignore_index=ignored)
    load(case, module.net)
    keywords = {"mask": tensor(case, "mask")} if case.has("mask") else {}
    if kind.endswith("generate"):
        made = module.generate(
            tensor(case, "start"), options["steps"], filter_thres=options["filter_thres"], **keywords
        )
        assert torch.equal(made, tensor(case, "generated"))
        return
    module.train(bool(options.get("reversible")))
    check(case, module(tensor(case, "tokens"), **keywords), weights_of(module.net))


def run_projection(case):
    from performer.compat import _arithmetic

    options = case.options
    rows = _arithmetic.orthogonal_rows(options["nb_rows"], options["nb_columns"], tensor(case, "normal_blocks"))
    if options["scaling"] == 0:
        rows = rows * tensor(case, "normal_rows").norm(dim=1, keepdim=True)
    else:
        rows = rows * options["nb_columns"] ** 0.5
    case.check("W", rows.numpy())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recording(case):
    globals()["run_" + case.entry["group"]](case)


def test_recordings_are_there():
    assert CASES, "tests/golden/recorded holds no cases of performer-pytorch"


def test_redraw_schedule():
    """A new projection in training call interval + 1, none in evaluation, none once fixed."""
    model = pp.Performer(8, 1, 2, 4, feature_redraw_interval=2)
    x = torch.randn(1, 3, 8)

    def projection():
        return next(m for m in model.modules() if isinstance(m, pp.FastAttention)).projection_matrix.clone()

    first = projection()
    changed = []
    for _ in range(4):
        model(x)
        changed.append(not torch.equal(projection(), first))
        first = projection()
    assert changed == [False, False, True, False]
    model.eval()
    for _ in range(4):
        model(x)
    assert torch.equal(projection(), first)
    model.train().fix_projection_matrices_()
    for _ in range(4):
        model(x)
    assert torch.equal(projection(), first)


def test_a_training_script_runs():
    """The example of the original's README with the import line changed, made small."""
    model = pp.AutoregressiveWrapper(
        pp.PerformerLM(
            num_tokens=12, max_seq_len=16, dim=16, depth=1, heads=2, dim_head=8, causal=True, reversible=True
        )
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    data = torch.arange(1, 10).repeat(4, 1)
    losses = []
    for _ in range(30):
        loss = model(data)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert model.generate(torch.tensor([1, 2]), 3).shape == (3,)
