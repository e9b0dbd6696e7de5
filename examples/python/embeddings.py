# SPDX-License-Identifier: Apache-2.0
"""Embeds the proteins of two FASTA files and tells them apart by scikit-learn: embeddings.py FOLDER A.fasta B.fasta."""

import sys

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from performer import LanguageModel, embed

model = LanguageModel.from_pretrained(sys.argv[1])
embedded = [[one.mean for one in embed(model, path)] for path in sys.argv[2:4]]
features = torch.stack([mean for means in embedded for mean in means]).numpy()
labels = [label for label, means in enumerate(embedded) for _ in means]
accuracy = cross_val_score(LogisticRegression(max_iter=1000), features, labels, cv=3).mean()
print(f"{len(labels)} sequences, accuracy over three folds: {accuracy:.3f}")
