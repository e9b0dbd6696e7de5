# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the shared library of operators, once, when the first module that needs it is imported."""

import os
import pathlib

import torch

import performer

_NAME = "libperformer_ops.so"


def library_path() -> pathlib.Path:
    """The library: the file that the environment variable PERFORMER_OPS_LIBRARY names, else the installed one.

    Raises:
        ImportError: when there is no such file.
    """
    named = os.environ.get("PERFORMER_OPS_LIBRARY", "")
    # An editable install has the sources in one folder and the library in another.
    candidates = [pathlib.Path(folder) / "lib" / _NAME for folder in performer.__path__]
    path = pathlib.Path(named) if named else next((path for path in candidates if path.is_file()), candidates[0])
    if not path.is_file():
        origin = "named by PERFORMER_OPS_LIBRARY" if named else "of the installed package"
        raise ImportError(
            f"the operator library {path}, {origin}, does not exist; install the package again (pip install .), "
            f"or set PERFORMER_OPS_LIBRARY to a {_NAME} that CMake has built"
        )
    return path


def _check_version(path: pathlib.Path) -> None:
    """LibTorch's C++ interface changes between versions: a library runs with the one that it was built with."""
    note = path.with_suffix(".torch")
    if not note.is_file():
        return
    built = note.read_text(encoding="utf-8").strip().split("+")[0].split(".")[:2]
    found = torch.__version__.split("+")[0].split(".")[:2]
    if built != found:
        raise ImportError(
            f"performer was built with torch {'.'.join(built)} and cannot run with the installed torch "
            f"{torch.__version__}; build it again with `pip install --no-build-isolation --no-deps .` in its sources, "
            f"or install torch {'.'.join(built)}"
        )


def load() -> None:
    """Loads the operators into torch.ops.performer.

    Raises:
        ImportError: when the library is missing, or belongs to another version of torch.
    """
    path = library_path()
    _check_version(path)
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise ImportError(f"the operator library {path} cannot be loaded: {error}") from error


load()
ops = torch.ops.performer
