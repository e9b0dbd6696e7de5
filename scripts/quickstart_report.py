#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the result of scripts/quickstart as one table: quickstart_report.py RUN_FOLDER."""
import json
import pathlib
import sys

ROWS = (("model", "this model"), ("bigram", "bigram"), ("unigram", "unigram"))


def training_summary(path):
    """The number of steps and the summary that closes metrics.jsonl."""
    last = json.loads(path.read_text().splitlines()[-1])
    return last["step"], last["final"]


def main():
    run = pathlib.Path(sys.argv[1])
    evaluation = json.loads((run / "evaluation.json").read_text())
    steps = dict(line.split("\t") for line in (run / "times.tsv").read_text().splitlines())
    trained, summary = training_summary(run / "metrics.jsonl")

    print(f"\nHeld-out sequences of the bundled sample ({evaluation['model']['tokens']:,} residues)\n")
    print(f"  {'':12}{'perplexity':>12}{'accuracy':>12}")
    for key, name in ROWS:
        score = evaluation[key]
        print(f"  {name:12}{score['perplexity']:12.2f}{100 * score['accuracy']:11.2f}%")
    print(f"\n  trained {trained:,} steps, {summary['tokens']:,} tokens at {summary['tokens_per_second']:,.0f} tokens/s")
    print("  seconds: " + ", ".join(f"{name} {seconds}" for name, seconds in steps.items()))
    print(f"  in {run}/: config.json model.safetensors evaluation.json scores.tsv samples.fasta metrics.jsonl")
    if evaluation["model"]["perplexity"] >= evaluation["bigram"]["perplexity"]:
        print(f"  The model is not better than the bigram: train longer (rm -r {run}, QUICKSTART_TIME_LIMIT=10m).")


if __name__ == "__main__":
    main()
