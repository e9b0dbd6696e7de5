# SPDX-License-Identifier: Apache-2.0
"""fast-transformers 0.4.0 by other means: builders, masks, feature maps, attentions, recurrent forms.

    from performer.compat.fast_transformers.builders import TransformerEncoderBuilder
    from performer.compat.fast_transformers.masking import TriangularCausalMask

Constructor arguments, state-dict names and numbers are those of that package: 1e-6 in the denominator, no shift of the
exponents of Favor, key lengths that hide key features. Attention types: linear, causal-linear and full. Sums of linear
attention are taken in float64; causal ones take memory in proportion to the length.
"""

from performer.compat.fast_transformers.attention import (
    AttentionLayer,
    CausalLinearAttention,
    FullAttention,
    LinearAttention,
    RecurrentCrossLinearAttention,
    RecurrentLinearAttention,
    causal_dot_product,
)
from performer.compat.fast_transformers.builders import (
    AttentionBuilder,
    RecurrentDecoderBuilder,
    RecurrentEncoderBuilder,
    TransformerDecoderBuilder,
    TransformerEncoderBuilder,
)
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
from performer.compat.fast_transformers.transformers import (
    RecurrentTransformerDecoder,
    RecurrentTransformerEncoder,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "ActivationFunctionFeatureMap",
    "AttentionBuilder",
    "AttentionLayer",
    "CausalLinearAttention",
    "Favor",
    "FeatureMap",
    "FullAttention",
    "FullMask",
    "GeneralizedRandomFeatures",
    "LengthMask",
    "LinearAttention",
    "RandomFourierFeatures",
    "RecurrentCrossLinearAttention",
    "RecurrentDecoderBuilder",
    "RecurrentEncoderBuilder",
    "RecurrentLinearAttention",
    "RecurrentTransformerDecoder",
    "RecurrentTransformerEncoder",
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
]
