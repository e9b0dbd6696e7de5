#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records small random models and their logits by transformers itself: record_pretrained.py OUT.

Each becomes a folder OUT/NAME as users have it (config.json, weights, tokens) with expected.safetensors beside it: `tokens`
and `mask` [B, T], and `logits` [B, T, V] of the tokens that the mask shows. Run with transformers 5.24.0 and torch 2.13.0.
"""
import argparse
import copy
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file

AMINO = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
ESM = ["<cls>", "<pad>", "<eos>", "<unk>", *AMINO, "<null_1>", "<mask>"]
PROT_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", *"ACDEFGHIKLMNPQRSTVWY", "<mask>"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##se", "pro", "##tein", "fold", "##s", "!"]


def randomised(model):
    """Weights large enough that every part of the model shows in its logits."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.25 if parameter.dim() > 1 else 0.1
            draw = torch.randn(parameter.shape, generator=generator) * scale
            norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + draw if norm else draw)
    return model.eval()


def inputs(vocabulary, markers, length=14):
    """Two rows, the second padded, with masks where a model has them."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(markers["first"], vocabulary, (2, length), generator=generator)
    tokens[:, 0] = markers["bos"]
    mask = torch.ones(2, length, dtype=torch.long)
    if "mask" in markers:
        tokens[tokens == markers["mask"]] = markers["first"]
        tokens[0, 3] = tokens[0, 9] = markers["mask"]
    if "pad" in markers:
        mask[1, 10:] = 0
        tokens[1, 9] = markers["eos"]
        tokens[1, 10:] = markers["pad"]
    tokens[0, -1] = markers["eos"]
    return tokens, mask


def record(out, name, model, markers, texts=None, save=None, vocabulary_file="vocab.txt"):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = randomised(model)
    tokens, mask = inputs(model.config.vocab_size, markers)
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask).logits
    if save:
        save(model, folder)
    else:
        model.save_pretrained(folder)
        for extra in ("generation_config.json",):
            (folder / extra).unlink(missing_ok=True)
    if texts:
        (folder / vocabulary_file).write_text("".join(text + "\n" for text in texts))
    save_file({"tokens": tokens, "mask": mask, "logits": logits.contiguous()}, folder / "expected.safetensors")
    print(name, "std of logits", float(logits.std()))


SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)


def bert():
    config = transformers.BertConfig(vocab_size=len(PROT_BERT), max_position_embeddings=20, **SIZES)
    return transformers.BertForMaskedLM(config)


def roberta_config():
    return transformers.RobertaConfig(vocab_size=len(ROBERTA), max_position_embeddings=22, type_vocab_size=1,
                                      layer_norm_eps=1e-5, **SIZES)


def esm(dropout=True, positions="rotary"):
    config = transformers.EsmConfig(vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type=positions,
                                    token_dropout=dropout, emb_layer_norm_before=positions != "rotary",
                                    max_position_embeddings=30, layer_norm_eps=1e-5, **SIZES)
    model = transformers.EsmForMaskedLM(config)
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and "original" not in name:  # as training in half precision leaves them
            buffer.copy_(buffer.half().float())
    return model


def layer_rates(model):
    """The rates of rotation of each layer, by its number: published files have them there."""
    rates = {n: b for n, b in model.named_buffers() if n.endswith("inv_freq") and "original" not in n}
    assert rates
    first = next(iter(rates.values()))
    assert all(first.equal(other) for other in rates.values())
    return [(layer, first.clone()) for layer in range(model.config.num_hidden_layers)]


def stored_rates(model, folder):
    """ESM-2's folder has its rates of rotation in the file, whether this version of transformers writes them or not."""
    model.save_pretrained(folder)
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.decoder.weight"}
    for name, rates in layer_rates(model):
        state[f"esm.encoder.layer.{name}.attention.self.rotary_embeddings.inv_freq"] = rates
    state.pop("esm.embeddings.position_ids", None)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def fairseq_names(state, prefix, rates=()):
    table = [("esm.", ""), ("roberta.", ""), ("embeddings.word_embeddings", "embed_tokens"),
             ("embeddings.position_embeddings", "embed_positions"), ("embeddings.LayerNorm", "emb_layer_norm"),
             ("encoder.layer.", "layers."), ("attention.self.query", "self_attn.q_proj"),
             ("attention.self.key", "self_attn.k_proj"), ("attention.self.value", "self_attn.v_proj"),
             ("attention.output.dense", "self_attn.out_proj"), ("attention.output.LayerNorm", "self_attn_layer_norm"),
             ("attention.LayerNorm", "self_attn_layer_norm"), ("intermediate.dense", "fc1"), ("output.dense", "fc2"),
             ("output.LayerNorm", "final_layer_norm"), ("encoder.emb_layer_norm_after", "emb_layer_norm_after"),
             ("lm_head.decoder.weight", "lm_head.weight")]
    renamed = {}
    for name, tensor in state.items():
        if any(part in name for part in ("position_ids", "token_type", "decoder.bias", "contact_head", "inv_freq")):
            continue
        for theirs, fairseq in table:
            name = name.replace(theirs, fairseq)
        if ".LayerNorm." in name:  # ESM's norm before the feed-forward part
            name = name.replace(".LayerNorm.", ".final_layer_norm.")
        head = name.startswith("lm_head")
        renamed[(prefix[0] if head else prefix[1]) + name] = tensor.clone()
    for layer, tensor in rates:
        renamed[f"{prefix[1]}layers.{layer}.self_attn.rot_emb.inv_freq"] = tensor
    return renamed


def save_fairseq_esm(model, folder):
    state = fairseq_names(model.state_dict(), ("encoder.", "encoder.sentence_encoder."), layer_rates(model))
    cfg = argparse.Namespace(arch="esm2", encoder_layers=2, encoder_embed_dim=32, encoder_attention_heads=4, token_dropout=True)
    torch.save({"cfg": {"model": cfg}, "model": state}, folder / "esm2_tiny.pt")


def save_fairseq_roberta(model, folder):
    state = fairseq_names(model.state_dict(), ("decoder.", "decoder.sentence_encoder."))
    # fairseq has no types of tokens.
    state["decoder.sentence_encoder.embed_positions.weight"] += model.roberta.embeddings.token_type_embeddings.weight[0]
    args = argparse.Namespace(arch="roberta_small", encoder_attention_heads=4, activation_fn="gelu", dropout=0.1, lr=[0.1],
                              task=None)
    content = {"args": args, "model": state, "extra_state": {"best": 1.5, "epoch": 7}, "last_optimizer_state": None}
    torch.save(content, folder / "checkpoint.pt", _use_new_zipfile_serialization=False)
    (folder / "dict.txt").write_text("".join(f"{token} 1\n" for token in ROBERTA[4:-1]))


def sharded(model, folder):
    model.save_pretrained(folder, max_shard_size="12KB")
    assert (folder / "model.safetensors.index.json").exists()


def pytorch_bin(model, folder):
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def main():
    out = pathlib.Path(sys.argv[1])
    prot = dict(bos=2, eos=3, pad=0, mask=4, first=5)
    esm_markers = dict(bos=0, eos=2, pad=1, mask=32, first=4)
    roberta_markers = dict(bos=0, eos=2, pad=1, mask=24, first=4)
    record(out, "bert", bert(), prot, PROT_BERT)
    record(out, "bert_bin", bert(), prot, PROT_BERT, save=pytorch_bin)
    record(out, "roberta", transformers.RobertaForMaskedLM(roberta_config()), roberta_markers, ROBERTA, save=sharded)
    record(out, "esm2", esm(), esm_markers, ESM, save=stored_rates)
    record(out, "esm1b", esm(dropout=False, positions="absolute"), esm_markers, ESM)
    record(out, "fairseq_esm2", esm(), esm_markers, save=save_fairseq_esm)
    record(out, "fairseq_roberta", transformers.RobertaForMaskedLM(roberta_config()), roberta_markers,
           save=save_fairseq_roberta)
    distilbert = transformers.DistilBertConfig(vocab_size=len(WORDS), max_position_embeddings=20, dim=32, n_layers=2,
                                               n_heads=4, hidden_dim=48)
    record(out, "distilbert", transformers.DistilBertForMaskedLM(distilbert), prot, WORDS)
    gpt2 = transformers.GPT2Config(vocab_size=27, n_positions=20, n_embd=32, n_layer=2, n_head=4, n_inner=48, bos_token_id=26,
                                   eos_token_id=26)
    record(out, "gpt2", transformers.GPT2LMHeadModel(gpt2), dict(bos=26, eos=26, first=0))
    llama = dict(vocab_size=25, max_position_embeddings=40, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, **SIZES)
    turns = dict(rope_type="default", rope_theta=100.0)
    record(out, "llama", transformers.LlamaForCausalLM(transformers.LlamaConfig(rope_parameters=turns, **copy.deepcopy(llama))),
           dict(bos=1, eos=2, first=3))
    scaling = dict(rope_type="llama3", rope_theta=50.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                   original_max_position_embeddings=16)
    config = transformers.LlamaConfig(rope_parameters=scaling, tie_word_embeddings=True, **copy.deepcopy(llama))
    record(out, "llama3", transformers.LlamaForCausalLM(config), dict(bos=1, eos=2, first=3))
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    (out / "versions.json").write_text(json.dumps(versions) + "\n")


if __name__ == "__main__":
    main()
