# SPDX-License-Identifier: Apache-2.0
"""The project's language models: blocks, model folder, tokenizers, generation, scores, embeddings."""

from performer.models.blocks import Block, Context
from performer.models.config import AttentionConfig, ModelConfig
from performer.models.fasta import Record, read_fasta
from performer.models.inference import Embedding, Generated, Score, embed, generate, score
from performer.models.language_model import DecodeState, LanguageModel, Representations
from performer.models.stacks import PerformerDecoder, PerformerEncoder
from performer.models.vocabulary import Vocabulary

__all__ = [
    "AttentionConfig",
    "Block",
    "Context",
    "DecodeState",
    "Embedding",
    "Generated",
    "LanguageModel",
    "ModelConfig",
    "PerformerDecoder",
    "PerformerEncoder",
    "Record",
    "Representations",
    "Score",
    "Vocabulary",
    "embed",
    "generate",
    "read_fasta",
    "score",
]
