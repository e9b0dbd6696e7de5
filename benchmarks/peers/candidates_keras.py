# SPDX-License-Identifier: Apache-2.0
"""KernelAttention of tf-models-official, without its dense layers, as a graph. Its causal form sees windows of chunks and
is another function."""
import os

import numpy as np

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
import tensorflow as tf  # noqa: E402
from official.nlp.modeling.layers import kernel_attention  # noqa: E402

tf.config.threading.set_intra_op_parallelism_threads(int(os.environ["PEERS_THREADS"]))
tf.config.threading.set_inter_op_parallelism_threads(1)


class KernelJob:
    def __init__(self, case):
        if case["direction"] == "causal":
            raise ValueError("KernelAttention's causal form sees windows of chunks, which is another function")
        data = np.load(case["inputs"])
        # [B, T, H, D], as the layer has them.
        self.inputs = [tf.constant(data[x].transpose(0, 2, 1, 3)) for x in "qkv"]
        grad = tf.constant(data["g"].transpose(0, 2, 1, 3))
        heads, size = data["q"].shape[1], data["q"].shape[3]
        layer = kernel_attention.KernelAttention(num_heads=heads, key_dim=size, feature_transform="exp",
                                                 num_random_features=data["w"].shape[0])
        layer._projection_matrix = tf.constant(data["w"])
        both = case["pass"] == "forward_backward"

        @tf.function
        def function(q, k, v):
            if not both:
                return (layer._compute_attention(q, k, v, "exp", False),)
            with tf.GradientTape() as tape:
                tape.watch([q, k, v])
                out = layer._compute_attention(q, k, v, "exp", False)
            return out, *tape.gradient(out, [q, k, v], output_gradients=grad)

        self.function, self.results = function, ()

    def run(self):
        self.results = self.function(*self.inputs)
        self.results[-1].numpy()  # waits for it

    def save(self, path):
        arrays = (x.numpy().transpose(0, 2, 1, 3).astype(np.float64) for x in self.results)
        np.savez(path, **dict(zip(("out", "dq", "dk", "dv"), arrays)))


def names(op):
    return ["Keras KernelAttention"] if op == "kernels" else []


def versions():
    import importlib.metadata as metadata
    return {name: metadata.version(name) for name in ("tensorflow", "tf-models-official")}


def prepare(name, case):
    return KernelJob(case)
