# SPDX-License-Identifier: Apache-2.0
"""The project's own models by the automatic classes of transformers."""

import json
import os
import pathlib
import pickle
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers", minversion="5.24")

import performer  # noqa: E402
from performer import AttentionConfig, FeatureMap, LanguageModel, ModelConfig, Vocabulary  # noqa: E402
from performer.integrations.transformers import (  # noqa: E402
    PerformerConfig,
    PerformerForCausalLM,
    PerformerTokenizer,
    register,
)

ROOT = pathlib.Path(__file__).resolve().parents[3]
PROGRAM = pathlib.Path(os.environ.get("PERFORMER_PROGRAM", ROOT / "build/release/bin/performer"))
needs_program = pytest.mark.skipif(
    not PROGRAM.is_file(), reason=f"there is no program {PROGRAM}: build it, or set PERFORMER_PROGRAM"
)
AUTO = {"causal": transformers.AutoModelForCausalLM, "masked": transformers.AutoModelForMaskedLM}
KINDS = {
    "softmax": AttentionConfig("favor-softmax", options={"features": 16}),
    "hedgehog": AttentionConfig("favor-hedgehog", qk_norm=True, learned_temperature=True),
    "exact": AttentionConfig("exact", local_heads=1),
}


def native(folder, objective="causal", kind="softmax", vocabulary=None, **model):
    config = ModelConfig(objective=objective, layers=2, width=16, heads=2, ffn=32, **model)
    torch.manual_seed(0)
    made = LanguageModel(config, KINDS[kind], vocabulary).eval()
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_folder_loads_and_returns(tmp_path, objective, kind):
    shape = {"positions": "axial", "max_length": 70, "tied_output": True} if kind == "hedgehog" else {}
    expected = native(tmp_path / "a", objective, kind, **shape)
    model = AUTO[objective].from_pretrained(tmp_path / "a")
    tokens = torch.randint(0, 25, (2, 9))
    assert type(model).__name__ == {"causal": "PerformerForCausalLM", "masked": "PerformerForMaskedLM"}[objective]
    assert torch.equal(model(tokens).logits, expected(tokens))
    assert next(performer.score(model, ["MKV"])).total == next(performer.score(expected, ["MKV"])).total
    model.save_pretrained(tmp_path / "b")
    assert torch.equal(LanguageModel.from_pretrained(tmp_path / "b")(tokens), expected(tokens))
    assert torch.equal(AUTO[objective].from_pretrained(tmp_path / "b")(tokens).logits, expected(tokens))


@pytest.mark.parametrize("kind", ["softmax", "hedgehog"])
def test_nothing_is_left_uninitialised(tmp_path, kind):
    native(tmp_path, kind=kind)
    weights = load_file(tmp_path / "model.safetensors")
    gone = {name for name in weights if "kind." in name or "gain" in name or name.startswith(("final_norm", "output"))}
    kept = {name: x for name, x in weights.items() if name not in gone}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, found in model.state_dict().items():
        if name in gone and not name.startswith("output"):  # projections by their seed, the others where they begin
            expected = weights[name].to(found.dtype)
            torch.testing.assert_close(found, expected, msg=lambda m, name=name: f"{name}: {m}")
        assert found.isfinite().all(), name
    projections = [x for name, x in model.state_dict().items() if name.endswith("projection")]
    assert all(x.dtype == torch.float32 for x in projections)
    assert model.output.weight.dtype == torch.bfloat16
    assert 0 < model.output.weight.abs().max() < 1
    with torch.device("meta"):
        shapes = PerformerForCausalLM(PerformerConfig.from_pretrained(tmp_path))
    assert shapes.output.weight.is_meta


def test_padding_on_either_side(tmp_path):
    for objective in ("causal", "masked"):
        native(tmp_path, objective)
        model = AUTO[objective].from_pretrained(tmp_path)
        row = torch.randint(0, 25, (1, 5))
        other = torch.randint(0, 25, (1, 9))
        alone = model(row).logits[0]
        for own in (slice(0, 5), slice(4, 9)):
            tokens, mask = other.repeat(2, 1), torch.ones(2, 9, dtype=torch.long)
            mask[0] = 0
            tokens[0, own], mask[0, own] = row[0], 1
            together = model(tokens, attention_mask=mask).logits
            torch.testing.assert_close(together[0, own], alone, atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(together[1], model(other).logits[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["greedy", "sampling", "beams"])
def test_generation_is_recomputation(tmp_path, kind, way):
    native(tmp_path, kind=kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.padding_side == "left"
    batch = tokenizer(["MKVLLA", "MK"], padding=True, return_tensors="pt")
    more = {"greedy": {}, "sampling": {"do_sample": True, "num_return_sequences": 2}, "beams": {"num_beams": 3}}[way]
    found = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        options = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "use_cache": use_cache, **more}
        found.append(model.generate(**batch, **options))
    assert torch.equal(*found)
    assert found[0].shape[1] == batch["input_ids"].shape[1] + 10
    text = tokenizer.batch_decode(found[0], skip_special_tokens=True)
    assert text[0].startswith("MKVLLA")


def test_the_cache_has_one_size(tmp_path):
    native(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(0, 25, (2, 30))
    with torch.no_grad():
        first = model(tokens[:, :20], use_cache=True)
        size = len(pickle.dumps([b.attention.kind.state for b in first.cache.state.blocks]))
        second = model(tokens[:, 20:], cache=first.cache, use_cache=True)
        expected = model(tokens).logits
    assert second.cache.get_seq_length() == 30
    assert len(pickle.dumps([b.attention.kind.state for b in second.cache.state.blocks])) == size
    torch.testing.assert_close(second.logits, expected[:, 20:], atol=2e-5, rtol=2e-5)


def test_losses_and_other_heads(tmp_path):
    native(tmp_path, "masked")
    tokens = torch.randint(0, 25, (3, 9))
    labels = tokens.masked_fill(torch.rand(3, 9) < 0.5, -100)
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(model(tokens, labels=labels).loss, loss)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    answer = classifier(tokens, labels=torch.tensor([0, 3, 1]))
    assert answer.logits.shape == (3, 4)
    answer.loss.backward()
    assert all(p.grad is not None for p in classifier.parameters())
    trunk = transformers.AutoModel.from_pretrained(tmp_path)
    states = trunk(tokens, output_hidden_states=True)
    assert len(states.hidden_states) == 3
    torch.testing.assert_close(states.last_hidden_state, model.hidden(tokens))
    native(tmp_path, "causal")
    causal = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    shifted = torch.nn.functional.cross_entropy(causal(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(causal(tokens, labels=tokens).loss, shifted)


def test_refusals_by_name(tmp_path):
    native(tmp_path, kind="exact")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.randint(0, 25, (2, 9))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(tokens, attention_mask=torch.ones(2, 1, 9, 9))
    with pytest.raises(ValueError, match="output_attentions"):
        model(tokens, output_attentions=True)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(inputs_embeds=torch.zeros(2, 9, 16))
    with torch.no_grad(), pytest.raises(ValueError, match="use_cache=False"):
        model(tokens, use_cache=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["attention"]["kind"] = "sparse"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="sparse has no form in Python"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(transformers.AutoTokenizer.from_pretrained(tmp_path), PerformerTokenizer)  # which Python has


PIECES = Vocabulary(
    "pieces",
    (*(piece.encode() for piece in ("a", "b", " ", "ab", "abcd", "the", "the ", "é", "\n", ".*", "(", "]")), b"\xc3"),
    aliases=(("[", "]"),),
)
IMPORTED = Vocabulary("letters", (b"L", b"A", b"<null_1>"), reserved=1, source_ids=(4, 5, 31, 0, 2, 1, 32))
NUMBERS = Vocabulary("ids", (b"1", b"2", b"5"), numbers=True, source_ids=(1, 2, 5, 0, 3, -1, 4))
VOCABULARIES = {
    "protein": (Vocabulary.named("protein"), "MKVJX"),
    "dna": (Vocabulary.named("dna"), "ACGTUN"),
    "bytes": (Vocabulary.named("bytes"), "naïve\n\t <b>"),
    "pixels": (Vocabulary.named("pixels"), "0 255 7"),
    "pieces": (PIECES, "abcdthe ab\n[é(.*]the"),
    "imported": (IMPORTED, "LALA"),
    "numbers": (NUMBERS, "5 1 2"),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_tokenizers(tmp_path, name):
    vocabulary, text = VOCABULARIES[name]
    native(tmp_path, "masked", vocabulary=vocabulary)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = vocabulary.encode(text)
    assert tokenizer(text)["input_ids"] == [vocabulary.bos, *ids, vocabulary.eos]
    assert tokenizer.decode(ids) == vocabulary.decode(ids)
    assert len(tokenizer) == len(vocabulary)
    assert [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id] == [
        *range(len(vocabulary) - 4, len(vocabulary))
    ]
    assert tokenizer("<mask>")["input_ids"][1:-1] == [vocabulary.mask]
    tokenizer.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert type(again) is PerformerTokenizer
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert pickle.loads(pickle.dumps(again))(text)["input_ids"] == tokenizer(text)["input_ids"]
    padded = tokenizer([text, text[:1]], padding=True, return_tensors="pt")
    assert padded["attention_mask"].sum(1).tolist() == [len(ids) + 2, 3]


def test_tokenizers_name_what_is_no_symbol():
    tokenizer = PerformerTokenizer(Vocabulary.protein(), "causal")
    assert tokenizer("MK")["input_ids"] == [25, 10, 8]
    with pytest.raises(ValueError, match="illegal letter b'1' at position 3"):
        tokenizer(["MKV", "MK1"])
    with pytest.raises(ValueError, match="reads 'c' as 'a' and has longer symbols with one of these letters"):
        PerformerTokenizer(Vocabulary("words", (b"a", b"bc"), aliases=(("c", "a"),)))


def test_tokenizers_take_the_longest_symbol():
    assert PIECES.encode("the abcdab") == [6, 4, 3]
    tokenizer = PerformerTokenizer(PIECES, "causal")
    assert tokenizer.convert_ids_to_tokens([6, 7]) == ["theĠ", "Ã©"]
    generator = random.Random(7)
    parts = ["a", "b", "[", " ", "ab", "abcd", "the", "the ", "é", "\n", ".*", "(", "]"]
    for _ in range(200):
        text = "".join(generator.choices(parts, k=9))
        assert tokenizer(text)["input_ids"][1:] == PIECES.encode(text)
        assert tokenizer.decode(PIECES.encode(text)) == PIECES.decode(PIECES.encode(text))
    with pytest.raises(ValueError, match="illegal letter b'c' at position 3"):
        tokenizer("abc")


def test_no_text_stands_for_reserved_symbols(tmp_path):
    tokenizer = PerformerTokenizer(IMPORTED)
    assert tokenizer("LA")["input_ids"] == [3, 0, 1, 4]
    for text in ("<null_1>", "<reserved 2>"):
        with pytest.raises(ValueError, match="illegal letter b'<' at position 1"):
            tokenizer(text)
    with pytest.raises(ValueError, match="b'3' is no value of the vocabulary ids: expected 1 to 5"):
        PerformerTokenizer(NUMBERS)("5 3")
    tokenizer.save_pretrained(tmp_path)
    assert Vocabulary.from_json((tmp_path / "tokenizer.json").read_text()) == IMPORTED


def test_tokenizers_of_many_symbols():
    generator = random.Random(3)
    symbols = {"".join(generator.choices("etaoin srh", k=generator.randint(2, 9))) for _ in range(20000)}
    vocabulary = Vocabulary("many", tuple(symbol.encode() for symbol in [*"etaoin srh", *sorted(symbols)]))
    tokenizer = PerformerTokenizer(vocabulary, "causal")
    text = "".join(generator.choices("etaoin srh", k=2000))
    start = time.thread_time()
    assert tokenizer(text)["input_ids"][1:] == vocabulary.encode(text)
    assert time.thread_time() - start < 5


def test_remote_code(tmp_path):
    """Without an import before, as a folder on the hub is loaded."""
    native(tmp_path / "a", "masked")
    transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    program = f"""
from transformers import AutoModelForMaskedLM, AutoTokenizer
folder = {str(tmp_path / "b")!r}
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
print(model(**tokenizer("MKV", return_tensors="pt")).logits.sum().item())
"""
    paths = [str(ROOT / "python")] if "PERFORMER_OPS_LIBRARY" in os.environ else []
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = LanguageModel.from_pretrained(tmp_path / "a")(torch.tensor([[25, 10, 8, 17, 26]])).sum().item()
    assert float(done.stdout.split()[-1]) == pytest.approx(expected, abs=1e-3)


def test_trainer_and_the_way_back(tmp_path):
    pytest.importorskip("accelerate")
    native(tmp_path / "a")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    rows = [{"input_ids": tokenizer("MKVLLAACDEFG")["input_ids"]}] * 8
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "runs"),
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        use_cpu=True,
        gradient_checkpointing=True,
        report_to=[],
        logging_steps=1,
        save_steps=10,
    )
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
    again = transformers.Trainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a"),
        args=arguments,
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
    )
    again.train(resume_from_checkpoint=str(tmp_path / "runs/checkpoint-10"))
    model.eval(), again.model.eval()
    tokens = torch.randint(0, 25, (1, 9))
    torch.testing.assert_close(again.model(tokens).logits, model(tokens).logits, atol=1e-4, rtol=1e-4)
    read = LanguageModel.from_pretrained(tmp_path / "runs/checkpoint-20")
    torch.testing.assert_close(read(tokens), model(tokens).logits)


def run(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def write_fasta(path):
    path.write_text(">a\nMKVLLAACDE\n>b\nMKWY\n>c\nACDEFGHIKLMNPQRSTVWY\n")
    return path


@needs_program
def test_a_folder_of_the_program_and_back(tmp_path):
    fasta = write_fasta(tmp_path / "a.fasta")
    settings = ["attention.kind=favor-softmax", "attention.features=16", "data.batch_tokens=64", "data.length=32"]
    given = [part for setting in settings for part in ("--set", setting)]
    run("train", "-o", tmp_path / "m", "--train", fasta, "--preset", "tiny", "--steps", 2, *given)
    # A folder of a program older than this integration has no name of a class.
    config = json.loads((tmp_path / "m/config.json").read_text())
    if "model_type" not in config:
        LanguageModel.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "m")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "m")) == 29
    model.save_pretrained(tmp_path / "copy")
    if "model_type" not in config:
        pytest.skip("this program does not read what transformers writes; build it again")
    assert run("score", tmp_path / "copy", fasta) == run("score", tmp_path / "m", fasta)


@needs_program
def test_an_exported_folder_takes_linear_attention(tmp_path):
    register("favor_many", FeatureMap(features=8192))
    register("favor_few", FeatureMap(features=16))
    fasta = write_fasta(tmp_path / "a.fasta")
    settings = ["attention.kind=exact", "model.objective=masked", "model.activation=gelu"]
    settings += ["model.output_head=transform", "model.output_scale=1", "data.batch_tokens=64", "data.length=32"]
    given = [part for setting in settings for part in ("--set", setting)]
    run("train", "-o", tmp_path / "m", "--train", fasta, "--preset", "tiny", "--steps", 2, *given)
    run("export", tmp_path / "m", "-o", tmp_path / "esm")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "esm").eval()
    tokens = torch.randint(4, 24, (2, 12))
    with torch.no_grad():
        logits = [model(tokens).logits]
        for name in ("favor_many", "favor_few"):
            model.set_attn_implementation(name)
            logits.append(model(tokens).logits)
    many, few = ((other - logits[0]).norm().item() for other in logits[1:])
    assert 0 < many < 0.6 * few  # queries and keys are as long as the program makes them
