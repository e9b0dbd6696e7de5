# SPDX-License-Identifier: Apache-2.0
"""Recorded outputs of the reference systems (tests/golden/golden.h describes the format)."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of a reference: options, inputs and recorded outputs."""

    folder: pathlib.Path
    entry: Mapping[str, Any]

    @property
    def options(self) -> Mapping[str, Any]:
        options: Mapping[str, Any] = self.entry["options"]
        return options

    @property
    def outputs(self) -> Mapping[str, Any]:
        outputs: Mapping[str, Any] = self.entry["outputs"]
        return outputs

    def __str__(self) -> str:
        return f"{self.entry['group']}.{self.entry['id']}"

    def has(self, name: str) -> bool:
        return f"{self.entry['id']}/{name}" in _tensors(self.folder / self.entry["file"])

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        return _tensors(self.folder / self.entry["file"])[f"{self.entry['id']}/{name}"]

    def check(self, name: str, actual: Any) -> None:
        """Fails unless `actual` is as close to the output `name` as the recording says.

        Both types are compared with what the reference gave in double, where that was recorded.
        """
        output = self.outputs[name]
        actual = np.asarray(actual)
        double = actual.dtype == np.float64 and output.get("float64")
        expected = self.tensor(output.get("float64") or name)
        tolerance = output["f64" if double else "f32"]
        if not double and output.get("f32_unreliable"):
            return
        np.testing.assert_allclose(
            actual,
            expected,
            rtol=tolerance["rtol"] or 0,
            atol=tolerance["atol"] or 0,
            equal_nan=True,
            err_msg=f"{self}: {name}",
        )


@functools.cache
def _tensors(path: pathlib.Path) -> Mapping[str, np.ndarray[Any, Any]]:
    tensors: Mapping[str, np.ndarray[Any, Any]] = load_file(path)
    return tensors


def _folders() -> list[pathlib.Path]:
    """The small set of the project, and the folders of PERFORMER_GOLDEN=DIR[:DIR...] or their subfolders."""
    given = [pathlib.Path(name) for name in os.environ.get("PERFORMER_GOLDEN", "").split(":") if name]
    folders = [ROOT / "tests" / "golden" / "recorded", *given]
    return [index.parent for folder in folders for index in sorted(folder.glob("**/index.json"))]


@functools.cache
def cases(group: str, system: str = "") -> list[Case]:
    """All cases of a group, of systems whose name contains `system`."""
    found = []
    for folder in _folders():
        index = json.loads((folder / "index.json").read_text())
        found += [
            Case(folder, entry) for entry in index["cases"] if entry["group"] == group and system in entry["reference"]
        ]
    return found
