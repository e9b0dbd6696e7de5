# SPDX-License-Identifier: Apache-2.0
"""Trains a small causal protein model on a FASTA file: train.py FASTA FOLDER [STEPS]. The program can go on with it."""

import sys

import torch

from performer import AttentionConfig, LanguageModel, ModelConfig, Vocabulary, generate, read_fasta

fasta, folder, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 200
vocabulary = Vocabulary.protein()
sequences = [record.tokens for record in read_fasta(fasta, vocabulary)]
model = LanguageModel(ModelConfig(layers=2, width=64, heads=2, ffn=256), AttentionConfig("favor-softmax"))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for step in range(steps):
    chosen = torch.randint(len(sequences), (8,)).tolist()
    pieces = [[vocabulary.bos, *sequences[index][:255], vocabulary.eos] for index in chosen]
    inputs = torch.tensor([[token for piece in pieces for token in piece[:-1]]])
    targets = torch.tensor([token for piece in pieces for token in piece[1:]])
    bounds = torch.tensor([0, *(len(piece) - 1 for piece in pieces)]).cumsum(0)
    loss = torch.nn.functional.cross_entropy(model(inputs, cu_seqlens=bounds)[0], targets)  # packed: no padding
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0 or step == steps - 1:
        print(f"step {step}: loss {loss.item():.3f}")

model.save_pretrained(folder)
print(next(generate(model, max_length=60)).text)
