# SPDX-License-Identifier: Apache-2.0
"""LanguageModel against the program, and against itself in its other forms."""

import csv
import os
import pathlib
import random
import subprocess

import pytest
import torch

import performer
from performer import AttentionConfig, LanguageModel, ModelConfig

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAM = pathlib.Path(os.environ.get("PERFORMER_PROGRAM", ROOT / "build/release/bin/performer"))
needs_program = pytest.mark.skipif(
    not PROGRAM.is_file(), reason=f"there is no program {PROGRAM}: build it, or set PERFORMER_PROGRAM"
)
CONFIGURATIONS = {
    "softmax": "attention.kind=favor-softmax attention.features=32",
    "masked": "model.objective=masked attention.kind=favor-relu model.norm=post model.activation=relu "
    "attention.qk_norm=true attention.learned_temperature=true",
    "learned": "model.objective=masked model.positions=sinusoidal attention.kind=favor-hedgehog "
    "attention.local_heads=1 attention.begin_kernel=4 model.token_shift=true",
    "reversible": "model.reversible=true attention.kind=favor-oprf attention.features=32 model.tied_output=true",
    "auto": "attention.kind=auto attention.features=16 attention.begin_kernel=5 attention.local_heads=1",
    "local": "attention.kind=local attention.window=16 model.positions=axial model.max_length=640",
    "exact": "attention.kind=exact model.positions=learned model.max_length=640 model.attention_bias=true",
}


def run(*arguments):
    subprocess.run([PROGRAM, *map(str, arguments)], check=True, capture_output=True, text=True)


def write_fasta(path, count, longest, seed):
    letters = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            length = letters.randint(1, longest)
            sequence = "".join(letters.choice("ACDEFGHIKLMNPQRSTVWYBOUXZJ") for _ in range(length))
            file.write(f">s{number} a protein\n{sequence[:20]}\n{sequence[20:].lower()}*\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_fasta(folder / "train.fasta", 60, 60, 1), write_fasta(folder / "few.fasta", 4, 40, 2)


@needs_program
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_scores_are_the_programs(name, data, tmp_path):
    train, few = data
    settings = [part for option in CONFIGURATIONS[name].split() for part in ("--set", option)]
    small = ["--set", "data.batch_tokens=256", "--set", "data.length=64"]
    run("train", "-o", tmp_path / "m", "--train", train, "--preset", "tiny", "--steps", 2, *small, *settings)
    run("score", "--per-token", tmp_path / "m", few, "-o", tmp_path / "scores.tsv")
    with (tmp_path / "scores.tsv").open() as file:
        expected = [(row["id"], float(row["log_probability"])) for row in csv.DictReader(file, delimiter="\t")]
    model = LanguageModel.from_pretrained(tmp_path / "m")
    found = [(one.id, value) for one in performer.score(model, few) for value in one.log_probabilities]
    assert [name for name, _ in found] == [name for name, _ in expected]
    # The program writes six decimals. Both compute in float32, each up to 1e-6 from the exact number, since their
    # matrix products add in another order: the last decimal may be another one (by two where two streams add up).
    largest = 2e-6 if name == "reversible" else 1e-6
    assert max(abs(round(a, 6) - b) for (_, a), (_, b) in zip(found, expected, strict=True)) < largest + 1e-9
    # And the way back: the program reads what Python writes.
    model.save_pretrained(tmp_path / "copy")
    run("score", "--per-token", tmp_path / "copy", few, "-o", tmp_path / "again.tsv")
    assert (tmp_path / "again.tsv").read_text() == (tmp_path / "scores.tsv").read_text()


def tiny(objective="causal", attention=None, **model):
    config = ModelConfig(objective=objective, layers=2, width=16, heads=2, ffn=32, **model)
    return LanguageModel(config, attention or AttentionConfig("favor-softmax", options={"features": 16})).eval()


CAUSAL = {
    "softmax": AttentionConfig("favor-softmax", options={"features": 16}),
    "relu and exact": AttentionConfig("favor-relu", begin_kernel=5),
    "local heads": AttentionConfig("favor-relu", local_heads=1, local_window=4),
    "auto": AttentionConfig("auto", options={"features": 16, "break_even": 6}),
    "exact": AttentionConfig("exact"),
    "local": AttentionConfig("local", options={"window": 4}),
    "identity": AttentionConfig("identity"),
}


@pytest.mark.parametrize("shape", [{}, {"reversible": True}, {"token_shift": True}], ids=str)
@pytest.mark.parametrize("kind", CAUSAL)
def test_streams_prefixes_and_packing(kind, shape):
    model = tiny(attention=CAUSAL[kind], **shape)
    tokens = torch.randint(0, 25, (2, 23))
    logits = model(tokens)
    state = model.begin(2)
    rows = [model.step(tokens[:, i], state) for i in range(23)]
    torch.testing.assert_close(torch.stack(rows, 1), logits, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(model(tokens[:, :9]), logits[:, :9], atol=2e-5, rtol=2e-5)
    packed = torch.cat([tokens[:1], tokens[1:, :9]], 1)
    together = model(packed, cu_seqlens=torch.tensor([0, 23, 32]))
    torch.testing.assert_close(together[:, :23], logits[:1], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(together[:, 23:], logits[1:, :9], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", ["softmax", "local heads", "auto", "exact", "local"])
def test_padding_changes_nothing(kind):
    model = tiny("masked", CAUSAL[kind])
    tokens = torch.randint(0, 25, (2, 11))
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[1, 6:] = False
    padded = model(tokens, key_mask=mask)
    torch.testing.assert_close(padded[1:, :6], model(tokens[1:, :6]), atol=2e-5, rtol=2e-5)


def test_training_with_checkpoints_gives_the_same_gradients():
    model = tiny(dropout=0.0).train()
    tokens = torch.randint(0, 25, (2, 11))
    grads = []
    for recompute in (False, True):
        model.gradient_checkpointing = recompute
        model.zero_grad()
        model(tokens).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_keeps_projections():
    model = tiny()
    before = model.state_dict()["blocks_0.attention.kind.projection"].clone()
    half = model.to(torch.bfloat16)
    assert torch.equal(half.state_dict()["blocks_0.attention.kind.projection"], before)
    assert half(torch.randint(0, 25, (1, 5))).dtype == torch.bfloat16


def test_compiles():
    model = tiny()
    tokens = torch.randint(0, 25, (2, 11))
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens), atol=1e-5, rtol=1e-5)


def test_generate():
    model = tiny()
    made = list(performer.generate(model, 5, prompt="MK", max_length=9, seed=3, batch_size=2))
    assert [one.number for one in made] == [0, 1, 2, 3, 4]
    again = list(performer.generate(model, 5, prompt="MK", max_length=9, seed=3, batch_size=4))
    assert [one.tokens for one in made] == [one.tokens for one in again]
    assert all(one.text.startswith("MK") and len(one.tokens) <= 9 for one in made)
    greedy = next(performer.generate(model, temperature=0, max_length=6))
    tokens = [model.vocabulary.bos, *greedy.tokens]
    logits = model(torch.tensor([tokens]))[0]
    logits[:, [25, 27, 28]] = -torch.inf
    logits[0, 26] = -torch.inf
    assert logits.argmax(-1).tolist()[: len(greedy.tokens)] == greedy.tokens
    scored = next(performer.score(model, [greedy.text]))
    assert scored.total == pytest.approx(greedy.log_likelihood, abs=1e-4) or greedy.ended
    for message, options in (("temperature", {"temperature": -1}), ("top_p", {"top_p": 0}), ("top_k", {"top_k": -1})):
        with pytest.raises(ValueError, match=message):
            next(performer.generate(model, **options))
    with pytest.raises(ValueError, match="cannot stream"):
        next(performer.generate(tiny("masked")))


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_embed(objective):
    model = tiny(objective)
    texts = ["MKV", "ACDEFGHIKL", "W"]
    made = list(performer.embed(model, texts, batch_tokens=12))
    assert [one.id for one in made] == ["1", "2", "3"]
    for text, one in zip(texts, made, strict=True):
        assert one.tokens.shape == (len(text), 16)
        torch.testing.assert_close(one.mean, one.tokens.mean(0))
        alone = next(performer.embed(model, [text]))
        torch.testing.assert_close(alone.tokens, one.tokens, atol=1e-5, rtol=1e-5)
    assert next(performer.embed(model, texts, layer=0)).tokens.shape == (3, 16)
    with pytest.raises(ValueError, match="layer must be"):
        next(performer.embed(model, texts, layer=3))


def test_fasta_rules(tmp_path):
    path = tmp_path / "a.fasta"
    path.write_bytes(b"\xef\xbb\xbf; comment\r\n>sp|P1|X first\r\nMKj-.\r\n\r\nac *\r\n>second\x01other\nW\n")
    vocabulary = performer.Vocabulary.protein()
    found = list(performer.read_fasta(path, vocabulary))
    assert [(one.id, vocabulary.decode(one.tokens), one.number) for one in found] == [
        ("sp|P1|X", "MKXAC", 1),
        ("second", "W", 2),
    ]
    for content, message in (
        (b">a\nMK1\n", r"record 1 \('a'\), line 2: illegal letter '1' in column 3"),
        (b">a\nM*K\n", r"'\*' in the middle"),
        (b">a\n>b\nM\n", "without letters"),
        (b"MKV\n", "begins with '>'"),
        (b"", "is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(performer.read_fasta(path, vocabulary))


def test_vocabularies():
    for name in ("protein", "dna", "rna", "bytes", "pixels"):
        vocabulary = performer.Vocabulary.named(name)
        assert performer.Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert performer.Vocabulary.named("dna").encode("ACGUR") == [0, 1, 2, 3, 4]
    assert performer.Vocabulary.named("pixels").encode("0 255") == [0, 255]
    with pytest.raises(ValueError, match="position 2"):
        performer.Vocabulary.protein().encode("M1")
    numbers = performer.Vocabulary("ids", (b"0", b"3", b"5"), numbers=True)  # of a source whose markers were 1, 2 and 4
    assert numbers.encode("5 03") == [2, 1]
    imported = performer.Vocabulary("x", (b"A", b"B", b"<pad 1>"), reserved=1, source_ids=(4, 5, 1, 0, 2, -1, 3))
    assert performer.Vocabulary.from_json(imported.to_json()) == imported
    with pytest.raises(ValueError, match="illegal letter b'<'"):
        imported.encode("A<pad 1>")
    with pytest.raises(ValueError, match="3 of 3 symbols"):
        performer.Vocabulary("x", (b"A", b"B", b"C"), reserved=3)
    with pytest.raises(ValueError, match="source_ids has 3 ids for 2 symbols and 4 markers"):
        performer.Vocabulary("x", (b"A", b"B"), source_ids=(1, 2, 3))


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder"):
        LanguageModel.from_pretrained(tmp_path / "none")
    model = tiny()
    model.save_pretrained(tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    text = config.read_text()
    for old, new, message in (
        ('"format": 2', '"format": 3', "format 3"),
        ('"layers": 2', '"layer": 2', "unknown key 'model.layer'.*'model.layers'"),
        ('"layers": 2', '"layers": 3', "no tensor 'blocks_2"),
        ('"favor-softmax"', '"jax-relu"', "has no form in Python"),
    ):
        config.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            LanguageModel.from_pretrained(tmp_path / "m")
