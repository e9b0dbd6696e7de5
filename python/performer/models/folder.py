# SPDX-License-Identifier: Apache-2.0
"""The native model folder (docs/formats.md): config.json, tokenizer.json, model.safetensors."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from performer.models.config import FORMAT, AttentionConfig, ModelConfig, read_attention, read_model
from performer.models.vocabulary import Vocabulary

if TYPE_CHECKING:
    from performer.models.language_model import LanguageModel

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"


@dataclasses.dataclass
class Content:
    """What a folder holds."""

    model: ModelConfig
    attention: AttentionConfig
    vocabulary: Vocabulary
    data: dict[str, Any]
    weights: dict[str, Tensor]
    weights_path: pathlib.Path


def read_configuration(
    folder: str | os.PathLike[str],
) -> tuple[ModelConfig, AttentionConfig, Vocabulary, dict[str, Any]]:
    """The configuration and the vocabulary of a folder.

    Raises:
        FileNotFoundError, ValueError: for a folder that is incomplete or foreign, naming the file.
    """
    base = pathlib.Path(folder)
    if not base.is_dir():
        raise FileNotFoundError(f"there is no model folder {base}")
    path = base / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{base} is not a complete model folder: it has no {CONFIG}")
    try:
        root = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    root = root if isinstance(root, dict) else {}
    if root.get("format") != FORMAT:
        found = root.get("format", "no format number")
        raise ValueError(f"{path} has format {found}, this package reads format {FORMAT}")
    try:
        model, attention = read_model(root["model"]), read_attention(root["attention"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    data = root.get("data", {})
    tokenizer = base / TOKENIZER
    if tokenizer.is_file():
        vocabulary = Vocabulary.from_json(tokenizer.read_text(encoding="utf-8"))
    else:
        vocabulary = Vocabulary.named(data.get("vocabulary", "protein"))
    return model, attention, vocabulary, data


def read(folder: str | os.PathLike[str]) -> Content:
    """Everything of a folder; errors as of read_configuration()."""
    model, attention, vocabulary, data = read_configuration(folder)
    path = pathlib.Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a complete model folder: it has no {WEIGHTS}")
    return Content(model, attention, vocabulary, data, safetensors.torch.load_file(path), path)


def load_weights(model: LanguageModel, weights: dict[str, Tensor], source: pathlib.Path) -> None:
    """Copies weights into a model of the same names and shapes.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    targets = model.state_dict()
    for name, target in targets.items():
        if name not in weights:
            raise ValueError(f"{source} is of another architecture: it has no tensor '{name}' {list(target.shape)}")
        if weights[name].shape != target.shape:
            found = list(weights[name].shape)
            raise ValueError(
                f"{source} is of another architecture: tensor '{name}' is {found}, expected {list(target.shape)}"
            )
    for name in weights:
        if name not in targets:
            raise ValueError(f"{source} is of another architecture: its tensor '{name}' has no place in this model")
    model.load_state_dict(weights)


def write_aside(path: pathlib.Path, text: str) -> None:
    """Writes a file that appears only when it is complete."""
    aside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def sections(
    model: ModelConfig, attention: AttentionConfig, data: dict[str, Any], provenance: dict[str, Any] | None
) -> dict[str, Any]:
    """What config.json says of a model, as the program reads it."""
    return {
        "format": FORMAT,
        "model": dataclasses.asdict(model),
        "attention": attention.as_dict(),
        "data": data,
        "provenance": provenance or {"objective": f"{model.objective}, from Python"},
    }


def hub_keys(objective: str, vocabulary_size: int) -> dict[str, Any]:
    """What transformers needs of config.json beside the sections, to know the class of the model."""
    architecture = "PerformerForCausalLM" if objective == "causal" else "PerformerForMaskedLM"
    return {"model_type": "performer", "architectures": [architecture], "vocab_size": vocabulary_size}


def write(folder: str | os.PathLike[str], model: LanguageModel) -> None:
    """Writes a folder; the configuration comes last, so that a folder with it is complete."""
    base = pathlib.Path(folder)
    base.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in model.state_dict().items()
    }
    aside = base / f"{WEIGHTS}.tmp-{os.getpid()}"
    safetensors.torch.save_file(weights, aside, metadata={"format": "performer"})
    aside.replace(base / WEIGHTS)
    assert model.vocabulary is not None
    write_aside(base / TOKENIZER, model.vocabulary.to_json())
    objective = model.model_config.objective
    data = {"vocabulary": model.vocabulary.name, **model.data_config}
    provenance = {"objective": f"{objective}, from Python", "parameters": model.parameter_count()}
    content = sections(model.model_config, model.attention_config, data, provenance)
    content |= hub_keys(objective, len(model.vocabulary))
    write_aside(base / CONFIG, json.dumps(content, indent=2) + "\n")
