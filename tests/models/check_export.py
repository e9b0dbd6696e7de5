#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whether transformers computes from exported folders what was recorded: check_export.py PERFORMER [RECORDINGS].

For each recorded folder that a shape can express: performer convert, performer export, transformers loads the result, and the
largest difference of its logits from those recorded is printed; above 1e-5 it is an error.
"""
import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

CLASSES = {"bert": "BertForMaskedLM", "roberta": "RobertaForMaskedLM", "esm2": "EsmForMaskedLM", "esm1b": "EsmForMaskedLM",
           "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "fairseq_esm2": "EsmForMaskedLM",
           "fairseq_roberta": "RobertaForMaskedLM", "distilbert": "BertForMaskedLM"}
FILES = {"fairseq_esm2": "esm2_tiny.pt", "fairseq_roberta": "checkpoint.pt"}


def main():
    program = sys.argv[1]
    recordings = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else pathlib.Path(__file__).parent / "pretrained"
    for name, cls in CLASSES.items():
        with tempfile.TemporaryDirectory() as folder:
            source = recordings / name / FILES.get(name, "")
            words = name in ("gpt2", "llama", "distilbert")
            subprocess.run([program, "convert", source, "-o", f"{folder}/ours", "--quiet",
                            *(["--tokenizer", "ids"] if words else [])], check=True)
            subprocess.run([program, "export", f"{folder}/ours", "-o", f"{folder}/theirs", "--quiet"], check=True)
            model, info = getattr(transformers, cls).from_pretrained(f"{folder}/theirs", output_loading_info=True)
            expected = load_file(recordings / name / "expected.safetensors")
            with torch.no_grad():
                logits = model.eval()(input_ids=expected["tokens"], attention_mask=expected["mask"]).logits
            difference = ((logits - expected["logits"]).abs() * expected["mask"][..., None]).max()
            missing = {key for key in info["missing_keys"] if "position_ids" not in key and "contact_head" not in key}
            print(f"{name}: largest difference {float(difference):.2e}, missing {missing}, unexpected {info['unexpected_keys']}")
            assert difference < 1e-5, name


if __name__ == "__main__":
    main()
