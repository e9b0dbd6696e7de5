# SPDX-License-Identifier: Apache-2.0
"""The files with which a model folder on the hub loads by trust_remote_code=True, without an import before."""

from __future__ import annotations

import os
import pathlib

_HEAD = '''# SPDX-License-Identifier: Apache-2.0
"""Loads {what} from the package performer-attention, which must be installed."""

try:
    from performer.integrations.transformers import {names}
except ImportError as error:
    raise ImportError("this model needs the package performer-attention (pip install .): " + str(error)) from error

__all__ = {listed}
'''
_FILES = {
    "configuration_performer.py": ("the configuration", ("PerformerConfig",)),
    "modeling_performer.py": (
        "the models",
        ("PerformerForCausalLM", "PerformerForMaskedLM", "PerformerForSequenceClassification", "PerformerModel"),
    ),
    "tokenization_performer.py": ("the tokenizer", ("PerformerTokenizer",)),
}

#: Where the classes of the automatic factories are found, as config.json names them.
AUTO_MAP = {
    "AutoConfig": "configuration_performer.PerformerConfig",
    "AutoModel": "modeling_performer.PerformerModel",
    "AutoModelForCausalLM": "modeling_performer.PerformerForCausalLM",
    "AutoModelForMaskedLM": "modeling_performer.PerformerForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_performer.PerformerForSequenceClassification",
}
#: The same for the tokenizer, as tokenizer_config.json names it: the slow class, and the fast one.
AUTO_TOKENIZER = [None, "tokenization_performer.PerformerTokenizer"]


def write_code(folder: str | os.PathLike[str], *names: str) -> None:
    """Writes the files `names`; none: all."""
    for name in names or _FILES:
        what, classes = _FILES[name]
        text = _HEAD.format(what=what, names=", ".join(classes), listed=str(list(classes)).replace("'", '"'))
        pathlib.Path(folder, name).write_text(text, encoding="utf-8")
