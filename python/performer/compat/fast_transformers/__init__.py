# SPDX-License-Identifier: Apache-2.0
"""fast-transformers 0.4.0 by other means: builders, masks, feature maps, attentions, recurrent forms.

    from performer.compat.fast_transformers.builders import TransformerEncoderBuilder
    from performer.compat.fast_transformers.masking import TriangularCausalMask

Constructor arguments, state-dict names and numbers are those of that package: 1e-6 in the denominator, no shift of the
exponents of Favor, key lengths that hide key features. Sums of linear attention are taken in float64; causal ones take
memory in proportion to the length. The modules below have that package's names.

Attention types: linear, causal-linear, full, local, exact-topk, conditional-full:OTHER; recurrent: linear,
causal-linear, full. Those that hash (clustered, improved-clustered, causal-improved-clustered, reformer) are refused.
"""

from performer.compat.fast_transformers.attention import (
    AttentionLayer,
    CausalLinearAttention,
    ConditionalFullAttention,
    ExactTopKAttention,
    FullAttention,
    LinearAttention,
    LocalAttention,
)
from performer.compat.fast_transformers.builders import (
    AttentionBuilder,
    RecurrentAttentionBuilder,
    RecurrentCrossAttentionBuilder,
    RecurrentDecoderBuilder,
    RecurrentEncoderBuilder,
    TransformerDecoderBuilder,
    TransformerEncoderBuilder,
)
from performer.compat.fast_transformers.causal_product import causal_dot_product
from performer.compat.fast_transformers.events import AttentionEvent, EventDispatcher, QKVEvent
from performer.compat.fast_transformers.feature_maps import (
    ActivationFunctionFeatureMap,
    Favor,
    FeatureMap,
    GeneralizedRandomFeatures,
    RandomFourierFeatures,
    SmoothedRandomFourierFeatures,
    elu_feature_map,
)
from performer.compat.fast_transformers.masking import FullMask, LengthMask, TriangularCausalMask
from performer.compat.fast_transformers.recurrent.attention import (
    RecurrentAttentionLayer,
    RecurrentCrossAttentionLayer,
    RecurrentCrossFullAttention,
    RecurrentCrossLinearAttention,
    RecurrentFullAttention,
    RecurrentLinearAttention,
)
from performer.compat.fast_transformers.recurrent.transformers import (
    RecurrentTransformerDecoder,
    RecurrentTransformerDecoderLayer,
    RecurrentTransformerEncoder,
    RecurrentTransformerEncoderLayer,
)
from performer.compat.fast_transformers.transformers import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from performer.compat.fast_transformers.utils import make_mirror

__all__ = [
    "ActivationFunctionFeatureMap",
    "AttentionBuilder",
    "AttentionEvent",
    "AttentionLayer",
    "CausalLinearAttention",
    "ConditionalFullAttention",
    "EventDispatcher",
    "ExactTopKAttention",
    "Favor",
    "FeatureMap",
    "FullAttention",
    "FullMask",
    "GeneralizedRandomFeatures",
    "LengthMask",
    "LinearAttention",
    "LocalAttention",
    "QKVEvent",
    "RandomFourierFeatures",
    "RecurrentAttentionBuilder",
    "RecurrentAttentionLayer",
    "RecurrentCrossAttentionBuilder",
    "RecurrentCrossAttentionLayer",
    "RecurrentCrossFullAttention",
    "RecurrentCrossLinearAttention",
    "RecurrentDecoderBuilder",
    "RecurrentEncoderBuilder",
    "RecurrentFullAttention",
    "RecurrentLinearAttention",
    "RecurrentTransformerDecoder",
    "RecurrentTransformerDecoderLayer",
    "RecurrentTransformerEncoder",
    "RecurrentTransformerEncoderLayer",
    "SmoothedRandomFourierFeatures",
    "TransformerDecoder",
    "TransformerDecoderBuilder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderBuilder",
    "TransformerEncoderLayer",
    "TriangularCausalMask",
    "causal_dot_product",
    "elu_feature_map",
    "make_mirror",
]
