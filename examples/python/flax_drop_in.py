#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A flax Transformer with FAVOR+ attention: one argument changes. Needs performer, jax, flax and optax.

Trains a two-layer causal language model on a small text for a few steps, then compares its outputs with those of
exact attention.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import performer.jax

TEXT = "the quick brown fox jumps over the lazy dog. " * 40
HEADS, HEAD_SIZE, LENGTH = 2, 16, 128


class LanguageModel(nn.Module):
    """Two blocks of attention and a feed-forward layer; `exact` takes flax's own attention."""

    exact: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(128, HEADS * HEAD_SIZE)(tokens)
        x = x + nn.Embed(LENGTH, HEADS * HEAD_SIZE)(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens)
        for layer in range(2):
            # The one line: without attention_fn this is flax's softmax attention.
            performers = performer.jax.make_fast_softmax_attention(
                HEAD_SIZE, nb_features=256, unidirectional=True, layer=layer
            )
            attention = nn.MultiHeadDotProductAttention(
                HEADS, attention_fn=nn.dot_product_attention if self.exact else performers
            )
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            x = x + nn.Dense(HEADS * HEAD_SIZE)(nn.gelu(nn.Dense(4 * HEADS * HEAD_SIZE)(nn.LayerNorm()(x))))
        return nn.Dense(128)(nn.LayerNorm()(x))


def main() -> None:
    data = jnp.asarray([ord(c) for c in TEXT])
    windows = jnp.stack([data[i : i + LENGTH] for i in range(0, len(TEXT) - LENGTH, 97)])
    model, optimizer = LanguageModel(), optax.adam(3e-3)
    params = model.init(jax.random.PRNGKey(0), windows)

    def loss(params):
        logits = model.apply(params, windows)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()

    @jax.jit
    def step(params, state, number):
        with performer.jax.redraw_index(number // 20):  # a new projection every 20 steps
            value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    for number in range(60):
        params, state, value = step(params, state, number)
        if number % 20 == 0:
            print(f"step {number}: loss {float(value):.3f}")
    print(f"after 60 steps: loss {float(value):.3f}")
    assert float(value) < 1.5
    ours, exact = model.apply(params, windows[:1]), LanguageModel(exact=True).apply(params, windows[:1])
    same = float((ours.argmax(-1) == exact.argmax(-1)).mean())
    print(f"exact attention with the same weights predicts the same next character at {same:.0%} of the places")


if __name__ == "__main__":
    main()
