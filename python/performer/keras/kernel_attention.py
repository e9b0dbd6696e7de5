# SPDX-License-Identifier: Apache-2.0
"""The KernelAttention layer of TensorFlow Model Garden, for Keras 3: multi-head attention by kernel features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from performer._kernels_library import draw_projection
from performer.keras import _features, _linear, _projection, _windows
from performer.keras._options import check, check_options
from performer.keras._original import call_reference
from performer.keras.cache import KernelAttentionCache

Tensor = Any

_MOMENT_DECAY = 0.99  # of the running moments, a training step


@keras.saving.register_keras_serializable(package="performer")
class KernelAttention(keras.layers.Layer):  # type: ignore[misc]
    """Multi-head attention by kernel features, in time and memory linear in the length.

    The arguments are those of the layer of TensorFlow Model Garden 2.19 and of ``keras.layers.MultiHeadAttention``,
    and so are names and shapes of the weights. What the options were meant to do is computed by this project's
    kernels; ``reference=True`` computes what that layer computes, its faults included (docs/kernel_attention.md
    lists them), for models that were trained with it.

    Args:
        num_heads: H.
        key_dim: D, the size of a head's queries and keys.
        value_dim: E, the size of a head's values; None: key_dim.
        dropout: share of the attention's outputs (not of weights, which do not exist) that training drops.
        use_bias: whether the projections of inputs and outputs have biases.
        output_shape: last dimensions of the output; None: that of the queries.
        attention_axes: refused, unless None or 1: the layer ignores it.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer, activity_regularizer,
            kernel_constraint, bias_constraint: of the projections of inputs and outputs.
        feature_transform: ``exp``: positive random features of the softmax (FAVOR+, arXiv 2009.14794);
            ``expmod``: as if all inputs had the squared norm sqrt(D); ``expplus``: optimal ones for the second
            moments of queries and keys (FAVOR++, arXiv 2205.15317), which come from the call where it sees whole
            sequences and from earlier training steps where it is causal; ``relu`` (+ 1e-3), ``elu`` (+ 1,
            arXiv 2006.16236), ``square``, ``identity``: element-wise features.
        num_random_features: M; 0: the features of the queries and keys themselves.
        seed: of the projection, one for each head. Layers of one model should have different ones.
        redraw: every training call draws a new projection, which inference then uses.
        is_short_seq: exact softmax attention, for short sequences.
        begin_kernel: so many first tokens use exact softmax attention, with an output projection of their own.
        scale: of the scores; None: key_dim^(-1/2).
        scale_by_length: scale times ln(number of keys that are not masked) / ln 512, for each example. Needs a
            mask.
        use_causal_windowed: causal attention to a window: a token sees the tokens up to itself in its own chunk
            and the chunks before it in the window.
        causal_chunk_length: tokens of a chunk.
        causal_window_length: chunks of a window, the own one included.
        causal_window_decay: factor of the weights of keys for each chunk of distance, from 0 to 1; None: 1.
        causal_padding: of no effect but with ``reference=True``: lengths need not be multiples of the chunk.
        reference: the numbers of the original.

    Raises:
        ValueError: options that are impossible or exclude each other; the message names them.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | Sequence[int] | None = None,
        attention_axes: int | Sequence[int] | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        feature_transform: str = "exp",
        num_random_features: int = 256,
        seed: int = 0,
        redraw: bool = False,
        is_short_seq: bool = False,
        begin_kernel: int = 0,
        scale: float | None = None,
        scale_by_length: bool = False,
        use_causal_windowed: bool = False,
        causal_chunk_length: int = 1,
        causal_window_length: int = 3,
        causal_window_decay: float | None = None,
        causal_padding: str | None = None,
        reference: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)
        self.supports_masking = True
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim or key_dim
        self.dropout = dropout
        self.use_bias = use_bias
        self.attention_axes = attention_axes
        self._given_output_shape = (output_shape,) if isinstance(output_shape, int) else output_shape
        self._dense_options = {
            "kernel_initializer": keras.initializers.get(kernel_initializer),
            "bias_initializer": keras.initializers.get(bias_initializer),
            "kernel_regularizer": keras.regularizers.get(kernel_regularizer),
            "bias_regularizer": keras.regularizers.get(bias_regularizer),
            "kernel_constraint": keras.constraints.get(kernel_constraint),
            "bias_constraint": keras.constraints.get(bias_constraint),
        }
        self.feature_transform = feature_transform
        self.num_random_features = num_random_features
        self.seed = seed
        self.redraw = redraw
        self.is_short_seq = is_short_seq
        self.begin_kernel = begin_kernel
        self.scale = scale
        self.scale_by_length = scale_by_length
        self.use_causal_windowed = use_causal_windowed
        self.causal_chunk_length = causal_chunk_length
        self.causal_window_length = causal_window_length
        self.causal_window_decay = causal_window_decay
        self.causal_padding = causal_padding
        self.reference = reference
        self.projection: Any = None
        self._output_dense_softmax: Any = None
        self._moments: Any = None
        check_options(self)

    # Weights.

    def _dense(self, equation: str, shape: tuple[Any, ...], bias_axes: str, name: str) -> Any:
        def fresh(key: str, module: Any) -> Any:
            option = self._dense_options[key]
            if option is None or not hasattr(option, "get_config"):
                return option
            return module.deserialize(module.serialize(option))  # one seed a layer, not one for all

        options = {
            "kernel_initializer": fresh("kernel_initializer", keras.initializers),
            "bias_initializer": fresh("bias_initializer", keras.initializers),
            **{key: value for key, value in self._dense_options.items() if not key.endswith("initializer")},
        }
        dense = keras.layers.EinsumDense(
            equation,
            output_shape=shape,
            bias_axes=bias_axes if self.use_bias else None,
            name=name,
            dtype=self.dtype_policy,
            **options,
        )
        dense.supports_masking = True  # masks pass it by; Keras would warn that they are lost
        return dense

    def build(
        self,
        query_shape: tuple[int | None, ...],
        value_shape: tuple[int | None, ...],
        key_shape: tuple[int | None, ...] | None = None,
    ) -> None:
        """Makes the weights for inputs ``[B, T, width]``, ``[B, S, width]`` and ``[B, S, width]``."""
        key_shape = value_shape if key_shape is None else key_shape
        for name, shape in (("query", query_shape), ("value", value_shape), ("key", key_shape)):
            check(len(shape) == 3, f"{name} must be [batch, tokens, width], found {tuple(shape)}")
        heads = (None, self.num_heads)
        self._query_dense = self._dense("abc,cde->abde", (*heads, self.key_dim), "de", "query")
        self._key_dense = self._dense("abc,cde->abde", (*heads, self.key_dim), "de", "key")
        self._value_dense = self._dense("abc,cde->abde", (*heads, self.value_dim), "de", "value")
        out = tuple(self._given_output_shape or (query_shape[-1],))
        letters = "efghijkl"[: len(out)]
        output = (f"abcd,cd{letters}->ab{letters}", (None, *out), letters)
        attended = (query_shape[0], query_shape[1], self.num_heads, self.value_dim)
        self._output_dense = self._dense(*output, "attention_output")
        self._output_dense.build(attended)
        if self.begin_kernel > 0:
            self._output_dense_softmax = self._dense(*output, "attention_output_softmax")
            self._output_dense_softmax.build(attended)
        for dense, shape in (
            (self._query_dense, query_shape),
            (self._key_dense, key_shape),
            (self._value_dense, value_shape),
        ):
            dense.build(shape)
        self._dropout_layer = keras.layers.Dropout(self.dropout, dtype=self.dtype_policy)
        self._build_projection()
        self.built = True

    def _build_projection(self) -> None:
        if self.num_random_features <= 0:
            return
        if self.redraw:
            self._redraw_generator = keras.random.SeedGenerator(self.seed)

        def constant(name: str, value: np.ndarray[Any, Any]) -> Any:
            return self.add_weight(
                name=name,
                shape=value.shape,
                initializer=lambda shape, dtype=None: ops.convert_to_tensor(value, dtype),
                trainable=False,
                dtype="float32",
                autocast=False,
            )

        if self.reference:
            drawn = _projection.from_seed(self.num_random_features, self.key_dim, self.seed)
        else:
            drawn = draw_projection(self.num_random_features, self.key_dim, self.num_heads, seed=self.seed)
        self.projection = constant("projection", drawn)
        if self.feature_transform == "expplus" and not self.reference:
            # Sums over the dimensions of |q|^2 + |k|^2 and the product of means: all that expplus needs.
            self._moments = constant("moments", np.zeros((self.num_heads,), np.float32))

    # Calls.

    def call(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        query_mask: Tensor | None = None,
        value_mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: KernelAttentionCache | None = None,
        training: bool | None = None,
        use_causal_mask: bool = False,
    ) -> Tensor:
        """Attends.

        Args:
            query: ``[B, T, width]``.
            value: ``[B, S, width]``.
            key: ``[B, S, width]``; None: value.
            query_mask, value_mask, key_mask: ``[B, T]`` or ``[B, S]``, given by Keras where layers before this
                one have masks. Rows of masked queries are zero before the output projection.
            attention_mask: ``[B, S]`` or ``[B, 1, S]``, not 0 keeps a key. (With ``reference=True`` floating
                numbers ``[B, S]`` that weigh keys.)
            cache: the call continues the sequences of the calls before it with the same cache, which it changes.
                Needs use_causal_windowed and ``training=False``.
            training: whether to drop and to redraw.
            use_causal_mask: causal attention, without windows.

        Returns:
            ``[B, T, output_shape]``.

        Raises:
            ValueError: shapes that do not fit, and what these options cannot do.
        """
        key = value if key is None else key
        training = bool(training)
        if cache is not None:
            check(
                isinstance(cache, KernelAttentionCache),
                "cache must be a performer.keras.KernelAttentionCache() (Keras 3 gives a layer a copy of a dict, "
                f"which it cannot change for the caller); found {type(cache).__name__}",
            )
            check(self.use_causal_windowed, "a cache needs use_causal_windowed")
            check(not training, "there is no cache while training")
        if self.reference:
            return call_reference(self, query, key, value, attention_mask, cache, training, use_causal_mask)
        keys = _features.joined_key_mask(value_mask, key_mask, attention_mask)
        check(not self.scale_by_length or keys is not None, "scale_by_length needs an attention_mask")
        q, k, v = self._query_dense(query), self._key_dense(key), self._value_dense(value)
        causal = use_causal_mask or self.use_causal_windowed
        check(not causal or q.shape[1] == k.shape[1], "causal attention needs as many keys as queries")
        if self.redraw and training:
            self.projection.assign(self._drawn())
        # A stream moves its cache on: the first tokens are looked at before.
        first = self._exact_part(q, k, v, keys, causal, cache)
        out = self._attend(q, k, v, query_mask, keys, causal, training, cache)
        if query_mask is not None:
            rows = ops.cast(query_mask, out.dtype)[:, :, None, None]
            out = out * rows
            first = None if first is None else first * rows[:, : first.shape[1]]
        return self._project_out(first, out, training)

    def _project_out(self, first: Tensor | None, out: Tensor, training: bool) -> Tensor:
        """The outputs of the first tokens by their own projection, and of the others."""
        parts = []
        if first is not None:
            parts.append(self._output_dense_softmax(self._dropout_layer(first, training=training)))
            out = out[:, first.shape[1] :]
        if first is None or out.shape[1] > 0:
            parts.append(self._output_dense(self._dropout_layer(out, training=training)))
        return parts[0] if len(parts) == 1 else ops.concatenate(parts, 1)

    def _scale(self) -> float:
        return self.key_dim**-0.5 if self.scale is None else self.scale

    def _scales(self, keys: Tensor | None) -> Tensor | float:
        """The scale of the scores, ``[B, 1, 1, 1]`` if it depends on the length."""
        if not self.scale_by_length:
            return self._scale()
        count = ops.maximum(ops.sum(ops.cast(keys, "float32"), -1), 1.0)
        return ops.reshape(ops.log(count) * (self._scale() / math.log(512.0)), (-1, 1, 1, 1))

    def _exact_part(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None, causal: bool, cache: KernelAttentionCache | None
    ) -> Tensor | None:
        """Softmax attention of those of the tokens that are among the first begin_kernel; None: none is."""
        begin = 0 if cache is None else cache.tokens
        count = min(max(0, self.begin_kernel - begin), q.shape[1])
        if count == 0:
            return None
        scale = self._scales(keys)
        if not causal:
            return _linear.exact(q[:, :count], k, v, scale, key_mask=keys)
        k, v = k[:, :count], v[:, :count]
        keys = None if keys is None else keys[:, :count]
        if cache is not None:
            if cache.first is not None:
                before = cache.first
                check(
                    (before[2] is None) == (keys is None), "pass an attention_mask in all calls of a cache or in none"
                )
                k, v = ops.concatenate([before[0], k], 1), ops.concatenate([before[1], v], 1)
                keys = None if keys is None else ops.concatenate([before[2], keys], 1)
            cache.first = (k, v, keys)
        seen = ops.arange(k.shape[1])[None, :] <= ops.arange(begin, begin + count)[:, None]
        return _linear.exact(q[:, :count], k, v, scale, key_mask=keys, seen=seen)

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        query_mask: Tensor | None,
        keys: Tensor | None,
        causal: bool,
        training: bool,
        cache: KernelAttentionCache | None,
    ) -> Tensor:
        scale = self._scales(keys)
        if self.is_short_seq:
            seen = ops.tril(ops.ones((q.shape[1], k.shape[1]), "bool")) if causal else None
            return _linear.exact(q, k, v, scale, key_mask=keys, seen=seen)
        if self.scale_by_length:
            root = ops.cast(ops.sqrt(scale), q.dtype)
            q, k, root = q * root, k * root, 1.0
        else:
            root = math.sqrt(scale)
        features = self._features(q, k, query_mask, keys, root, causal, training)
        if not self.use_causal_windowed:
            return _linear.attend(q, k, v, features, causal=causal, key_mask=keys)[0]
        decay = 1.0 if self.causal_window_decay is None else float(self.causal_window_decay)
        window = _windows.Window(self.causal_chunk_length, self.causal_window_length, decay)
        if cache is None:
            return _windows.windowed(q, k, v, features, window, keys)
        return _windows.streamed(q, k, v, features, window, keys, cache.stream)

    def _features(
        self,
        q: Tensor,
        k: Tensor,
        query_mask: Tensor | None,
        keys: Tensor | None,
        scale: float,
        causal: bool,
        training: bool,
    ) -> _linear.FeatureMap:
        name = self.feature_transform
        projection = None if self.projection is None else ops.convert_to_tensor(self.projection)[None]
        if name != "expplus":
            return _features.fixed_map(name, scale, projection)
        a = ops.stop_gradient(self._optimal_a(q, k, query_mask, keys, scale, causal, training))
        return _features.optimal_map(a, scale, projection)

    def _optimal_a(
        self,
        q: Tensor,
        k: Tensor,
        query_mask: Tensor | None,
        keys: Tensor | None,
        scale: float,
        causal: bool,
        training: bool,
    ) -> Tensor:
        """A of optimal positive features, ``[B or 1, H]``."""
        moment = ops.stop_gradient(_features.moment_of_sums(q, k, query_mask, keys, scale))
        if causal:
            # A causal model must not look ahead: it uses what earlier training steps saw.
            known = ops.convert_to_tensor(self._moments)
            if training:
                seen = ops.mean(moment, 0)
                updated = ops.where(known == 0, seen, _MOMENT_DECAY * known + (1 - _MOMENT_DECAY) * seen)
                self._moments.assign(updated)
            moment = known[None]
        return _features.optimal_a(moment / self.key_dim)

    def _drawn(self) -> Tensor:
        """A fresh projection, ``[H, M, D]``, or ``[M, D]`` as the original's."""
        sizes = (self.num_random_features, self.key_dim)
        if self.reference:
            return _features.draw_as_reference(*sizes, self._redraw_generator)
        return _features.draw(self.num_heads, *sizes, self._redraw_generator)

    # Keras.

    def compute_output_shape(
        self,
        query_shape: tuple[int | None, ...],
        value_shape: tuple[int | None, ...],
        key_shape: tuple[int | None, ...] | None = None,
    ) -> tuple[int | None, ...]:
        """``[B, T, output_shape]``."""
        return (*query_shape[:2], *(self._given_output_shape or (query_shape[-1],)))

    def get_config(self) -> dict[str, Any]:
        """All constructor arguments."""
        config: dict[str, Any] = super().get_config()
        names = (
            "num_heads key_dim value_dim dropout use_bias attention_axes feature_transform num_random_features seed "
            "redraw is_short_seq begin_kernel scale scale_by_length use_causal_windowed causal_chunk_length "
            "causal_window_length causal_window_decay causal_padding reference"
        )
        config.update({name: getattr(self, name) for name in names.split()})
        config["output_shape"] = self._given_output_shape
        config["activity_regularizer"] = keras.regularizers.serialize(self.activity_regularizer)
        for kind in ("initializer", "regularizer", "constraint"):
            module = getattr(keras, kind + "s")
            for name in ("kernel", "bias"):
                config[f"{name}_{kind}"] = module.serialize(self._dense_options[f"{name}_{kind}"])
        return config
