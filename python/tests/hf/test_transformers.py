# SPDX-License-Identifier: Apache-2.0
"""Linear attention in tiny random models of Hugging Face's architectures."""

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.0")

from performer import FeatureMap  # noqa: E402
from performer.integrations.transformers import FavorCache, register  # noqa: E402

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
ENCODERS = {
    "bert": lambda: (transformers.BertForMaskedLM, transformers.BertConfig(**SIZES)),
    "roberta": lambda: (transformers.RobertaForMaskedLM, transformers.RobertaConfig(**SIZES)),
    "esm": lambda: (
        transformers.EsmForMaskedLM,
        transformers.EsmConfig(**SIZES, pad_token_id=1, mask_token_id=2, position_embedding_type="rotary"),
    ),
    "distilbert": lambda: (
        transformers.DistilBertForMaskedLM,
        transformers.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=37),
    ),
}
DECODERS = {
    "gpt2": lambda: (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=None),
    ),
    "llama": lambda: (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**SIZES, num_key_value_heads=2, bos_token_id=0, eos_token_id=None),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def registered():
    register()
    register("favor_many", FeatureMap(features=4096))


def build(name):
    torch.manual_seed(0)
    form, config = {**ENCODERS, **DECODERS}[name]()
    return form(config).eval()


def batch(name):
    tokens = torch.randint(3, 50, (2, 9))
    mask = torch.ones_like(tokens)
    if name in DECODERS:
        mask[1, :3] = 0  # padding on the left
    else:
        mask[1, 6:] = 0
    return tokens, mask


@pytest.mark.parametrize("name", [*ENCODERS, *DECODERS])
def test_estimates_exact_attention(name):
    model = build(name)
    tokens, mask = batch(name)
    with torch.no_grad():
        exact = model(tokens, attention_mask=mask)[0][mask.bool()]
        model.set_attn_implementation("favor_many")
        estimate = model(tokens, attention_mask=mask)[0][mask.bool()]
        model.set_attn_implementation("favor_relu")
        other = model(tokens, attention_mask=mask)[0][mask.bool()]
    error = ((estimate - exact).norm() / exact.norm()).item()
    assert error < 0.01
    assert ((other - exact).norm() / exact.norm()).item() > 2 * error


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_is_not_seen(name):
    model = build(name)
    model.set_attn_implementation("favor_softmax")
    tokens, mask = batch(name)
    with torch.no_grad():
        together = model(tokens, attention_mask=mask)[0][1, :6]
        alone = model(tokens[1:, :6], attention_mask=mask[1:, :6])[0][0]
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("way", ["greedy", "sampling", "beams"])
@pytest.mark.parametrize("name", DECODERS)
def test_cached_generation_is_recomputation(name, way):
    model = build(name)
    model.set_attn_implementation("favor_softmax")
    tokens, mask = batch(name)
    options = {
        "greedy": {"do_sample": False},
        "sampling": {"do_sample": True, "num_return_sequences": 2},
        "beams": {"do_sample": False, "num_beams": 3},
    }[way]
    results = []
    for cache in (None, FavorCache()):  # the default cache keeps all keys, and attention reads them again
        torch.manual_seed(1)
        more = {} if cache is None else {"cache": cache}
        made = model.generate(tokens, attention_mask=mask, max_new_tokens=12, pad_token_id=0, **options, **more)
        results.append(made)
    assert torch.equal(*results)
    assert cache.layers[0].state.kv.shape[-2] == 256
    assert cache.get_seq_length() == 9 + 11


def test_refusals_by_name():
    model = build("bert")
    model.set_attn_implementation("favor_softmax")
    tokens, _ = batch("bert")
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(tokens, attention_mask=torch.ones(2, 1, 9, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="output_attentions"):
        model(tokens, output_attentions=True)
    with pytest.raises(ValueError, match="learned weights"):
        register("favor_mine", "hedgehog")
    with pytest.raises(ValueError, match="reserves"):
        register("flash_mine")
    config = transformers.MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=4)
    sliding = transformers.MistralForCausalLM(config)
    sliding.set_attn_implementation("favor_softmax")
    with pytest.raises(ValueError, match="sliding window"):
        sliding(tokens)


def test_trainer_in_bfloat16_with_checkpoints(tmp_path):
    pytest.importorskip("accelerate")
    model = build("llama").train()
    model.set_attn_implementation("favor_softmax")
    rows = [{"input_ids": list(range(3, 12)), "labels": list(range(3, 12))}] * 8
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        bf16=True,
        use_cpu=True,
        gradient_checkpointing=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]
