# SPDX-License-Identifier: Apache-2.0
"""The composed FAVOR+ of composed_torch.py in JAX, jitted."""
import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 128


def features(q, k, w):
    scale = q.shape[-1] ** -0.25
    uq, uk = (q * scale) @ w.T, (k * scale) @ w.T
    uk = uk - jnp.square(k * scale).sum(-1, keepdims=True) / 2
    stop = jax.lax.stop_gradient
    return jnp.exp(uq - stop(uq.max(-1, keepdims=True))), jnp.exp(uk - stop(uk.max((-1, -2), keepdims=True)))


def attend(fq, fk, v):
    return (fq @ (fk.swapaxes(-1, -2) @ v)) / (fq @ fk.sum(-2)[..., None])


def attend_causally(fq, fk, v):
    batch, heads, length, _ = v.shape
    missing = -length % CHUNK
    padded = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0))).reshape(batch, heads, -1, CHUNK, x.shape[-1])
    fq, fk, v = padded(fq), padded(fk), padded(v)
    v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
    states = jnp.cumsum(fk.swapaxes(-1, -2) @ v, 2)
    before = jnp.concatenate([jnp.zeros_like(states[:, :, :1]), states[:, :, :-1]], 2)
    out = fq @ before + jnp.tril(fq @ fk.swapaxes(-1, -2)) @ v
    out = out[..., :-1] / out[..., -1:]
    return out.reshape(batch, heads, -1, out.shape[-1])[:, :, :length]


class KernelJob:
    def __init__(self, case):
        data = np.load(case["inputs"])
        self.inputs = [jnp.asarray(data[x]) for x in "qkv"]
        w, g = jnp.asarray(data["w"]), jnp.asarray(data["g"])
        causal = case["direction"] == "causal"

        def forward(q, k, v):
            fq, fk = features(q, k, w)
            return attend_causally(fq, fk, v) if causal else attend(fq, fk, v)

        def both(q, k, v):
            out, back = jax.vjp(forward, q, k, v)
            return out, *back(g)

        self.function = jax.jit(both if case["pass"] == "forward_backward" else lambda *x: (forward(*x),))
        self.results = ()

    def run(self):
        self.results = jax.block_until_ready(self.function(*self.inputs))

    def save(self, path):
        np.savez(path, **dict(zip(("out", "dq", "dk", "dv"), (np.asarray(x, np.float64) for x in self.results))))


def names(op):
    return ["composed FAVOR+, JAX"] if op == "kernels" else []


def versions():
    return {"jax": jax.__version__}


def prepare(name, case):
    return KernelJob(case)
