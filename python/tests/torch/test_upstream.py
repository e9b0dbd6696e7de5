# SPDX-License-Identifier: Apache-2.0
"""The example scripts and tests of performer-pytorch and fast-transformers, with the lines of import changed.

They are not part of this project: PERFORMER_UPSTREAM names a folder with clones of the two repositories.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
FOLDER = pathlib.Path(os.environ.get("PERFORMER_UPSTREAM", ""))
pytestmark = pytest.mark.skipif(
    "PERFORMER_UPSTREAM" not in os.environ, reason="PERFORMER_UPSTREAM names no folder with clones of the originals"
)
# Scripts run without a GPU and with numpy 2, and not for days.
SIZES = {"NUM_BATCHES": 3, "SEQ_LEN": 128, "GENERATE_EVERY": 2, "GENERATE_LENGTH": 8, "VALIDATE_EVERY": 2}
SCRIPTS = {
    "enwik8": ("performer-pytorch/examples/enwik8_simple/train.py", "training loss"),
    "copy": ("performer-pytorch/examples/toy_tasks/enc_dec_copy.py", "incorrects"),
}
TESTS = (
    "test_builders.py",
    "test_masking.py",
    "test_transformer_decoder.py",
    "test_weight_mapper.py",
    "attention/test_linear_attention.py",
    "attention/test_causal_linear_attention.py",
    "attention/test_full_attention.py",
    "attention/test_attention_layer.py",
    "attention/test_local_attention.py",
    "events/test_event_dispatcher.py",
    "events/test_event_filters.py",
    "events/test_events.py",
    "feature_maps/test_fourier_features.py",
    "recurrent/test_transformer_decoder.py",
    "recurrent/test_transformer_encoder.py",
    "recurrent/attention/self_attention/test_full_attention.py",
    "recurrent/attention/self_attention/test_linear_attention.py",
    "recurrent/attention/self_attention/test_attention_layer.py",
    "recurrent/attention/cross_attention/test_attention_layer.py",
    "recurrent/attention/cross_attention/test_full_attention.py",
    "recurrent/attention/cross_attention/test_linear_attention.py",
)


def run(path, text, *arguments):
    path.write_text(text)
    paths = [str(ROOT / "python")] if "PERFORMER_OPS_LIBRARY" in os.environ else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, *arguments, str(path)],
        cwd=path.parent,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_of_performer_pytorch(name, tmp_path):
    pytest.importorskip("tqdm")
    path, said = SCRIPTS[name]
    text = (FOLDER / path).read_text()
    text, imports = re.subn(
        r"^from performer_pytorch", "from performer.compat.performer_pytorch", text, flags=re.MULTILINE
    )
    assert imports
    text = text.replace(".cuda()", "").replace("autocast()", "autocast(enabled=False)")
    text = text.replace(
        "np.fromstring(file.read(int(95e6)), dtype=np.uint8)", "np.random.randint(0, 255, 4000).astype(np.uint8)"
    )
    text = text.replace("gzip.open('./data/enwik8.gz')", "open(__file__)").replace("int(90e6)", "2000")
    text = text.replace("(src != sample).abs()", "(src != sample)")  # which PyTorch refuses for bool
    text = text.replace("dim = 512", "dim = 64").replace("dim=512", "dim=64")
    for constant, value in SIZES.items():
        text = re.sub(rf"^{constant} *= .*$", f"{constant} = {value}", text, flags=re.MULTILINE)
    assert said in run(tmp_path / "script.py", text)


@pytest.mark.parametrize("name", TESTS)
def test_tests_of_fast_transformers(name, tmp_path):
    text = (FOLDER / "fast-transformers/tests" / name).read_text()
    text, imports = re.subn(r"from fast_transformers", "from performer.compat.fast_transformers", text)
    assert imports
    text = text.replace("improved-clustered", "exact-topk")  # one attention given to another; which one is no matter
    said = run(
        tmp_path / "test_original.py", text, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not benchmark"
    )
    assert " passed" in said
