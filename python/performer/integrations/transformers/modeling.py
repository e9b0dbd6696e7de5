# SPDX-License-Identifier: Apache-2.0
"""The project's language model as models of transformers.

Each is a performer.LanguageModel too, with its names of weights: a folder of the program loads, and what
save_pretrained() writes the program reads. performer.score, embed and generate take them.
"""

from __future__ import annotations

import copy
import os
import pathlib
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    SequenceClassifierOutput,
)

from performer.integrations.transformers.cache import ModelCache
from performer.integrations.transformers.configuration import PerformerConfig, read_tokenizer, vocabulary_of
from performer.integrations.transformers.hub import AUTO_MAP, write_code
from performer.models.folder import TOKENIZER, write_aside
from performer.models.language_model import LanguageModel

_REFUSED = {
    "inputs_embeds": "these models read tokens; give input_ids (or soft tokens [B, T, vocabulary] to hidden())",
    "output_attentions": "linear attention never forms attention weights; `performer attention` gives exact rows",
}
_OUTPUT_LAYER = [r"^output\.", r"^output_bias$", r"^regression\."]


class _Performer(LanguageModel, PreTrainedModel):  # type: ignore[misc, unused-ignore]
    config_class = PerformerConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (as transformers declares it)
    _keep_in_fp32_modules_strict = ["projection", "query_mean", "key_mean", "query_moment", "key_moment"]  # noqa: RUF012

    def __init__(self, config: PerformerConfig, *inputs: Any, **kwargs: Any) -> None:
        PreTrainedModel.__init__(self, config, *inputs, **kwargs)
        self._build(config.model_section, config.attention_section, config.vocab_size, config.data)
        self.vocabulary = vocabulary_of(config)
        self._add_head(config)
        self._on_meta = self.embedding.weight.is_meta
        self.post_init()

    def _add_head(self, config: PerformerConfig) -> None:
        """What a class adds to the language model."""

    def _init_weights(self, module: nn.Module) -> None:
        """Fills what a checkpoint lacks with what the constructor gives it; nothing is left uninitialised.

        A constructor outside the meta device has filled everything itself, projections by their seed.
        """
        if not self._on_meta or self.embedding.weight.is_meta:
            return
        own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
        empty = {name: x for name, x in own.items() if not getattr(x, "_is_hf_initialized", False)}
        if not empty:
            return
        place = next(name for name, other in self.named_modules() if other is module)
        filled = self._filled().get_submodule(place)
        with torch.no_grad():
            for name, target in empty.items():
                target.copy_(getattr(filled, name))

    def _filled(self) -> nn.Module:
        """A model of the same configuration on the CPU, made once while a checkpoint is loaded."""
        if "_template" not in self.__dict__:
            config = cast(PerformerConfig, copy.deepcopy(self.config))
            with torch.device("cpu"):
                self.__dict__["_template"] = [type(self)(config)]  # a list: no submodule
        return cast(nn.Module, self.__dict__["_template"][0])

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As transformers' PreTrainedModel.from_pretrained, with the vocabulary of the folder."""
        loaded = super(LanguageModel, cls).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.__dict__.pop("_template", None)
        if pretrained_model_name_or_path is not None:
            vocabulary = read_tokenizer(pretrained_model_name_or_path, **kwargs)
            if vocabulary is not None and len(vocabulary) == model.vocabulary_size:
                model.vocabulary = vocabulary
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As transformers' save_pretrained, with tokenizer.json as the program reads it and the code for the hub."""
        folder = pathlib.Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.auto_map = dict(AUTO_MAP)
        if kwargs.get("is_main_process", True):
            write_code(folder, "configuration_performer.py", "modeling_performer.py")
            if self.vocabulary is not None:
                write_aside(folder / TOKENIZER, self.vocabulary.to_json())
        super(LanguageModel, self).save_pretrained(save_directory, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of tokens."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding of tokens."""
        self.embedding = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The output layer; None where the embedding is in its place, or where there is none."""
        return getattr(self, "output", None)

    def _inputs(
        self, input_ids: Tensor | None, mask: Tensor | None, positions: Tensor | None, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Arguments of LanguageModel.hidden() and represent()."""
        for name, why in _REFUSED.items():
            given = kwargs.get(name)
            if given is not None and given is not False:
                raise ValueError(f"{name}: {why}")
        if input_ids is None:
            raise ValueError("input_ids are missing")
        bounds = kwargs.get("cu_seq_lens_q")
        key_mask = None if bounds is not None else _key_mask(mask, input_ids)
        if positions is None and key_mask is not None:
            positions = (key_mask.cumsum(1) - 1).clamp(min=0)
        return {"tokens": input_ids, "key_mask": key_mask, "positions": positions, "cu_seqlens": bounds}

    def _read(self, inputs: dict[str, Any], every: bool | None) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The final norm's output, and where asked the input and the output of every block, the last one normed."""
        if not (self.config.output_hidden_states if every is None else every):
            return self.hidden(**inputs), None
        first, layers, output = self._every_output(**inputs)
        return output, (first, *layers[:-1], output)

    def _answer(self, output: Any, return_dict: bool | None) -> Any:
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _key_mask(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    """bool [B, T], None where nothing is hidden."""
    if mask is None:
        return None
    if mask.dim() != 2:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}: these models hide keys from all queries alike and need a "
            "mask [batch, tokens]; for packed sequences give cu_seq_lens_q"
        )
    kept = mask[:, -tokens.shape[1] :].bool()
    return None if bool(kept.all()) else kept


class PerformerModel(_Performer):
    """The model without its output layer: hidden states."""

    _keys_to_ignore_on_load_unexpected = _OUTPUT_LAYER

    def _add_head(self, config: PerformerConfig) -> None:
        _drop_output(self)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """last_hidden_state [B, T, width] after the final norm, of input_ids [B, T].

        Args:
            attention_mask: [B, T], 0 at padding, on either side.
            position_ids: [B, T]; None: from 0 at the first token that is kept.
            kwargs: cu_seq_lens_q, bounds [N + 1] of packed sequences.

        Raises:
            ValueError: for inputs_embeds, output_attentions and masks that distinguish queries.
        """
        inputs = self._inputs(input_ids, attention_mask, position_ids, kwargs)
        hidden, states = self._read(inputs, output_hidden_states)
        return self._answer(BaseModelOutput(last_hidden_state=hidden, hidden_states=states), return_dict)


def _drop_output(model: LanguageModel) -> None:
    """A model with another head keeps no output layer, whose weights nothing would train."""
    for name in ("output", "output_bias", "regression"):
        if hasattr(model, name):
            delattr(model, name)


class PerformerForMaskedLM(_Performer):
    """Masked language model: logits [B, T, vocabulary]."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits, and with labels [B, T] (-100 is left out) the cross-entropy; other arguments as of PerformerModel."""
        inputs = self._inputs(input_ids, attention_mask, position_ids, kwargs)
        hidden, states = self._read(inputs, output_hidden_states)
        logits, loss = self.logits(hidden), None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocabulary_size, **_counts(kwargs))
        return self._answer(MaskedLMOutput(loss=loss, logits=logits, hidden_states=states), return_dict)


def _counts(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Trainer tells over how many tokens of all accumulated batches the loss is a mean."""
    return {"num_items_in_batch": kwargs["num_items_in_batch"]} if "num_items_in_batch" in kwargs else {}


class PerformerForCausalLM(_Performer, GenerationMixin):  # type: ignore[misc, unused-ignore]
    """Causal language model: logits [B, T, vocabulary], and generate() with a cache of constant size.

    The cache serves linear attention in all heads; models with exact or local parts read their tokens again.
    """

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The last token where a cache has read those before, else all."""
        if not self.advances:
            next_sequence_length, kwargs["use_cache"] = None, False
        return cast(
            dict[str, Any],
            super().prepare_inputs_for_generation(input_ids, next_sequence_length=next_sequence_length, **kwargs),
        )

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        cache: ModelCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Logits, and with labels [B, T] (-100 is left out) the cross-entropy of each token given those before it.

        Args:
            cache: of an earlier call: input_ids follow the tokens that it has read.
            use_cache: whether to give a cache; for calls without gradients.
            logits_to_keep: of the last so many tokens alone; 0: of all.

        Other arguments and errors are those of PerformerModel; a ValueError for a cache of a model that has none.
        """
        inputs = self._inputs(input_ids, attention_mask, position_ids, kwargs)
        tokens = cast(Tensor, input_ids)
        states = loss = None
        if cache is not None or (use_cache and not torch.is_grad_enabled()):
            if not self.advances:
                raise ValueError(
                    "this model has exact or local attention, or token shift, and no state of constant size: call it "
                    "with use_cache=False"
                )
            cache = cache or ModelCache(self.begin(tokens.shape[0]), tokens)
            logits = self.advance(tokens, cache.state, key_mask=inputs["key_mask"])[:, -logits_to_keep:]
            cache.read(tokens.shape[1])
        else:
            hidden, states = self._read(inputs, output_hidden_states)
            logits = self.logits(hidden[:, -logits_to_keep:])
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocabulary_size, **_counts(kwargs))
        output = CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache, hidden_states=states)
        return self._answer(output, return_dict)


class PerformerForSequenceClassification(_Performer):
    """A linear layer on the mean of the hidden states: logits [B, labels] of whole sequences."""

    _keys_to_ignore_on_load_unexpected = _OUTPUT_LAYER

    def _add_head(self, config: PerformerConfig) -> None:
        _drop_output(self)
        self.num_labels = config.num_labels
        self.classifier = nn.Linear(config.hidden_size, cast(int, config.num_labels))

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits, and with labels the loss of config.problem_type; other arguments as of PerformerModel."""
        inputs = self._inputs(input_ids, attention_mask, position_ids, kwargs)
        hidden, states = self._read(inputs, output_hidden_states)
        mask = inputs["key_mask"]
        weights = torch.ones_like(hidden[..., :1]) if mask is None else mask.unsqueeze(-1).to(hidden.dtype)
        logits, loss = self.classifier((hidden * weights).sum(1) / weights.sum(1).clamp(min=1)), None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return self._answer(SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states), return_dict)
