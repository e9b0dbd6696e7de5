# SPDX-License-Identifier: Apache-2.0
"""Language models of the papers' size (8 heads, 6 layers, inner size 2048, width 512) for training steps: the plain
composition of PyTorch's layers with one of several attentions, and performer-pytorch's own model."""
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from composed_torch import exact, favor

HEADS, LAYERS, INNER, WIDTH, TOKENS, FEATURES = 8, 6, 2048, 512, 29, 256


def rotate(x, table):
    even, odd = x[..., 0::2], x[..., 1::2]
    cosine, sine = table
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).flatten(-2)


class Block(nn.Module):
    def __init__(self, attention, causal):
        super().__init__()
        self.attention, self.causal = attention, causal
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.wide, self.narrow = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.register_buffer("projection", torch.randn(FEATURES, WIDTH // HEADS))

    def heads(self, x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def attend(self, x, table):
        v = self.heads(self.value(x))
        if self.attention is not None:
            q, k = rotate(self.heads(self.query(x)), table), rotate(self.heads(self.key(x)), table)
            v = self.attention(q.to(v.dtype), k.to(v.dtype), v, self.projection.to(v.dtype), self.causal)
        return self.out(v.transpose(1, 2).flatten(2))

    def forward(self, x, table):
        x = x + F.dropout(self.attend(self.first(x), table), 0.1)
        inner = F.dropout(F.gelu(self.wide(self.second(x)), approximate="tanh"), 0.1)
        return x + F.dropout(self.narrow(inner), 0.1)


class PlainModel(nn.Module):
    def __init__(self, attention, causal):
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList([Block(attention, causal) for _ in range(LAYERS)])
        self.norm, self.logits = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens):
        size = WIDTH // HEADS
        place = torch.arange(tokens.shape[1])[:, None] / 10000 ** (torch.arange(0, size, 2) / size)
        table = place.cos(), place.sin()
        x = F.dropout(self.embedding(tokens), 0.1)
        for block in self.blocks:
            x = block(x, table)
        return self.logits(self.norm(x))


def peer_model(length, causal):
    from performer_pytorch import PerformerLM
    return PerformerLM(num_tokens=TOKENS, max_seq_len=length, dim=WIDTH, depth=LAYERS, heads=HEADS, causal=causal,
                       nb_features=FEATURES, ff_mult=INNER // WIDTH, emb_dropout=0.1, ff_dropout=0.1)


# name: (attention of the plain model, or "peer"; compiled)
MODELS = {
    "plain identity": (None, False),
    "plain exact SDPA": (exact, False),
    "plain composed FAVOR+": (favor, False),
    "plain composed FAVOR+, torch.compile": (favor, True),
    "performer-pytorch": ("peer", False),
}


class TrainJob:
    """Whole steps: gradients of the cross entropy, clipping, AdamW."""

    def __init__(self, name, case):
        attention, compile_it = MODELS[name]
        causal = case["direction"] == "causal"
        torch.manual_seed(1)
        self.model = peer_model(case["length"], causal) if attention == "peer" else PlainModel(attention, causal)
        self.half = case["dtype"] == "bfloat16"
        self.tokens = torch.randint(0, 20, (case["batch"], case["length"]))
        self.call = torch.compile(self.model, dynamic=False) if compile_it else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, betas=(0.9, 0.98), weight_decay=0.1)
        self.loss = math.nan

    def run(self):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits = self.call(self.tokens)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), self.tokens[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.step()
        self.loss = loss.item()
        if not math.isfinite(self.loss):
            raise ArithmeticError(f"the loss is {self.loss}")

    def save(self, path):
        np.savez(path, loss=self.loss)


class GenerationJob:
    """One pass of performer-pytorch's generate() when `length` tokens are there: it reads all of them for the next."""

    def __init__(self, case):
        torch.manual_seed(1)
        self.model = peer_model(max(case["length"], 2), True).eval()
        self.tokens = torch.randint(0, 20, (case["batch"], case["length"]))
        self.logits = None

    @torch.no_grad()
    def run(self):
        self.logits = self.model(self.tokens)[:, -1]

    def save(self, path):
        np.savez(path, logits=self.logits.numpy())
