# SPDX-License-Identifier: Apache-2.0
"""Loads libperformer_ops.so into Python: load_library.py LIBRARY. The operators must be there, compute, have derivatives, give
shapes without data for symbolic sizes, raise Python's own errors, and pass LibTorch's checks of operators."""
import sys

import torch
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

torch.ops.load_library(sys.argv[1])
ops = torch.ops.performer
B, T, S, H, D, E, M = 2, 9, 7, 3, 8, 5, 16


def tokens(count, size, dtype=torch.float32, grad=False):
    return torch.randn(B, count, H, size, dtype=dtype, requires_grad=grad)


def projected(**more):
    return {"map": "favor+", "features": M, "projection": torch.randn(H, M, D), **more}


def state():
    return [torch.zeros(B, H, M, E), torch.zeros(B, H, M), torch.full((B, H, M), -1e30)]


def check_results():
    q, k, v = tokens(S, D), tokens(S, D), tokens(S, E)
    named = projected()
    out, kv, key_sum, log_scale = ops.mapped_attention(q, k, v, **named, causal=True, return_state=True)
    composed = ops.mapped_attention(q, k, v, **named, causal=True, backend="composed")[0]
    torch.testing.assert_close(out, composed, rtol=1e-4, atol=1e-5)
    parts = state()
    for i in range(S):
        step = ops.mapped_step(q[:, i], k[:, i], v[:, i], *parts, **named)
        torch.testing.assert_close(step, out[:, i], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts[0], kv, rtol=1e-4, atol=1e-5)
    halves = [ops.mapped_key_state(k[:, a:b], v[:, a:b], **named) for a, b in ((0, 3), (3, S))]
    merged = ops.merge_states(*halves[0], *halves[1])
    for got, expected in zip(merged, (kv, key_sum, log_scale)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    kept = ops.dropout(torch.ones(1000), 0.25)
    assert 100 < (kept == 0).sum() < 400 and kept.max() == torch.tensor(1 / 0.75)


def check_errors():
    q = tokens(S, D)
    for error, text, call in (
        (ValueError, "sedrf", lambda: ops.mapped_attention(q, q, q, map="sedrf")),
        (ValueError, "unknown backend 'fast'", lambda: ops.favor_attention(q, q, q, family="relu", backend="fast")),
        (ValueError, "key must agree", lambda: ops.favor_attention(q, q[..., :4], q, family="relu")),
        (TypeError, "float64", lambda: ops.favor_attention(q.double(), q, q, family="relu")),
        (ValueError, "probability", lambda: ops.dropout(q, 1.5)),
    ):
        try:
            call()
        except error as found:
            assert text in str(found), found
        else:
            raise AssertionError(f"no {error.__name__} with {text}")


# Every operator with arguments, for the checks of all of them.
def cases(dtype=torch.float32):
    q, k, v = tokens(S, D, dtype, True), tokens(S, D, dtype, True), tokens(S, E, dtype, True)
    token = [x[:, 0].detach() for x in (q, k, v)]
    w = torch.randn(H, M, D)
    yield ops.favor_attention, (q, k, v, w), {"causal": True, "return_state": True}
    yield ops.favor_attention, (tokens(T, D, dtype, True), k, v), {"family": "relu", "epsilon": 1e-3}
    yield ops.favor_attention, (q, k, v, w), {"causal": True, "backend": "composed"}
    yield ops.favor_step, (*token, *state(), w), {}
    yield ops.key_state, (k, v, w), {}
    yield ops.merge_states, (*state(), *state()), {}
    for named in (projected(), projected(map="hyperbolic", projection=w[:, : M // 2]),
                  projected(map="trigonometric", projection=w[:, : M // 2]), {"map": "elu+1"},
                  {"map": "hedgehog", "matrix": torch.randn(H, D, D, requires_grad=True), "bias": torch.zeros(H, D)}):
        yield ops.mapped_attention, (q, k, v), {**named, "causal": True, "return_state": True}
        yield ops.mapped_key_state, (k, v), named
    moments = {"query_mean": torch.zeros(H, D), "key_mean": torch.zeros(H, D),
               "query_moment": torch.eye(D).repeat(H, 1, 1), "key_moment": torch.eye(D).repeat(H, 1, 1)}
    for name in ("oprf", "saderf"):
        yield ops.mapped_attention, (q, k, v), {**projected(map=name), **moments, "causal": True}
    yield ops.mapped_step, (*token, *state()), projected()


def check_operators():
    for op, args, kwargs in cases():
        result = torch.library.opcheck(op.default, args, kwargs, raise_exception=False,
                                       test_utils=("test_schema", "test_autograd_registration", "test_faketensor",
                                                   "test_aot_dispatch_dynamic"))
        assert set(result.values()) == {"SUCCESS"}, (op, {k: v for k, v in kwargs.items() if isinstance(v, str)}, result)


# The number of tokens as a symbol: shapes come out in terms of it.
def check_symbolic_sizes():
    queries, keys, weights = tokens(T, D), tokens(S, D), torch.randn(H, M, D)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        def symbolic(tensor, name):
            sizes = [DimDynamic.DYNAMIC if i == 1 else DimDynamic.STATIC for i in range(tensor.dim())]
            return mode.from_tensor(tensor, source=ConstantSource(name),
                                    symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

        q, k, w = symbolic(queries, "q"), symbolic(keys, "k"), mode.from_tensor(weights)
        assert not isinstance(q.shape[1], int)
        for out, like in (
            (ops.favor_attention(q, k, k, w)[0], q),
            (ops.mapped_attention(q, k, k, features=M, projection=w)[0], q),
            (ops.mapped_attention(k, k, k, map="relu", causal=True, return_state=True)[0], k),
            (ops.dropout(q, 0.5), q),
        ):
            assert out.shape[1].node.expr == like.shape[1].node.expr, (out.shape, like.shape)
        assert ops.key_state(k, k, w)[0].shape == (B, H, M, D)


check_results()
check_errors()
check_symbolic_sizes()
check_operators()
print("operators of", sys.argv[1], "pass")
