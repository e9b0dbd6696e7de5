# SPDX-License-Identifier: Apache-2.0
"""Hugging Face: linear attention in transformers' models, and the project's own models as transformers' models.

    from performer.integrations.transformers import FavorCache, register
    register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="favor_softmax")
    model.generate(**inputs, cache=FavorCache())    # a state of constant size in the place of keys and values

Every model of transformers 5 that takes attention from ``AttentionInterface`` works: BERT, RoBERTa, ESM, DistilBERT,
GPT-2, LLaMA and others. What linear attention cannot do is refused by name: masks that distinguish queries, sliding
windows, output_attentions, biases of positions, attention sinks, soft caps.

Importing this module also makes the project's own models known, so that a folder of `performer train` loads:

    model = AutoModelForCausalLM.from_pretrained("runs/first")
    tokenizer = AutoTokenizer.from_pretrained("runs/first")
"""

from typing import Any, cast

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from performer.integrations.transformers.attention import implementation_name, register
from performer.integrations.transformers.cache import FavorCache, FavorCacheLayer, ModelCache
from performer.integrations.transformers.configuration import MODEL_TYPE, PerformerConfig
from performer.integrations.transformers.modeling import (
    PerformerForCausalLM,
    PerformerForMaskedLM,
    PerformerForSequenceClassification,
    PerformerModel,
)
from performer.integrations.transformers.tokenization import PerformerTokenizer

AutoConfig.register(MODEL_TYPE, PerformerConfig, exist_ok=True)
for _factory, _class in (
    (AutoModel, PerformerModel),
    (AutoModelForCausalLM, PerformerForCausalLM),
    (AutoModelForMaskedLM, PerformerForMaskedLM),
    (AutoModelForSequenceClassification, PerformerForSequenceClassification),
):
    cast(Any, _factory).register(PerformerConfig, _class, exist_ok=True)
AutoTokenizer.register(PerformerConfig, fast_tokenizer_class=PerformerTokenizer, exist_ok=True)

__all__ = [
    "FavorCache",
    "FavorCacheLayer",
    "ModelCache",
    "PerformerConfig",
    "PerformerForCausalLM",
    "PerformerForMaskedLM",
    "PerformerForSequenceClassification",
    "PerformerModel",
    "PerformerTokenizer",
    "implementation_name",
    "register",
]
