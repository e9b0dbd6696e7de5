# SPDX-License-Identifier: Apache-2.0
"""Candidates of the PyTorch environment: this project's operators, performer-pytorch, pytorch-fast-transformers, FAVOR+
composed of PyTorch operations (eager and compiled), exact attention, and language models made of these."""
import os

import numpy as np
import torch
import torch.nn.functional as F

import models_torch
from composed_torch import exact, favor, favor_definition

torch.set_num_threads(int(os.environ["PEERS_THREADS"]))
_compiled = {}


def compiled(causal):
    if causal not in _compiled:
        _compiled[causal] = torch.compile(lambda q, k, v, w: favor(q, k, v, w, causal), dynamic=False)
    return _compiled[causal]


def _ours(q, k, v, w, causal):
    # The operators take [B, L, H, D]; the transposed views cost nothing.
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.ops.performer.favor_attention(q, k, v, projection=w.float(), scale=q.shape[-1] ** -0.25,
                                               causal=causal)[0].transpose(1, 2)


def _performer_pytorch(q, k, v, w, causal):
    from performer_pytorch import performer_pytorch as peer
    q = peer.softmax_kernel(q, projection_matrix=w, is_query=True)
    k = peer.softmax_kernel(k, projection_matrix=w, is_query=False)
    return (peer.causal_linear_attention_noncuda if causal else peer.linear_attention)(q, k, v)


def _performer_pytorch_with_product(q, k, v, w, causal):
    """performer-pytorch's own form for CUDA, which uses the causal product of fast-transformers: here on the CPU."""
    from performer_pytorch import performer_pytorch as peer
    q = peer.softmax_kernel(q, projection_matrix=w, is_query=True)
    k = peer.softmax_kernel(k, projection_matrix=w, is_query=False)
    return peer.causal_linear_attention(q, k, v)


class FastTransformers:
    """Its linear attention layers with its Favor features, exp(w x) and exp(-w x), given half of the projection: the
    other half are the negatives."""

    def __init__(self, w, causal):
        from fast_transformers.attention.causal_linear_attention import CausalLinearAttention
        from fast_transformers.attention.linear_attention import LinearAttention
        from fast_transformers.feature_maps import Favor
        from fast_transformers.masking import FullMask, LengthMask, TriangularCausalMask
        size = w.shape[1]
        self.masks = (FullMask, LengthMask, TriangularCausalMask)
        kind = CausalLinearAttention if causal else LinearAttention
        self.layer = kind(size, Favor.factory(n_dims=w.shape[0], redraw=1 << 40, stabilize=True))
        self.layer.eval()
        self.causal, self.w = causal, w
        features = self.layer.feature_map
        features.new_feature_map = lambda device: features.omega.copy_(self.w[: self.w.shape[0] // 2].t())

    def __call__(self, q, k, v):
        full, lengths, triangle = self.masks
        tokens = q.shape[2]
        mask = triangle(tokens) if self.causal else full(tokens, tokens)
        all_of_them = lengths(torch.full((q.shape[0],), tokens, dtype=torch.int64), max_len=tokens)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return self.layer(q, k, v, mask, all_of_them, all_of_them).transpose(1, 2)


# name: (type of the inputs, function of q, k, v, projection and direction, directions)
BOTH, CAUSAL = ("bidirectional", "causal"), ("causal",)
KERNELS = {
    "definition": (torch.float64, favor_definition, BOTH),
    "ours": (torch.float32, _ours, BOTH),
    "ours bf16": (torch.bfloat16, _ours, BOTH),
    "composed FAVOR+": (torch.float32, favor, BOTH),
    "composed FAVOR+, torch.compile": (torch.float32, lambda q, k, v, w, causal: compiled(causal)(q, k, v, w), BOTH),
    "performer-pytorch": (torch.float32, _performer_pytorch, BOTH),
    "performer-pytorch, CPU product": (torch.float32, _performer_pytorch_with_product, CAUSAL),
    "fast-transformers": (torch.float32, None, BOTH),
    "exact definition": (torch.float64, exact, BOTH),
    "exact SDPA": (torch.float32, exact, BOTH),
    "exact SDPA bf16": (torch.bfloat16, exact, BOTH),
}


class KernelJob:
    def __init__(self, name, case):
        dtype, function, directions = KERNELS[name]
        if case["direction"] not in directions:
            raise ValueError(f"{name} has no {case['direction']} form")
        data = np.load(case["inputs"])
        self.causal, self.both = case["direction"] == "causal", case["pass"] == "forward_backward"
        self.w = torch.from_numpy(data["w"]).to(torch.float64 if dtype == torch.float64 else torch.float32)
        self.inputs = [torch.from_numpy(data[x]).to(dtype).requires_grad_(self.both) for x in "qkv"]
        self.grad = torch.from_numpy(data["g"]).to(dtype)
        if name == "fast-transformers":
            layer = FastTransformers(self.w, self.causal)
            function = lambda q, k, v, w, causal: layer(q, k, v)
        self.function = function
        self.out, self.gradients = None, ()

    def run(self):
        if not self.both:
            with torch.no_grad():
                self.out = self.function(*self.inputs, self.w, self.causal)
            return
        self.out = self.function(*self.inputs, self.w, self.causal)
        self.gradients = torch.autograd.grad(self.out, self.inputs, self.grad)

    def save(self, path):
        results = {"out": self.out, **dict(zip(("dq", "dk", "dv"), self.gradients))}
        np.savez(path, **{name: x.detach().double().numpy() for name, x in results.items()})


def names(op):
    if op == "kernels":
        return list(KERNELS)
    return list(models_torch.MODELS) if op == "train" else ["performer-pytorch"]


def versions():
    import importlib.metadata as metadata
    found = {"torch": torch.__version__}
    for package in ("performer-pytorch", "pytorch-fast-transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return found


def prepare(name, case):
    if case["op"] == "train":
        return models_torch.TrainJob(name, case)
    if case["op"] == "generation":
        return models_torch.GenerationJob(case)
    if name.startswith("ours"):
        torch.ops.load_library(case["library"])
    return KernelJob(name, case)
