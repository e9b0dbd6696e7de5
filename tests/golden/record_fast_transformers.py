#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Records exact attentions of pytorch-fast-transformers 0.4.0: record_fast_transformers.py OUT.

Run where that package and torch are installed. OUT gets an index.json and safetensors files of schema golden-1
(tests/golden/golden.h). Outputs in float64 are recorded too, but for local attention, whose kernel reads float32 alone.
Tolerances: four times the measured difference between the two types, and 1e-6 of the largest result.
"""
import json
import pathlib
import sys

import torch
from fast_transformers import attention, masking
from fast_transformers.builders import (
    RecurrentDecoderBuilder,
    RecurrentEncoderBuilder,
    TransformerDecoderBuilder,
    TransformerEncoderBuilder,
)
from fast_transformers.recurrent.attention import RecurrentCrossFullAttention, RecurrentFullAttention
from safetensors.torch import save_file

REFERENCE = "pytorch-fast-transformers 0.4.0"
SMALL = {"n_layers": 2, "n_heads": 2, "query_dimensions": 4, "value_dimensions": 4, "feed_forward_dimensions": 16, "dropout": 0.0,
         "attention_dropout": 0.0}
ATTENTIONS = [
    ("FullAttention", {}, {"N": 2, "L": 5, "S": 7, "mask": "random", "lengths": [7, 4]}),
    ("FullAttention", {"softmax_temp": 0.7}, {"N": 1, "L": 6, "S": 6, "mask": "causal", "lengths": [6]}),
    ("ExactTopKAttention", {"topk": 3}, {"N": 2, "L": 5, "S": 9, "mask": "full", "lengths": [9, 6]}),
    ("ExactTopKAttention", {"topk": 32, "softmax_temp": 0.5}, {"N": 1, "L": 4, "S": 6, "mask": "full", "lengths": [6]}),
    ("ExactTopKAttention", {"topk": 2}, {"N": 1, "L": 8, "S": 8, "mask": "causal", "lengths": [8]}),
    ("LocalAttention", {"local_context": 4}, {"N": 2, "L": 9, "S": 9, "mask": "full", "lengths": [9, 6]}),
    ("LocalAttention", {"local_context": 5, "softmax_temp": 1.3}, {"N": 1, "L": 11, "S": 11, "mask": "causal", "lengths": [11]}),
    ("LocalAttention", {"local_context": 1}, {"N": 1, "L": 4, "S": 4, "mask": "full", "lengths": [4]}),
    ("LocalAttention", {"local_context": 16}, {"N": 1, "L": 5, "S": 8, "mask": "random", "lengths": [8]}),
    ("LocalAttention", {"local_context": 3}, {"N": 2, "L": 24, "S": 20, "mask": "full", "lengths": [20, 2]}),
    ("LocalAttention", {"local_context": 6}, {"N": 1, "L": 40, "S": 40, "mask": "random", "lengths": [40]}),
    ("LocalAttention", {"local_context": 4}, {"N": 1, "L": 6, "S": 6, "mask": "blind", "lengths": [6]}),
]


class Recording:
    def __init__(self, out):
        self.out, self.cases, self.tensors = out, [], {}
        torch.manual_seed(20210415)

    def add(self, group, function, options, inputs, run, float64=True):
        """run(type) -> outputs by name."""
        case = f"case{1 + sum(one['group'] == group for one in self.cases):02}"
        tensors = self.tensors.setdefault(group, {})
        single, double = run(torch.float32), run(torch.float64) if float64 else {}
        outputs = {}
        for name, value in single.items():
            size = float(value.abs().max())
            apart = float((value - double[name]).abs().max()) if float64 else 4e-7 * size
            entry = {"shape": list(value.shape), "dtype": "float32", "float64": f"{name}64" if float64 else None,
                     "f32": {"atol": float(f"{4 * apart + 1e-6 * size:.1e}"), "rtol": 1e-5},
                     "f64": {"atol": float(f"{1e-9 * max(size, 1e-3):.1e}"), "rtol": 1e-8}}
            outputs[name] = entry
            tensors[f"{case}/{name}"] = value
            if float64:
                tensors[f"{case}/{name}64"] = double[name]
        for name, value in inputs.items():
            tensors[f"{case}/{name}"] = value.int() if value.dtype in (torch.int64, torch.bool) else value
        self.cases.append({"id": case, "group": group, "file": f"{group}.safetensors", "reference": REFERENCE, "function": function,
                           "options": options, "outputs": outputs,
                           "inputs": {name: {"shape": list(value.shape), "dtype": str(tensors[f'{case}/{name}'].dtype)[6:]}
                                      for name, value in inputs.items()}})

    def write(self):
        self.out.mkdir(parents=True, exist_ok=True)
        for group, tensors in self.tensors.items():
            packed = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
            save_file(packed, self.out / f"{group}.safetensors")
        meta = {"reference": REFERENCE, "versions": f"{REFERENCE}, torch {torch.__version__}", "float64": "the same modules in float64"}
        (self.out / "index.json").write_text(json.dumps({"schema": "golden-1", "meta": meta, "cases": self.cases}, indent=1) + "\n")


def mask_of(kind, rows, columns):
    if kind == "causal":
        return masking.TriangularCausalMask(rows)
    if kind == "full":
        return masking.FullMask(rows, columns)
    matrix = (torch.rand(rows, columns) > 0.4) | (torch.eye(rows, columns) > 0)
    if kind == "blind":  # the last query sees nothing
        matrix[-1] = False
    return masking.FullMask(matrix)


def attentions(recording):
    for function, arguments, problem in ATTENTIONS:
        batch, rows, columns, heads, size, value_size = problem["N"], problem["L"], problem["S"], 2, 5, 3
        mask = mask_of(problem["mask"], rows, columns)
        inputs = {"q": torch.randn(batch, rows, heads, size), "k": torch.randn(batch, columns, heads, size),
                  "v": torch.randn(batch, columns, heads, value_size), "cot": torch.randn(batch, rows, heads, value_size),
                  "key_lengths": torch.tensor(problem["lengths"]), "attn_mask": mask.bool_matrix}

        def run(kind, function=function, arguments=arguments, inputs=inputs, mask=mask):
            module = getattr(attention, function)(attention_dropout=0.0, **arguments)
            q, k, v = (inputs[name].to(kind).requires_grad_() for name in "qkv")
            lengths = masking.LengthMask(inputs["key_lengths"], k.shape[1])
            out = module(q, k, v, mask, masking.FullMask(*q.shape[:2]), lengths)
            grads = torch.autograd.grad((out * inputs["cot"]).sum(), (q, k, v))
            return {"out": out.detach(), **dict(zip(("dq", "dk", "dv"), grads))}

        local = "local_context" in arguments
        recording.add("attention", function, {**arguments, "mask": problem["mask"]}, inputs, run, float64=not local)


def recurrent(recording):
    for options in ({}, {"softmax_temp": 0.4}):
        inputs = {name: torch.randn(2, 5, 2, size) for name, size in (("q", 4), ("k", 4), ("v", 3))}

        def own(kind, inputs=inputs, options=options):
            module, state, rows = RecurrentFullAttention(attention_dropout=0.0, **options), None, []
            for i in range(5):
                out, state = module(*(inputs[name][:, i].to(kind) for name in "qkv"), state)
                rows.append(out)
            return {"out": torch.stack(rows, 1)}

        recording.add("recurrent", "RecurrentFullAttention", options, inputs, own)
        inputs = {**inputs, "k": torch.randn(2, 7, 2, 4), "v": torch.randn(2, 7, 2, 3), "key_lengths": torch.tensor([7, 3])}

        def cross(kind, inputs=inputs, options=options):
            module, state, rows = RecurrentCrossFullAttention(attention_dropout=0.0, **options), None, []
            lengths = masking.LengthMask(inputs["key_lengths"], 7)
            for i in range(5):
                out, state = module(inputs["q"][:, i].to(kind), inputs["k"].to(kind), inputs["v"].to(kind), lengths, state)
                rows.append(out)
            return {"out": torch.stack(rows, 1)}

        recording.add("recurrent", "RecurrentCrossFullAttention", options, inputs, cross)


def weights(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return {f"w.{name}": value.detach().clone() for name, value in module.state_dict().items()}


def layers(recording):
    conditional = {"attention_type": "conditional-full:local", "local_context": 4}
    for options in ({"attention_type": "local", "local_context": 4}, {"attention_type": "exact-topk", "topk": 2},
                    {**conditional, "length_limit": 7}, {**conditional, "length_limit": 8}):
        module = TransformerEncoderBuilder.from_kwargs(**SMALL, **options).get().eval()
        inputs = {"x": torch.randn(2, 8, 8), "lengths": torch.tensor([8, 5]), **weights(module)}

        def encode(kind, module=module, inputs=inputs):
            return {"out": module.to(kind)(inputs["x"].to(kind), length_mask=masking.LengthMask(inputs["lengths"], 8)).detach()}

        recording.add("layers", "TransformerEncoder", {**SMALL, **options}, inputs, encode, "local_context" not in options)

    module = RecurrentEncoderBuilder.from_kwargs(**SMALL, attention_type="full").get().eval()
    inputs = {"x": torch.randn(2, 6, 8), **weights(module)}

    def step(kind, module=module, inputs=inputs):
        state, rows = None, []
        for i in range(6):
            out, state = module.to(kind)(inputs["x"][:, i].to(kind), state)
            rows.append(out)
        return {"out": torch.stack(rows, 1).detach()}

    recording.add("layers", "RecurrentTransformerEncoder", {**SMALL, "attention_type": "full"}, inputs, step)

    types = {"self_attention_type": "full", "cross_attention_type": "full"}
    module = TransformerDecoderBuilder.from_kwargs(**SMALL, **types).get().eval()
    mirror = RecurrentDecoderBuilder.from_kwargs(**SMALL, **types).get().eval()
    inputs = {"x": torch.randn(2, 5, 8), "memory": torch.randn(2, 7, 8), "memory_lengths": torch.tensor([7, 4]), **weights(module)}
    mirror.load_state_dict(module.state_dict())

    def decode(kind):
        return {"out": module.to(kind)(inputs["x"].to(kind), inputs["memory"].to(kind), x_mask=masking.TriangularCausalMask(5),
                                       memory_length_mask=masking.LengthMask(inputs["memory_lengths"], 7)).detach()}

    def decode_steps(kind):
        state, rows, lengths = None, [], masking.LengthMask(inputs["memory_lengths"], 7)
        for i in range(5):
            out, state = mirror.to(kind)(inputs["x"][:, i].to(kind), inputs["memory"].to(kind), lengths, state)
            rows.append(out)
        return {"out": torch.stack(rows, 1).detach()}

    named = {"self": "full", "cross": "full", "mask": "causal"}
    recording.add("layers", "TransformerDecoder", {**SMALL, **named}, inputs, decode)
    recording.add("layers", "RecurrentTransformerDecoder", {**SMALL, **named}, inputs, decode_steps)


def main():
    torch.set_num_threads(1)
    recording = Recording(pathlib.Path(sys.argv[1]))
    attentions(recording)
    recurrent(recording)
    layers(recording)
    recording.write()


if __name__ == "__main__":
    main()
