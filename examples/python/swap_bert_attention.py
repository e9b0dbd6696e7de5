# SPDX-License-Identifier: Apache-2.0
"""Swaps the attention of a BERT for linear attention and compares: swap_bert_attention.py [MODEL].

Without a model's name a small random one is made.
"""

import sys

import torch
from transformers import AutoModel, BertConfig, BertModel

from performer import FeatureMap
from performer.integrations.transformers import register

register("favor_1024", FeatureMap(features=1024))
torch.manual_seed(0)
model = AutoModel.from_pretrained(sys.argv[1]) if len(sys.argv) > 1 else BertModel(BertConfig(num_hidden_layers=4))
model.eval()
tokens = torch.randint(1000, 2000, (2, 64))
mask = torch.ones_like(tokens)
mask[1, 40:] = 0
with torch.no_grad():
    exact = model(tokens, attention_mask=mask).last_hidden_state[mask.bool()]
    model.set_attn_implementation("favor_1024")
    linear = model(tokens, attention_mask=mask).last_hidden_state[mask.bool()]
print(f"relative difference of the last hidden states: {(linear - exact).norm() / exact.norm():.4f}")
