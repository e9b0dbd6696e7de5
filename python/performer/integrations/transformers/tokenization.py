# SPDX-License-Identifier: Apache-2.0
"""Vocabularies of model folders as a fast tokenizer of transformers."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

from performer.integrations.transformers.configuration import HUB_OPTIONS, read_tokenizer
from performer.integrations.transformers.hub import AUTO_TOKENIZER, write_code
from performer.models.folder import CONFIG, TOKENIZER, write_aside
from performer.models.vocabulary import Vocabulary

_SETTINGS = "tokenizer_config.json"
_MARKERS = ("<bos>", "<eos>", "<pad>", "<mask>")


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level tokenizer: itself if it can be printed, else a later one."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, more = [], 256
    for code in range(256):
        letters.append(chr(code if code in printable else more))
        more += code not in printable
    return letters


def _written_in_letters(vocabulary: Vocabulary) -> bool:
    return all(len(symbol) == 1 and symbol[0] < 128 for symbol in vocabulary.written)


def _longest_first(symbols: Iterable[str]) -> str:
    """A regular expression of the longest symbol that begins at a place: a tree, a level for each letter."""
    tree: dict[str, Any] = {}
    for symbol in symbols:
        node = tree
        for letter in symbol:
            node = node.setdefault(letter, {})
        node[""] = {}

    def expression(node: dict[str, Any]) -> str:
        branches = [re.escape(letter) + expression(below) for letter, below in node.items() if letter]
        if not branches:
            return ""
        several = f"(?:{'|'.join(branches)})"
        return several + "?" if "" in node else several

    return expression(tree)


def _parts(vocabulary: Vocabulary) -> tuple[list[str], Any, Any]:
    """How symbols are written, what cuts a text into them, and what joins them again.

    What is no symbol is cut into single characters, none of which is a word. Reserved symbols have names that no
    text is cut into.
    """
    every = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    written = vocabulary.written
    names = [f"<reserved {i}>" for i in range(len(written), len(vocabulary.symbols))]
    if vocabulary.numbers:
        return [symbol.decode() for symbol in written] + names, pre_tokenizers.WhitespaceSplit(), None
    if _written_in_letters(vocabulary):
        return [symbol.decode() for symbol in written] + names, every, decoders.Fuse()
    of_byte = _byte_letters()
    letters = ["".join(of_byte[code] for code in symbol) for symbol in written]
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    is_bytes = all(len(symbol) == 1 for symbol in written)
    cut = every if is_bytes else pre_tokenizers.Split(Regex(_longest_first(letters) + r"|[\s\S]"), "isolated")
    return letters + names, pre_tokenizers.Sequence([in_bytes, cut]), decoders.ByteLevel()


def _aliases(vocabulary: Vocabulary) -> Any:
    """What replaces letters that are read as others, before the text is cut."""
    longer = [symbol for symbol in vocabulary.written if len(symbol) > 1]
    for pair in vocabulary.aliases:
        if any(letter.encode() in symbol for symbol in longer for letter in pair):
            raise ValueError(
                f"the vocabulary {vocabulary.name} reads {pair[0]!r} as {pair[1]!r} and has longer symbols with one of "
                "these letters, for which there is no tokenizer of transformers; encode texts with performer.Vocabulary"
            )
    return normalizers.Sequence([normalizers.Replace(letter, read_as) for letter, read_as in vocabulary.aliases])


def _backend(vocabulary: Vocabulary, both_markers: bool) -> Tokenizer:
    letters, cut, join = _parts(vocabulary)
    words = {letter: index for index, letter in enumerate([*letters, *_MARKERS])}
    # Without an unknown token in the words, a text with one is an error.
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    if vocabulary.aliases:
        tokenizer.normalizer = _aliases(vocabulary)
    tokenizer.pre_tokenizer = cut
    if join is not None:
        tokenizer.decoder = join
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in _MARKERS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>" if both_markers else "<bos> $A",
        pair=None,
        special_tokens=[("<bos>", vocabulary.bos), ("<eos>", vocabulary.eos)],
    )
    return tokenizer


class PerformerTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc, unused-ignore]
    """The vocabulary of a model folder, with the program's ids. Markers are written <bos>, <eos>, <pad> and <mask>.

    Args:
        vocabulary: letters, bytes, numbers or pieces of several bytes, of which the longest that fits is taken.
        objective: "masked" puts texts between <bos> and <eos>, "causal" begins them with <bos>, and pads on the left,
            as generate() needs it.
        kwargs: of PreTrainedTokenizerFast.

    Raises:
        ValueError: for a letter that is read as another and is part of a longer symbol; in calls for what is no symbol,
            naming its position.
    """

    vocab_files_names = {"vocab_file": TOKENIZER}  # noqa: RUF012 (as transformers declares it)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocabulary: Vocabulary, objective: str = "masked", **kwargs: Any) -> None:
        self.vocabulary, self.objective = vocabulary, objective
        names: Any = zip(("bos_token", "eos_token", "pad_token", "mask_token"), _MARKERS, strict=True)
        options = {"padding_side": "right" if objective == "masked" else "left", **dict(names), **kwargs}
        super().__init__(
            tokenizer_object=_backend(vocabulary, objective == "masked"), clean_up_tokenization_spaces=False, **options
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *inputs: Any, **kwargs: Any
    ) -> PerformerTokenizer:
        """The tokenizer of a model folder, here or on the hub.

        Raises:
            FileNotFoundError: without a tokenizer.json.
        """
        hub: dict[str, Any] = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        hub = {name: value for name, value in hub.items() if value is not None}
        vocabulary = read_tokenizer(pretrained_model_name_or_path, **hub)
        if vocabulary is None:
            raise FileNotFoundError(f"{pretrained_model_name_or_path} has no {TOKENIZER}")

        def content(file: str) -> dict[str, Any]:
            found = cached_file(
                str(pretrained_model_name_or_path), file, _raise_exceptions_for_missing_entries=False, **hub
            )
            return {} if found is None else json.loads(pathlib.Path(found).read_text(encoding="utf-8"))

        settings = content(_SETTINGS)
        objective = settings.get("objective") or content(CONFIG).get("model", {}).get("objective", "masked")
        kept: dict[str, Any] = {
            name: settings[name] for name in ("padding_side", "truncation_side", "model_max_length") if name in settings
        }
        asked = {
            name: value for name, value in kwargs.items() if not name.startswith("_") and name != "trust_remote_code"
        }
        options: dict[str, Any] = {"name_or_path": str(pretrained_model_name_or_path), **kept, **asked}
        return cls(vocabulary, options.pop("objective", objective), **options)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> tuple[str, ...]:
        """Writes the vocabulary as the program reads it, tokenizer_config.json, and the code for the hub."""
        folder = pathlib.Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(folder / TOKENIZER, self.vocabulary.to_json())
        settings = {
            "tokenizer_class": type(self).__name__,
            "objective": self.objective,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "model_max_length": self.model_max_length,
            "auto_map": {"AutoTokenizer": AUTO_TOKENIZER},
        }
        write_aside(folder / _SETTINGS, json.dumps(settings, indent=2) + "\n")
        code = "tokenization_performer.py"
        write_code(folder, code)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return tuple(str(folder / name) for name in (TOKENIZER, _SETTINGS, code))

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._encode_plus(text, *args, **kwargs)
        except Exception as error:
            if "Missing [UNK]" not in str(error):
                raise
            for one in text if isinstance(text, (list, tuple)) else [text]:
                if isinstance(one, str):
                    for marker in _MARKERS:
                        one = one.replace(marker, "")
                    self.vocabulary.encode(one)  # which says what and where
            raise ValueError(f"a text holds what is no symbol of the vocabulary {self.vocabulary.name}") from error
