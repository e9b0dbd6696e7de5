#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times performer.jax against google-research's fast_attention, both in one run on one machine.

    benchmarks/jax_compare.py --original PATH/TO/fast_attention.py [--threads N] [--output FILE.json]

The original is performer/fast_attention/jax/fast_attention.py of github.com/google-research/google-research, which
is not part of this project. Without --original only performer.jax and softmax attention are timed. Everything is
compiled by jax.jit; the median of --repeats runs after a warm-up is reported, with the ratio of the original's
time to ours. Before anything is timed, ours is compared with exact attention where that is feasible.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--original", help="the original's fast_attention.py")
    parser.add_argument("--lengths", default="256,1024,4096", help="tokens, comma-separated (%(default)s)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--training-tokens", type=int, default=1024, help="of the training step (%(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="cores to run on; 0: all")
    parser.add_argument("--output", help="write the results there, too (JSON)")
    return parser.parse_args()


def load_original(path: str):
    spec = importlib.util.spec_from_file_location("original_fast_attention", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def median_seconds(function, arguments, repeats: int) -> float:
    import jax

    print(".", end="", file=sys.stderr, flush=True)  # one point for each thing that is timed
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def attentions(args, original, causal: bool):
    """Name -> attention function of (query, key, value)."""
    import jax
    import performer.jax

    options = dict(nb_features=args.features, unidirectional=causal, redraw_features=False)
    found = {
        "performer.jax softmax": performer.jax.make_fast_softmax_attention(args.head_size, **options),
        "performer.jax relu": performer.jax.make_fast_generalized_attention(
            args.head_size, features_type="ortho", **options
        ),
        "exact": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=causal),
    }
    if original is not None:
        found["original softmax"] = original.make_fast_softmax_attention(
            args.head_size, lax_scan_unroll=16 if causal else 1, **options
        )
        found["original relu"] = original.make_fast_generalized_attention(
            args.head_size, features_type="ortho", lax_scan_unroll=16 if causal else 1, **options
        )
    return found


def check(args) -> None:
    """Ours against exact attention, with many features."""
    import jax
    import jax.numpy as jnp
    import performer.jax

    q, k, v = (
        0.3 * jax.random.normal(key, (1, 64, 2, args.head_size)) for key in jax.random.split(jax.random.PRNGKey(1), 3)
    )
    ours = performer.jax.make_fast_softmax_attention(args.head_size, nb_features=2048)(q, k, v)
    error = float(jnp.abs(ours - jax.nn.dot_product_attention(q, k, v)).max())
    if not error < 0.1:
        sys.exit(f"performer.jax differs from exact attention by {error}: nothing was timed")


def time_attention(args, original) -> list[dict]:
    import jax
    import jax.numpy as jnp

    rows = []
    for length in (int(n) for n in args.lengths.split(",")):
        shape = (args.batch, length, args.heads, args.head_size)
        inputs = [0.5 * jax.random.normal(key, shape) for key in jax.random.split(jax.random.PRNGKey(0), 3)]
        for causal in (False, True):
            for name, attention in attentions(args, original, causal).items():
                forward = jax.jit(attention)
                backward = jax.jit(jax.grad(lambda q, k, v, f=attention: jnp.square(f(q, k, v)).sum(), (0, 1, 2)))
                for what, function in (("forward", forward), ("forward+backward", backward)):
                    seconds = median_seconds(function, inputs, args.repeats)
                    rows.append(dict(what=what, tokens=length, causal=causal, name=name, seconds=seconds))
    return rows


def time_training_step(args, original) -> list[dict]:
    """A step of a flax.linen language model of two layers."""
    import flax.linen as nn
    import jax
    import optax

    length, width, rows = args.training_tokens, args.heads * args.head_size, []
    tokens = jax.random.randint(jax.random.PRNGKey(0), (args.batch, length), 0, 32)
    for name, attention in attentions(args, original, causal=True).items():

        def attend(query, key, value, f=attention):  # the original knows none of linen's arguments
            return f(query, key, value)

        class Model(nn.Module):
            @nn.compact
            def __call__(self, tokens, attend=attend):
                x = nn.Embed(32, width)(tokens)
                for _ in range(2):
                    x = x + nn.MultiHeadDotProductAttention(args.heads, attention_fn=attend)(nn.LayerNorm()(x))
                    x = x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x))))
                return nn.Dense(32)(x)

        model, optimizer = Model(), optax.adam(1e-3)
        params = model.init(jax.random.PRNGKey(1), tokens)

        @jax.jit
        def step(params, state, model=model, optimizer=optimizer):
            def loss(params):
                logits = model.apply(params, tokens)[:, :-1]
                return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return optax.apply_updates(params, updates), state

        seconds = median_seconds(step, (params, optimizer.init(params)), args.repeats)
        rows.append(dict(what="training step", tokens=length, causal=True, name=name, seconds=seconds))
    return rows


def report(rows: list[dict]) -> None:
    print(f"{'what':18} {'tokens':>7} {'causal':>6}  {'attention':24} {'ms':>9}  original / ours")
    times = {(r["what"], r["tokens"], r["causal"], r["name"]): r["seconds"] for r in rows}
    for r in rows:
        other = times.get((r["what"], r["tokens"], r["causal"], r["name"].replace("performer.jax", "original")))
        ratio = f"{other / r['seconds']:.2f}" if other and r["name"].startswith("performer.jax") else ""
        line = f"{r['what']:18} {r['tokens']:7} {r['causal']!s:>6}  {r['name']:24} {1e3 * r['seconds']:9.3f}  {ratio}"
        print(line.rstrip())


def main() -> None:
    args = parsed()
    if args.threads:  # before JAX makes its thread pool
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    original = load_original(args.original) if args.original else None
    check(args)
    rows = time_attention(args, original) + time_training_step(args, original)
    print(file=sys.stderr)
    report(rows)
    if args.output:
        with open(args.output, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
