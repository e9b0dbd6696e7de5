# SPDX-License-Identifier: Apache-2.0
"""Holds the Python package on a GPU to the same package on the CPU, then times training steps of models there.

    PERFORMER_OPS_LIBRARY=build/gpu/libperformer_ops.so PYTHONPATH=python python3 tests/gpu/package.py \
        [--device cuda] [--lengths 1024 8192] [--json FILE]

Every feature map with its gradients, models of several kinds with gradients, decoding and greedy generation. Exit code
1 when any comparison fails. With --device cpu it tests itself.
"""

import copy
import itertools
import json
import os
import sys
import time

import torch
import torch.nn.functional as F
from comparing import Comparisons, parse, parser_of, show

import performer
from performer.models import AttentionConfig, LanguageModel, ModelConfig

TOLERANCE = 1e-3
# Denominators of signed features may nearly vanish, and then magnify every rounding error.
SIGNED_TOLERANCE = 5e-2
CHECKS = Comparisons(smallest=1e-3)


def compare(name, got, expected, tolerance=TOLERANCE):
    CHECKS.compare(name, got, expected, tolerance)


def module_results(module, tensors, device):
    """The output of an attention module on a device, and the gradients of its inputs and parameters."""
    module = copy.deepcopy(module).to(device)
    inputs = [x.to(device).requires_grad_() for x in tensors]
    out = module(*inputs)
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(device)
    parameters = [x for x in module.parameters() if x.requires_grad]
    return [out, *torch.autograd.grad((out * weights).sum(), inputs + parameters)]


def check_maps(device):
    """Every feature map, bidirectional and causal."""
    random = torch.Generator().manual_seed(1)
    tensors = [torch.randn(2, 3, 70, 16, generator=random) for _ in range(3)]
    for name in performer.feature_map_names():
        signed = performer.feature_map_traits(name).signed_features
        for causal in (False, True):
            torch.manual_seed(2)
            module = performer.FavorAttention(3, 16, performer.FeatureMap(name, 32), causal=causal)
            pairs = zip(module_results(module, tensors, device), module_results(module, tensors, "cpu"), strict=True)
            for index, (got, expected) in enumerate(pairs):
                tolerance = SIGNED_TOLERANCE if signed else TOLERANCE
                compare(f"map {name} causal={causal} result {index}", got, expected, tolerance)


def small_model(kind, **settings):
    """A model of two layers, the same for the same arguments."""
    torch.manual_seed(3)
    config = ModelConfig(layers=2, width=32, heads=2, ffn=64, dropout=0.0, **settings)
    options = {"features": 32} if kind.startswith("favor") and kind != "favor-relu" else {}
    return LanguageModel(config, AttentionConfig(kind=kind, options=options))


def check_model(name, model, device):
    """Loss and gradients of one batch; for causal models decoding and greedy generation, too."""
    random = torch.Generator().manual_seed(4)
    tokens = torch.randint(4, 24, (2, 40), generator=random)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 31:] = False
    moved = copy.deepcopy(model).to(device)
    gradients = []
    for one, place in ((moved, device), (model, "cpu")):
        logits = one(tokens.to(place), key_mask=mask.to(place))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().to(place))
        gradients.append([loss, *torch.autograd.grad(loss, list(one.parameters()), allow_unused=True)])
    names = ["loss", *(parameter for parameter, _ in model.named_parameters())]
    for parameter, got, expected in zip(names, *gradients, strict=True):
        if (got is None) != (expected is None):
            CHECKS.failures.append(f"model {name}: {parameter} has a gradient on one device only")
        elif got is not None and expected is not None:
            compare(f"model {name}: {parameter}", got, expected)
    if model.model_config.objective != "causal":
        return
    state = moved.begin(2)
    steps = [moved.step(tokens[:, place].to(device), state) for place in range(24)]
    compare(f"model {name}: decoding", torch.stack(steps, 1), model(tokens[:, :24]))
    texts = [
        [one.text for one in performer.generate(m, 2, prompt="MK", max_length=24, temperature=0)] for m in (moved, model)
    ]
    if texts[0] != texts[1]:
        CHECKS.failures.append(f"model {name}: generated {texts[0]}, on the CPU {texts[1]}")


def check_models(device):
    """Kinds, positions, reversible blocks, both objectives."""
    linear = ("favor-softmax", "favor-relu", "favor-sderf", "favor-hyperbolic")
    for kind in (*linear, "exact", "local", "auto", "identity"):
        check_model(kind, small_model(kind), device)
    check_model("reversible", small_model("favor-softmax", reversible=True), device)
    check_model("learned positions", small_model("favor-softmax", positions="learned", max_length=64), device)
    check_model("token shift", small_model("favor-relu", token_shift=True), device)
    check_model("masked", small_model("favor-softmax", objective="masked"), device)


def step_seconds(model, tokens, autocast):
    """The least time of three training steps after one that warms up, and the peak of memory in MiB."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    best = float("inf")
    torch.cuda.reset_peak_memory_stats()
    for attempt in range(4):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            logits = model(tokens)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        if attempt:
            best = min(best, time.perf_counter() - start)
    return best, torch.cuda.max_memory_allocated() / 2**20


def timings(device, lengths):
    """Tokens a second of training steps of the papers' small model: 8 heads, 6 layers, hidden size 2048, width 512."""
    rows = []
    kinds = ("favor-softmax", "favor-relu", "exact", "identity")
    for length, autocast, kind in itertools.product(lengths, (False, True), kinds):
        if kind == "exact" and length > 8192:
            continue
        torch.cuda.empty_cache()
        config = ModelConfig(layers=6, width=512, heads=8, ffn=2048, dropout=0.1, objective="masked")
        model = LanguageModel(config, AttentionConfig(kind=kind)).to(device).train()
        tokens = torch.randint(4, 24, (max(1, 16384 // length), length), device=device)
        seconds, memory = step_seconds(model, tokens, autocast)
        row = dict(kind=kind, length=length, batch=tokens.shape[0], dtype="bfloat16" if autocast else "float32",
                   tokens_per_second=tokens.numel() / seconds, peak_mib=memory)
        rows.append(row)
        show(row)
    return rows


def main():
    saves = "add what was measured to this file, under the key package"
    options = parse(parser_of(__doc__, [1024, 8192, 65536], saves))
    check_maps(options.device)
    check_models(options.device)
    CHECKS.report()
    rows = timings(options.device, options.lengths) if options.device.startswith("cuda") else []
    if options.json:
        results = {}
        if os.path.exists(options.json):
            with open(options.json, encoding="utf-8") as file:
                results = json.load(file)
        results["package"] = CHECKS.results(rows=rows)
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)
    sys.exit(1 if CHECKS.failures else 0)


if __name__ == "__main__":
    main()
