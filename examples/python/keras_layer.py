#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A Keras classifier with KernelAttention. Needs performer, keras and, by KERAS_BACKEND, torch or jax.

The task: does a sequence have a certain token at two places? Trains, saves, reloads.
"""

import os
import tempfile

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

from performer.keras import KernelAttention


def main() -> None:
    random = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    x = random.integers(1, 19, (256, 64))
    y = random.integers(0, 2, 256)
    x[y == 1, 7] = x[y == 1, 40] = 19  # what the classes differ in
    x[:, 56:] = 0  # padding, masked by the embedding

    tokens = keras.Input((64,), dtype="int32")
    h = keras.layers.Embedding(20, 32, mask_zero=True)(tokens)
    h = h + KernelAttention(num_heads=2, key_dim=16, feature_transform="exp", num_random_features=64)(h, h)
    h = keras.layers.GlobalAveragePooling1D()(h)
    model = keras.Model(tokens, keras.layers.Dense(1, activation="sigmoid")(h))
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=["accuracy"])
    history = model.fit(x, y, epochs=6, batch_size=32, verbose=0).history
    print(f"accuracy after 6 epochs: {history['accuracy'][-1]:.2f}")
    assert history["accuracy"][-1] > 0.75

    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        reloaded = keras.models.load_model(f"{folder}/model.keras")
    difference = np.abs(reloaded.predict(x[:8], verbose=0) - model.predict(x[:8], verbose=0)).max()
    print(f"largest difference after reloading: {difference:.1e}")
    assert difference < 1e-5


if __name__ == "__main__":
    main()
