# SPDX-License-Identifier: Apache-2.0
"""Holds the composed attention operators on a GPU to the CPU kernels, then times them beside exact attention.

    python3 tests/gpu/composed.py build/release/lib/libperformer_ops.so [--device cuda] [--json FILE]

Needs a PyTorch with the version that the library was built with (scripts/gpu-check sees to that). Exit code 1
when any comparison fails. With --device cpu the composed operators run on the CPU, which tests this file.
"""
import itertools
import json
import sys
import time

import torch
import torch.nn.functional as F

from comparing import Comparisons, parse, parser_of, show

CHECKS = Comparisons(smallest=1.0)
compare = CHECKS.compare


def random_call(family, causal, form, dtype, seed, tokens=150, heads=2, head_size=16, value_size=12, features=32):
    """The arguments of one call on the CPU: plain, masked, packed, or with an initial state."""
    random = torch.Generator().manual_seed(seed)
    batch = 1 if form == "packed" else 2

    def normal(*shape):
        return torch.randn(*shape, generator=random).to(dtype)

    call = dict(
        query=normal(batch, tokens, heads, head_size),
        key=normal(batch, tokens, heads, head_size),
        value=normal(batch, tokens, heads, value_size),
        projection=torch.randn(1, heads, features, head_size, generator=random),
        family=family,
        scale=head_size**-0.25 if family == "exponential" else 1.0,
        epsilon=0.0 if family == "exponential" else 1e-3,
        causal=causal,
        return_state=True,
    )
    if form == "masked":
        call["key_mask"] = torch.rand(batch, tokens, generator=random) < 0.7
        call["query_mask"] = torch.rand(batch, tokens, generator=random) < 0.9
    elif form == "packed":
        call["cu_query"] = call["cu_key"] = torch.tensor([0, 0, 5, 70, 71, tokens])
    elif form == "stateful":
        call["initial_kv"] = torch.randn(batch, heads, features, value_size, generator=random)
        call["initial_key_sum"] = torch.rand(batch, heads, features, generator=random) + 1
        call["initial_log_scale"] = torch.zeros(batch, heads, features)
    return call


def attend(call, device, backend):
    """Outputs, final state and gradients of one call."""
    moved = {}
    for name, value in call.items():
        stays = not torch.is_tensor(value) or name.startswith("cu_")
        moved[name] = value if stays else value.to(device).detach()
    inputs = [moved[name].requires_grad_() for name in ("query", "key", "value")]
    out, _, kv, key_sum, log_scale = torch.ops.performer.favor_attention(**moved, backend=backend)
    random = torch.Generator().manual_seed(7)
    grad = torch.randn(out.shape, generator=random).to(device, out.dtype)
    loss = (out * grad).sum().float() + 1e-3 * key_sum.sum()
    gradients = torch.autograd.grad(loss, inputs)
    scale = log_scale.double().exp().unsqueeze(-1)
    return [out, kv.double() * scale, key_sum.double() * scale.squeeze(-1), *gradients]


def check_calls(device, backend):
    tolerances = {torch.float32: 2e-4, torch.bfloat16: 0.02, torch.float16: 5e-3}
    families = ("exponential", "relu", "elu+1")
    forms = ("plain", "masked", "packed", "stateful")
    names = ("out", "kv", "key_sum", "d query", "d key", "d value")
    for family, causal, form, dtype in itertools.product(families, (False, True), forms, tolerances):
        call = random_call(family, causal, form, dtype, seed=3)
        # The CPU kernels may multiply bfloat16 in bfloat16: float32 of the same inputs is the sharper reference.
        exact = {k: v.float() if k in ("query", "key", "value") else v for k, v in call.items()}
        expected, got = attend(exact, "cpu", "cpu"), attend(call, device, backend)
        for name, a, b in zip(names, got, expected):
            compare(f"{family} causal={causal} {form} {dtype} {name}", a, b, tolerances[dtype])


def check_steps(device, backend):
    """Tokens one by one against one causal pass on the device."""
    for family in ("exponential", "relu"):
        call = random_call(family, True, "plain", torch.float32, seed=5, tokens=24)
        moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in call.items()}
        whole = torch.ops.performer.favor_attention(**moved, backend=backend)
        state = [torch.zeros_like(part) for part in whole[2:]]
        if family == "exponential":
            state[2].fill_(-1e30)
        for t in range(24):
            token = [moved[name][:, t] for name in ("query", "key", "value")]
            out = torch.ops.performer.favor_step(*token, *state, projection=moved["projection"], family=family,
                                                 scale=call["scale"], epsilon=call["epsilon"], backend=backend)
            compare(f"{family} step {t}", out, whole[0][:, t], 2e-4)


def seconds(run, device):
    """The least of five timings after two that warm up."""
    best = float("inf")
    for attempt in range(7):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        if attempt >= 2:
            best = min(best, time.perf_counter() - start)
    return best


def timings(device, backend, lengths):
    """ns per token and head of softmax features (D 64, M 256, H 8) and of exact attention, and peak memory."""
    heads, head_size, features, rows = 8, 64, 256, []
    projection = torch.randn(1, heads, features, head_size, device=device)
    for length, dtype, causal in itertools.product(lengths, (torch.float32, torch.bfloat16), (False, True)):
        q, k, v = (torch.randn(1, length, heads, head_size, device=device, dtype=dtype, requires_grad=True)
                   for _ in range(3))
        grad = torch.randn(1, length, heads, head_size, device=device, dtype=dtype)

        def favor():
            return torch.ops.performer.favor_attention(q, k, v, projection, scale=head_size**-0.25, causal=causal,
                                                       backend=backend)[0]

        def exact():
            q_, k_, v_ = (x.transpose(1, 2) for x in (q, k, v))
            return F.scaled_dot_product_attention(q_, k_, v_, is_causal=causal).transpose(1, 2)

        for kind, attention in (("favor-softmax", favor), ("exact", exact)):
            row = dict(kind=kind, length=length, dtype=str(dtype).removeprefix("torch."), causal=causal)
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            with torch.no_grad():
                row["forward_ns"] = seconds(attention, device) / length / heads * 1e9
            both = lambda: torch.autograd.grad(attention(), (q, k, v), grad)
            row["forward_backward_ns"] = seconds(both, device) / length / heads * 1e9
            if device.startswith("cuda"):
                row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
            rows.append(row)
            show(row)
    return rows


def main():
    parser = parser_of(__doc__, [1024, 4096, 16384], "write what was measured to this file")
    parser.add_argument("library")
    options = parse(parser)
    torch.ops.load_library(options.library)
    check_calls(options.device, "composed")
    check_steps(options.device, "composed")
    CHECKS.report()
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    rows = timings(options.device, "composed", options.lengths)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(CHECKS.results(device=name, rows=rows), file, indent=1)
    sys.exit(1 if CHECKS.failures else 0)


if __name__ == "__main__":
    main()
