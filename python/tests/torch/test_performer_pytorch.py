# SPDX-License-Identifier: Apache-2.0
"""The drop-in for performer-pytorch against recorded outputs of that package."""

import pytest
import recordings
import torch
import torch.nn.functional as F
from torch import nn

from performer.compat import performer_pytorch as pp
from performer.compat.performer_pytorch import autoregressive_wrapper as wrapper

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


def test_a_script_in_the_manner_of_enwik8():
    """The calls of examples/enwik8_simple, with its arguments but smaller numbers."""
    length = 32
    model = wrapper.AutoregressiveWrapper(
        pp.PerformerLM(
            num_tokens=256,
            dim=32,
            depth=6,
            max_seq_len=length,
            heads=8,
            causal=True,
            reversible=True,
            nb_features=16,
            use_scalenorm=True,
            shift_tokens=True,
            local_attn_heads=(8, 8, 8, 6, 4, 2),
            local_window_size=8,
        )
    )
    data = torch.frombuffer(bytearray(b"abcdefghij" * 40), dtype=torch.uint8)
    begins = torch.randint(0, data.shape[0] - length - 1, (4,)).tolist()
    batch = torch.stack([data[begin : begin + length + 1].long() for begin in begins])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch, return_loss=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    model.eval()
    with torch.no_grad():
        assert model(batch, return_loss=True).item() < losses[0]
    sample = model.generate(batch[0, :-1], 40)  # longer than the model, which reads its last tokens again
    assert sample.shape == (40,)
    assert not model.training


def test_a_script_in_the_manner_of_the_copy_task():
    """The calls of examples/toy_tasks/enc_dec_copy, with its arguments but smaller numbers."""
    tokens, length = 18, 4
    names = {"depth": 1, "heads": 2, "reversible": True, "feature_redraw_interval": 1000, "nb_features": 16}
    model = pp.PerformerEncDec(
        dim=32,
        enc_num_tokens=tokens,
        enc_max_seq_len=length,
        dec_num_tokens=tokens,
        dec_max_seq_len=2 * length + 1,
        **{f"enc_{name}": value for name, value in names.items()},
        **{f"dec_{name}": value for name, value in (names | {"depth": 3}).items()},
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def batch():
        source = torch.randint(2, tokens, (32, length))
        target = torch.cat([torch.ones(32, 1).long(), source, source], 1)
        return source, target, torch.ones_like(source).bool(), torch.ones_like(target).bool()

    losses = []
    for _ in range(30):
        model.train()
        source, target, source_mask, target_mask = batch()
        loss = model(source, target, enc_mask=source_mask, dec_mask=target_mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < losses[0] - 0.2, losses
    model.eval()
    source, _, source_mask, _ = batch()
    sample = model.generate(source[:1], torch.ones(1, 1).long(), length, enc_mask=source_mask[:1])
    assert sample.shape == (1, length)
    stopped = model.generate(source[:1], torch.ones(1, 1).long(), 50, eos_token=int(sample[0, 0]))
    assert 1 <= stopped.shape[1] <= 50
    with pytest.raises(ValueError, match=r"keeps none of 18 tokens: lower filter_thres"):
        model.generate(source[:1], torch.ones(1, 1).long(), 2, filter_thres=0.99)


def test_the_calls_of_the_originals_readme():
    model = pp.PerformerLM(
        num_tokens=50,
        max_seq_len=24,
        dim=32,
        depth=2,
        heads=8,
        causal=False,
        nb_features=16,
        feature_redraw_interval=1000,
        generalized_attention=False,
        kernel_fn=torch.nn.ReLU(),
        reversible=True,
        ff_chunks=10,
        use_scalenorm=False,
        use_rezero=False,
        ff_glu=True,
        emb_dropout=0.1,
        ff_dropout=0.1,
        attn_dropout=0.1,
        local_attn_heads=4,
        local_window_size=8,
        rotary_position_emb=True,
        shift_tokens=True,
    )
    x = torch.randint(0, 50, (1, 24))
    assert model(x, mask=torch.ones_like(x).bool()).shape == (1, 24, 50)
    model.fix_projection_matrices_()
    x, context = torch.randn(1, 24, 32), torch.randn(1, 12, 32)
    assert pp.Performer(dim=32, depth=1, heads=8, causal=True)(x).shape == x.shape
    assert pp.SelfAttention(dim=32, heads=8, causal=False)(x).shape == x.shape
    assert pp.CrossAttention(dim=32, heads=8)(x, context=context).shape == x.shape
    q, k, v = torch.randn(3, 1, 8, 12, 16)
    assert pp.FastAttention(dim_heads=16, nb_features=32, causal=False)(q, k, v).shape == v.shape
    sizes = {"num_tokens": 50, "depth": 1, "heads": 2, "max_seq_len": 12}
    of_both = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sizes.items()}
    with pytest.warns(UserWarning, match="ignores tie_token_embed, as performer-pytorch does"):
        untied = pp.PerformerEncDec(dim=16, tie_token_embed=True, **of_both)
    assert untied.enc.token_emb is not untied.dec.net.token_emb
    tied = pp.PerformerEncDec(dim=16, tie_token_embeds=True, **of_both)
    assert tied.enc.token_emb is tied.dec.net.token_emb
    with pytest.raises(ValueError, match="one dim for both"):
        pp.PerformerEncDec(dim=16, enc_dim=8, **of_both)
