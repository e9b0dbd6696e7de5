#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times performer.jax against google-research's fast_attention and a composition of jnp, all in one run on one machine.

    benchmarks/jax_compare.py --original PATH/TO/fast_attention.py [--threads N] [--clock cpu] [--output FILE.json]

The original is performer/fast_attention/jax/fast_attention.py of github.com/google-research/google-research, which
is not part of this project and needs gin-config. Without --original the script says so and compares with the
composition alone: the same FAVOR+ in jnp, causal by chunks of 128 (benchmarks/peers/candidates_jax.py). Everything
is compiled by jax.jit; the median of --repeats runs after a warm-up is reported, with the ratios of others' times to
ours. --clock cpu counts processor time of all threads instead of time on the wall, for machines with other work.
Before anything is timed, ours and the composition are compared with exact attention, and the original with ours
under reference=True, which states the original's numbers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


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
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time of all threads (%(default)s)")
    parser.add_argument("--output", help="write the results there, too (JSON)")
    return parser.parse_args()


def load_original(path: str):
    spec = importlib.util.spec_from_file_location("original_fast_attention", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def median_seconds(function, arguments, args) -> float:
    import jax

    print(".", end="", file=sys.stderr, flush=True)  # one point for each thing that is timed
    jax.block_until_ready(function(*arguments))
    times, now = [], CLOCKS[args.clock]
    for _ in range(args.repeats):
        begin = now()
        jax.block_until_ready(function(*arguments))
        times.append(now() - begin)
    return statistics.median(times)


def composed(args, causal: bool, features: int):
    """FAVOR+ in jnp, of [B, T, H, D]."""
    import candidates_jax
    import jax.numpy as jnp
    from performer.jax import draw_projection

    w = jnp.asarray(draw_projection(features, args.head_size)[0])
    attend = candidates_jax.attend_causally if causal else candidates_jax.attend

    def attention(q, k, v):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(attend(*candidates_jax.features(q, k, w), v), 1, 2)

    return attention


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
        "composed softmax": composed(args, causal, args.features),
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


def check(args, original) -> None:
    """Ours and the composition against exact attention, with many features; the original against its own numbers here."""
    import jax
    import jax.numpy as jnp
    import performer.jax

    q, k, v = (
        0.3 * jax.random.normal(key, (1, 64, 2, args.head_size)) for key in jax.random.split(jax.random.PRNGKey(1), 3)
    )

    def compare(name: str, found, expected, bound: float) -> None:
        error = float(jnp.abs(found - expected).max())
        if not error < bound:
            sys.exit(f"{name} is off by {error}, where {bound} is allowed: nothing was timed")

    for causal in (False, True):
        exact = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
        options = dict(nb_features=2048, unidirectional=causal, redraw_features=False)
        make = performer.jax.make_fast_softmax_attention
        compare("performer.jax", make(args.head_size, **options)(q, k, v), exact, 0.1)
        compare("the composition of jnp", composed(args, causal, 2048)(q, k, v), exact, 0.1)
        if original is not None:
            theirs = original.make_fast_softmax_attention(args.head_size, **options)(q, k, v)
            compare("the original", theirs, make(args.head_size, reference=True, **options)(q, k, v), 1e-4)


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
                    seconds = median_seconds(function, inputs, args)
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

        seconds = median_seconds(step, (params, optimizer.init(params)), args)
        rows.append(dict(what="training step", tokens=length, causal=True, name=name, seconds=seconds))
    return rows


def report(rows: list[dict]) -> None:
    print(f"{'what':18} {'tokens':>7} {'causal':>6}  {'attention':24} {'ms':>9}  original / ours  composed / ours")
    times = {(r["what"], r["tokens"], r["causal"], r["name"]): r["seconds"] for r in rows}
    for r in rows:
        ratios = []
        for other in ("original", "composed"):
            found = times.get((r["what"], r["tokens"], r["causal"], r["name"].replace("performer.jax", other)))
            ours = r["name"].startswith("performer.jax")
            ratios.append(f"{found / r['seconds']:15.2f}" if ours and found else " " * 15)
        line = f"{r['what']:18} {r['tokens']:7} {r['causal']!s:>6}  {r['name']:24} {1e3 * r['seconds']:9.3f}  {'  '.join(ratios)}"
        print(line.rstrip())


def main() -> None:
    args = parsed()
    if args.threads:  # before JAX makes its thread pool
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    original = load_original(args.original) if args.original else None
    if original is None:
        print("no --original was given, so google-research's fast_attention is left out", file=sys.stderr)
    check(args, original)
    rows = time_attention(args, original) + time_training_step(args, original)
    print(file=sys.stderr)
    report(rows)
    if args.output:
        with open(args.output, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
