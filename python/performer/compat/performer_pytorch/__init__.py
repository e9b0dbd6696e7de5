# SPDX-License-Identifier: Apache-2.0
"""performer-pytorch 1.1.4 by other means: the same classes, constructor arguments, state-dict names and numbers.

    from performer.compat.performer_pytorch import PerformerLM, AutoregressiveWrapper

Outputs equal recordings of that package, its epsilons, shifts and quirks included: a padding mask hides values and not
keys, causal attention adds 1e-6 to each feature of the key sum, softmax features are shifted by a maximum over the
whole sequence. Attention takes memory in proportion to the length; sums are taken in float64. For new models,
performer.LanguageModel is faster, and its causal attention never sees the future. Projections come from
torch's global generator. The modules below have performer-pytorch's names.
"""

from performer.compat.performer_pytorch.autoregressive_wrapper import (
    AutoregressiveWrapper,
    repetition_penalty_fn,
    top_k,
    top_p,
)
from performer.compat.performer_pytorch.performer_enc_dec import PerformerEncDec
from performer.compat.performer_pytorch.performer_pytorch import (
    AbsolutePositionalEmbedding,
    Always,
    Attention,
    AxialPositionalEmbedding,
    Chunk,
    CrossAttention,
    FastAttention,
    FeedForward,
    FixedPositionalEmbedding,
    Performer,
    PerformerLM,
    PreLayerNorm,
    PreScaleNorm,
    PreShiftTokens,
    ProjectionUpdater,
    ReZero,
    SelfAttention,
    apply_rotary_pos_emb,
    causal_linear_attention,
    causal_linear_attention_noncuda,
    gaussian_orthogonal_random_matrix,
    generalized_kernel,
    linear_attention,
    softmax_kernel,
)
from performer.compat.performer_pytorch.reversible import (
    Deterministic,
    ReversibleBlock,
    ReversibleSequence,
    SequentialSequence,
)

__all__ = [
    "AbsolutePositionalEmbedding",
    "Always",
    "Attention",
    "AutoregressiveWrapper",
    "AxialPositionalEmbedding",
    "Chunk",
    "CrossAttention",
    "Deterministic",
    "FastAttention",
    "FeedForward",
    "FixedPositionalEmbedding",
    "Performer",
    "PerformerEncDec",
    "PerformerLM",
    "PreLayerNorm",
    "PreScaleNorm",
    "PreShiftTokens",
    "ProjectionUpdater",
    "ReZero",
    "ReversibleBlock",
    "ReversibleSequence",
    "SelfAttention",
    "SequentialSequence",
    "apply_rotary_pos_emb",
    "causal_linear_attention",
    "causal_linear_attention_noncuda",
    "gaussian_orthogonal_random_matrix",
    "generalized_kernel",
    "linear_attention",
    "repetition_penalty_fn",
    "softmax_kernel",
    "top_k",
    "top_p",
]
