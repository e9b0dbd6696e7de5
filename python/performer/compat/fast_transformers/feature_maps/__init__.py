# SPDX-License-Identifier: Apache-2.0
"""Feature maps of linear attention; builders and attentions take a factory, such as Favor.factory(n_dims=256)."""

from performer.compat.fast_transformers.feature_maps.base import (
    ActivationFunctionFeatureMap,
    FeatureMap,
    elu_feature_map,
)
from performer.compat.fast_transformers.feature_maps.fourier_features import (
    Favor,
    GeneralizedRandomFeatures,
    RandomFourierFeatures,
    SmoothedRandomFourierFeatures,
)

__all__ = [
    "ActivationFunctionFeatureMap",
    "Favor",
    "FeatureMap",
    "GeneralizedRandomFeatures",
    "RandomFourierFeatures",
    "SmoothedRandomFourierFeatures",
    "elu_feature_map",
]
