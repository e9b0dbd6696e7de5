#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the small set of recorded outputs that lies in the project: pick_golden.py FROM TO [--each N] [--largest BYTES].

FROM holds folders of schema golden-1 (an index.json and safetensors files). Of every group and function the N smallest cases
are copied, and further ones while they bring an option value that no smaller case had, unless larger than BYTES.
"""
import argparse
import json
import pathlib
import struct


def read_tensors(path):
    """Name -> (header entry, bytes) of a safetensors file."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (entry, data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]])
            for name, entry in header.items()}


def write_tensors(path, tensors):
    """Writes name -> (header entry, bytes), in order of name."""
    header, blobs, offset = {}, [], 0
    for name in sorted(tensors):
        entry, blob = tensors[name]
        header[name] = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def pick(cases, tensors, each, largest):
    """The chosen cases of one group and function, smallest first."""
    size = {case["id"]: sum(len(blob) for name, (_, blob) in tensors[case["file"]].items()
                            if name.startswith(case["id"] + "/")) for case in cases}
    chosen, seen = [], set()
    for case in sorted(cases, key=lambda case: (size[case["id"]], case["id"])):
        values = {(key, json.dumps(value)) for key, value in case.get("options", {}).items()
                  if isinstance(value, (bool, str, type(None)))}
        if len(chosen) < each or (values - seen and size[case["id"]] <= largest):
            chosen.append(case)
            seen |= values
    return chosen


# Part of what a case names as its reference, and the folder of that system in TO.
FOLDERS = {"performer JAX": "jax", "performer TensorFlow": "tensorflow", "protein_lm": "protein_lm", "keras": "keras",
           "performer-pytorch": "performer_pytorch", "fast-transformers": "fast_transformers"}


def folder_of(case):
    return next(folder for part, folder in FOLDERS.items() if part in case["reference"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--each", type=int, default=1)
    parser.add_argument("--largest", type=int, default=6000)
    options = parser.parse_args()
    for index_path in sorted(options.source.glob("*/index.json")):
        index = json.loads(index_path.read_text())
        tensors = {path.name: read_tensors(path) for path in index_path.parent.glob("*.safetensors")}
        groups = {}
        for case in index["cases"]:
            groups.setdefault((case["group"], case.get("function")), []).append(case)
        chosen = [case for cases in groups.values() for case in pick(cases, tensors, options.each, options.largest)]
        for folder in sorted({folder_of(case) for case in chosen}):
            target = options.target / folder
            target.mkdir(parents=True, exist_ok=True)
            own = [case for case in chosen if folder_of(case) == folder]
            for file in sorted({case["file"] for case in own}):
                prefixes = tuple(case["id"] + "/" for case in own if case["file"] == file)
                write_tensors(target / file, {name: entry for name, entry in tensors[file].items()
                                              if name.startswith(prefixes)})
            (target / "index.json").write_text(json.dumps(dict(index, cases=own), indent=0, separators=(",", ":")) + "\n")
        print(f"{index_path.parent.name}: {len(chosen)} of {sum(map(len, groups.values()))} cases")


if __name__ == "__main__":
    main()
