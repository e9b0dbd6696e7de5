# SPDX-License-Identifier: Apache-2.0
"""The attention functions: against their definition, each other, and PyTorch's checks of operators."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import performer
from performer import FeatureMap, MapStatistics, MapWeights

B, H, T, D, E = 2, 3, 11, 8, 5
OPERATOR = "mapped_attention"


def inputs(dtype=torch.float32, tokens=T, grad=False, scale=0.5):
    return [(scale * torch.randn(B, H, tokens, n, dtype=dtype)).requires_grad_(grad) for n in (D, D, E)]


def definition(q, k, v, projection, causal=False, key_mask=None):
    """FAVOR+ in plain terms, float64: phi(x) = exp(w x - |x|^2 / 2), x scaled by D^(-1/4)."""
    w = projection.double()

    def phi(x):
        x = x.double() * D**-0.25
        return torch.exp(torch.einsum("bhtd,hmd->bhtm", x, w) - x.square().sum(-1, keepdim=True) / 2)

    weights = phi(q) @ phi(k).transpose(-1, -2)
    if causal:
        weights = weights.tril()
    if key_mask is not None:
        weights = weights * key_mask[:, None, None]
    return (weights @ v.double()) / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.03), (torch.float16, 4e-3)],
)
def test_definition(causal, dtype, tolerance):
    q, k, v = inputs(dtype)
    described = FeatureMap(features=16)
    mask = torch.rand(B, T) < 0.7
    mask[:, 0] = True
    projection = described.draw(H, D, seed=3)
    out = performer.favor_attention(q, k, v, causal=causal, features=described, projection=projection, key_mask=mask)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.double(), definition(q, k, v, projection, causal, mask), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("causal", [False, True])
def test_converges_to_softmax_attention(causal):
    q, k, v = inputs(scale=0.4)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    errors = []
    for features in (16, 16384):
        out = performer.scaled_dot_product_attention(q, k, v, is_causal=causal, features=features)
        errors.append(((out - expected).norm() / expected.norm()).item())
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 4


def weights_for(described):
    matrix, bias = described.initial_weights(H, D)
    return MapWeights(described.draw(H, D), matrix, bias)


def statistics_for(described, q, k):
    return performer.measure_statistics(q, k, described.map) if described.traits.statistics else None


@pytest.mark.parametrize("name", performer.feature_map_names())
def test_every_map_streams_merges_and_ignores_the_future(name):
    q, k, v = inputs(scale=0.3)
    described = FeatureMap(name, features=16)
    weights, statistics = weights_for(described), statistics_for(described, q, k)
    tolerance = 2e-3 if described.traits.signed_features else 2e-5

    def attend(upto, **more):
        return performer.mapped_attention(
            q[:, :, :upto], k[:, :, :upto], v[:, :, :upto], described, weights, statistics, causal=True, **more
        )

    out, state = attend(T, return_state=True)
    torch.testing.assert_close(attend(6), out[:, :, :6], atol=tolerance, rtol=tolerance)
    stream = performer.empty_state(q[:, :, 0], v[:, :, 0], described, weights)
    rows = [
        performer.favor_step(q[:, :, i], k[:, :, i], v[:, :, i], stream, described, weights, statistics)
        for i in range(T)
    ]
    torch.testing.assert_close(torch.stack(rows, 2), out, atol=tolerance, rtol=tolerance)
    halves = [
        performer.key_state(k[:, :, part], v[:, :, part], described, weights, statistics)
        for part in (slice(0, 4), slice(4, T))
    ]
    merged = performer.merge_states(*halves)
    for a, b in zip(merged, state, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


def test_packed_segments_are_sequences_of_their_own():
    q, k, v = (x[:1] for x in inputs())
    bounds = torch.tensor([0, 4, 4, T])
    out = performer.favor_attention(q, k, v, causal=True, cu_seqlens=bounds)
    for a, b in ((0, 4), (4, T)):
        alone = performer.favor_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], causal=True)
        torch.testing.assert_close(out[:, :, a:b], alone)


def test_layouts_strides_and_grouped_heads():
    q, k, v = inputs()
    expected = performer.favor_attention(q, k, v)
    swapped = [x.transpose(1, 2) for x in (q, k, v)]
    torch.testing.assert_close(performer.favor_attention(*swapped, layout="bthd").transpose(1, 2), expected)
    strided = [torch.stack([x, x], 3)[..., 1, :] for x in (q, k, v)]
    assert not strided[0].is_contiguous()
    assert torch.equal(performer.favor_attention(*strided), expected)
    grouped = performer.favor_attention(q, k[:, :1], v[:, :1])
    repeated = performer.favor_attention(q, k[:, :1].repeat(1, H, 1, 1), v[:, :1].repeat(1, H, 1, 1))
    assert torch.equal(grouped, repeated)
    torch.testing.assert_close(performer.favor_attention(q, k, v, scale=1 / math.sqrt(D)), expected)


def test_scaled_dot_product_attention_takes_what_it_can():
    q, k, v = inputs()
    mask = torch.rand(B, T) < 0.7
    mask[:, 0] = True
    out = performer.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
    assert torch.equal(out, performer.favor_attention(q, k, v, key_mask=mask))
    single = performer.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0])
    assert single.shape == (B, T, E)
    wide = performer.scaled_dot_product_attention(*(x[:, None].expand(B, 2, H, T, -1) for x in (q, k, v)))
    assert wide.shape == (B, 2, H, T, E)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("dropout_p is 0.1", {"dropout_p": 0.1}),
        ("attn_mask has shape", {"attn_mask": torch.ones(T, T, dtype=torch.bool)}),
        ("attn_mask is torch.float32", {"attn_mask": torch.zeros(1, T)}),
        ("features", {"features": "sedrf"}),
    ],
)
def test_scaled_dot_product_attention_refuses_by_name(message, arguments):
    q, k, v = inputs()
    with pytest.raises(ValueError, match=message if message != "features" else "sedrf"):
        performer.scaled_dot_product_attention(q, k, v, **arguments)


def test_errors_name_the_argument():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="is_causal needs as many keys"):
        performer.scaled_dot_product_attention(q[:, :, :3], k, v, is_causal=True)
    with pytest.raises(ValueError, match="layout must be"):
        performer.favor_attention(q, k, v, layout="tbhd")
    with pytest.raises(ValueError, match="key has 2 heads for 3"):
        performer.favor_attention(q, k[:, :2], v)
    with pytest.raises(ValueError, match="scale has a meaning"):
        performer.favor_attention(q, k, v, features="relu", scale=1.0)
    with pytest.raises(TypeError, match="float64"):
        performer.favor_attention(q.double(), k, v)
    with pytest.raises(ValueError, match="second moments"):
        performer.favor_attention(q, k, v, features="oprf", causal=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["favor+", "relu", "hedgehog", "trigonometric"])
def test_gradcheck(name, causal):
    described = FeatureMap(name, features=4, epsilon=0.01 if name == "relu" else None)
    q, k, v = (x[:1, :2, :4].detach().requires_grad_() for x in inputs(torch.float64, scale=0.3))
    matrix, bias = described.initial_weights(2, D)
    weights = MapWeights(described.draw(2, D), matrix, bias)

    def attend(q, k, v):
        return performer.mapped_attention(q, k, v, described, weights, causal=causal)

    assert torch.autograd.gradcheck(attend, (q, k, v))


def test_state_has_gradients():
    q, k, v = inputs(torch.float64, grad=True)

    def whole(q, k, v):
        return performer.favor_attention(q, k, v, causal=True)

    def halves(q, k, v):
        first, state = performer.favor_attention(*(x[:, :, :5] for x in (q, k, v)), causal=True, return_state=True)
        second = performer.favor_attention(*(x[:, :, 5:] for x in (q, k, v)), causal=True, state=state)
        return torch.cat([first, second], 2)

    for f in (whole, halves):
        grads = torch.autograd.grad(f(q, k, v).sin().sum(), (q, k, v))
        if f is whole:
            expected = grads
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_opcheck():
    q, k, v = (x.transpose(1, 2).detach().requires_grad_() for x in inputs())
    projection = FeatureMap(features=8).draw(H, D)
    named = {"map": "favor+", "features": 8, "projection": projection, "causal": True, "return_state": True}
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.performer.mapped_attention.default, (q, k, v), named, test_utils=tests)
    torch.library.opcheck(
        torch.ops.performer.favor_attention.default, (q, k, v, projection), {"causal": True}, test_utils=tests
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    def loss(q, k, v):
        return performer.favor_attention(q, k, v, causal=True, features=16).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic)
    for tokens in (T, T + 4, T + 9) if dynamic else (T,):
        q, k, v = inputs(tokens=tokens, grad=True)
        expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
        for a, b in zip(torch.autograd.grad(compiled(q, k, v), (q, k, v)), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_export_with_a_dynamic_length():
    module = performer.FavorAttention(H, D, 16, causal=True)
    q, k, v = inputs()
    length = torch.export.Dim("length", min=2, max=4096)
    program = torch.export.export(module, (q, k, v), dynamic_shapes=({2: length},) * 3)
    longer = inputs(tokens=29)
    torch.testing.assert_close(program.module()(*longer), module(*longer))


def test_functional_transforms():
    def loss(q, k, v):
        return performer.favor_attention(q, k, v, causal=True, features=16).square().sum()

    q, k, v = inputs(grad=True)
    expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
    for a, b in zip(torch.func.grad(loss, (0, 1, 2))(q.detach(), k.detach(), v.detach()), expected, strict=True):
        torch.testing.assert_close(a, b)
    stacked = [torch.randn(4, *x.shape) for x in (q, k, v)]
    mapped = torch.func.vmap(torch.func.grad(loss))(*stacked)
    for i in range(4):
        torch.testing.assert_close(mapped[i], torch.func.grad(loss)(*(x[i] for x in stacked)))
    shared = torch.func.vmap(lambda q: performer.favor_attention(q, k.detach(), v.detach()))(stacked[0])
    torch.testing.assert_close(shared[2], performer.favor_attention(stacked[0][2], k, v))
    bounds = torch.tensor([0, 4, T])
    packed = torch.func.vmap(lambda q: performer.favor_attention(q, q, q, cu_seqlens=bounds))(stacked[0][:, :1])
    torch.testing.assert_close(packed[1], performer.favor_attention(*[stacked[0][1, :1]] * 3, cu_seqlens=bounds))


def test_autocast_leaves_projection_and_state_alone():
    q, k, v = inputs()
    described = FeatureMap(features=32)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = performer.favor_attention(q, k, v, features=described, return_state=True)
    assert out.dtype == torch.bfloat16
    assert state.kv.dtype == torch.float32
    expected = performer.favor_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), features=described)
    assert torch.equal(out, expected)
    module = performer.FavorAttention(H, D, described).to(torch.bfloat16)
    assert module.projection.dtype == torch.float32
    assert torch.equal(module.projection, described.draw(H, D))


def test_meta_gives_shapes():
    q, k, v = (x.to("meta") for x in inputs())
    projection = torch.empty(H, 256, D, device="meta")
    out, state = performer.favor_attention(q, k, v, projection=projection, causal=True, return_state=True)
    assert out.shape == (B, H, T, E)
    assert state.kv.shape == (B, H, 256, E)


def test_other_devices_take_the_composed_operators():
    q, k, v = inputs()
    expected = performer.favor_attention(q, k, v, causal=True)
    torch.testing.assert_close(performer.favor_attention(q, k, v, causal=True, backend="composed"), expected)
    if torch.cuda.is_available():
        on_gpu = performer.favor_attention(q.cuda(), k.cuda(), v.cuda(), causal=True)
        torch.testing.assert_close(on_gpu.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_threads_are_torchs():
    q, k, v = inputs(tokens=300)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(performer.favor_attention(q, k, v))
    torch.set_num_threads(before)
    torch.testing.assert_close(*results)


def test_pickles():
    module = performer.FavorAttention(H, D, "relu", causal=True)
    q, k, v = inputs()
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again(q, k, v), module(q, k, v))
    assert pickle.loads(pickle.dumps(FeatureMap("relu"))) == FeatureMap("relu")
    state = performer.key_state(k, v)
    assert torch.equal(pickle.loads(pickle.dumps(state)).kv, state.kv)


class Attended(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        x = torch.full((1, 2, 3, D), 0.1 * index)
        return performer.favor_attention(x, x, x)[0]


def test_works_in_workers_of_a_data_loader():
    x = torch.full((1, 2, 3, D), 0.1)
    performer.favor_attention(x, x, x)  # the parent has used its threads before it forks
    got = next(iter(torch.utils.data.DataLoader(Attended(), batch_size=4, num_workers=1)))
    torch.testing.assert_close(got, torch.stack([Attended()[i] for i in range(4)]))


def test_statistics_are_frozen_arguments():
    q, k, v = inputs()
    described = FeatureMap("oprf", features=16)
    moments = performer.measure_statistics(q, k, "oprf")
    assert isinstance(moments, MapStatistics)
    out = performer.mapped_attention(q, k, v, described, weights_for(described), moments, causal=True)
    assert out.isfinite().all()
