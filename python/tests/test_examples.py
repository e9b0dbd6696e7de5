# SPDX-License-Identifier: Apache-2.0
"""Every example runs, on small data."""

import importlib.util
import os
import pathlib
import random
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(name, *arguments, **variables):
    paths = [str(ROOT / "python")] if "PERFORMER_OPS_LIBRARY" in os.environ else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]), **variables}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)  # examples compute more than tests
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/python" / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def fasta(path, letters):
    draw = random.Random(letters)
    path.write_text("".join(f">s{i}\n{''.join(draw.choice(letters) for _ in range(30))}\n" for i in range(12)))
    return path


def test_train_and_embed(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    first, second = fasta(tmp_path / "a.fasta", "ACDEFG"), fasta(tmp_path / "b.fasta", "KLMNPQ")
    said = run("train.py", first, tmp_path / "model", 20)
    losses = [float(line.split()[-1]) for line in said.splitlines() if line.startswith("step")]
    assert losses[-1] < losses[0]
    said = run("embeddings.py", tmp_path / "model", first, second)
    assert float(said.split()[-1]) > 0.9


def test_swap_bert_attention():
    pytest.importorskip("transformers", minversion="5.0", reason="transformers is not installed")
    assert float(run("swap_bert_attention.py").split()[-1]) < 0.2


def test_flax_drop_in():
    pytest.importorskip("flax", reason="flax is not installed")
    said = run("flax_drop_in.py")
    assert float(said.split("after 60 steps: loss ")[1].split()[0]) < 1.5
    assert int(said.split()[-4].rstrip("%")) > 80


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_keras_layer(backend):
    for needed in ("keras", backend):  # importing keras would choose a backend
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    said = run("keras_layer.py", KERAS_BACKEND=backend)
    assert float(said.split("accuracy after 6 epochs: ")[1].split()[0]) > 0.75
