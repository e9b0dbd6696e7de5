# SPDX-License-Identifier: Apache-2.0
"""The configuration of the project's own models in transformers' terms."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from typing import Any, ClassVar

from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from performer.models.config import FORMAT, AttentionConfig, ModelConfig, NotInPython, read_attention, read_model
from performer.models.folder import TOKENIZER, sections
from performer.models.vocabulary import Vocabulary

MODEL_TYPE = "performer"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def read_tokenizer(folder: str | os.PathLike[str], **options: Any) -> Vocabulary | None:
    """The vocabulary of a model folder, here or on the hub; None where the folder has none.

    Raises:
        ValueError: for a tokenizer.json that is of another kind.
    """
    known = {name: value for name, value in options.items() if name in HUB_OPTIONS}
    found = cached_file(
        str(folder),
        TOKENIZER,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **known,
    )
    if found is None:
        return None
    text = pathlib.Path(found).read_text(encoding="utf-8")
    if "symbols" not in json.loads(text):
        raise ValueError(f"{found} is not the tokenizer of a performer model: it has no symbols")
    return Vocabulary.from_json(text)


class PerformerConfig(PretrainedConfig):  # type: ignore[misc, unused-ignore]
    """config.json of a model folder: the program's sections, and what transformers adds beside them.

    Args:
        model, attention: the sections [model] and [attention] (`performer train --help`); None: the defaults.
        data: what the model was trained on; its key "vocabulary" names a built-in vocabulary.
        vocab_size: symbols and markers; None: those of the vocabulary that `data` names.
        format, provenance: as in a model folder.
        kwargs: of PretrainedConfig.

    Raises:
        ValueError: for unknown or impossible keys, for another format, and where the size of the vocabulary is unknown.
            A model that only the program computes has a configuration and a tokenizer, and is refused by the models.
    """

    model_type: ClassVar[str] = MODEL_TYPE

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        attention: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        format: int = FORMAT,
        provenance: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if format != FORMAT:
            raise ValueError(f"this model folder has format {format}, this package reads format {FORMAT}")
        self.format = format
        self.data = {"vocabulary": "protein", **(data or {})}
        written: dict[str, Any] = {"model": model or {}, "attention": attention or {}, "provenance": provenance}
        with contextlib.suppress(NotInPython):  # which the model's class says; its tokenizer can be had all the same
            shape, kind = read_model(written["model"]), read_attention(written["attention"])
            written = sections(shape, kind, self.data, provenance)
        self.model, self.attention, self.provenance = written["model"], written["attention"], written["provenance"]
        if vocab_size is None:
            vocab_size = len(Vocabulary.named(self.data["vocabulary"]))
        self.vocab_size = vocab_size
        markers = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
        for place, name in enumerate(markers):  # the markers follow the symbols
            setattr(self, name, kwargs.pop(name, None) or vocab_size - 4 + place)
        super().__init__(**kwargs)

    @property
    def model_section(self) -> ModelConfig:
        """The section [model]."""
        return read_model(self.model)

    @property
    def attention_section(self) -> AttentionConfig:
        """The section [attention]."""
        return read_attention(self.attention)

    @property
    def hidden_size(self) -> int:
        """Width of the model."""
        return int(self.model["width"])

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return int(self.model["layers"])

    @property
    def num_attention_heads(self) -> int:
        """Number of heads of a block."""
        return int(self.model["heads"])

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """config.json, with the size of the vocabulary that tokenizer.json tells where it does not."""
        content, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if content.get("format") is not None and "vocab_size" not in content:
            vocabulary = read_tokenizer(pretrained_model_name_or_path, **kwargs)
            if vocabulary is not None:
                content["vocab_size"] = len(vocabulary)
        return content, unused


def vocabulary_of(config: PerformerConfig) -> Vocabulary | None:
    """The built-in vocabulary that the configuration names; None where it is none of them."""
    try:
        found = Vocabulary.named(config.data["vocabulary"])
    except ValueError:
        return None
    return found if len(found) == config.vocab_size else None
