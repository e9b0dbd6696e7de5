#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Puts results into docs/results.md: table.py [FOLDER...]

Each FOLDER is what recipes/papers/run wrote; its results.json is copied to docs/results/EXPERIMENT/. Then the tables of all results
that are there are made anew, between the marks `<!-- EXPERIMENT: begin -->` and `<!-- EXPERIMENT: end -->`, with the curves
beside them. With --check nothing is written; it fails where the document is not what the results say.
"""
import argparse
import json
import pathlib
import re
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from harness.experiment import ROOT
from harness.plot import against_length, curves
from harness.results import dump

DOCUMENT = ROOT / "docs" / "results.md"
RESULTS = ROOT / "docs" / "results"
BITS = {"bits_per_dimension": "bits/dim", "bits_per_byte": "bits/byte"}


def value(mean: dict[str, Any], digits: int, scale: float = 1.0) -> str:
    text = f"{scale * mean['mean']:,.{digits}f}"
    return text if mean["standard_error"] is None else f"{text} ± {scale * mean['standard_error']:.{digits}f}"


def scores(split: dict[str, Any]) -> str:
    """The measures of a split in one cell."""
    for bits in BITS:
        if bits in split:
            return value(split[bits], 3)
    return f"{value(split['perplexity'], 2)}, {value(split['accuracy'], 2, 100)} %"


def learned(score: dict[str, Any]) -> str:
    return f"{score['perplexity']:.2f}, {100 * score['accuracy']:.2f} %"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def baselines(row: dict[str, Any], splits: list[str], columns: int) -> list[list[str]]:
    """Rows of the unigram and bigram statistics, as they were evaluated beside `row`."""
    made = []
    for name in ("bigram", "unigram"):
        found = [row["runs"][0]["splits"][split] for split in splits]
        if all(name in score for score in found) and not any(bits in found[0] for bits in BITS):
            cells = [f"{score[name]:.2f}, {100 * score[name + '_accuracy']:.2f} %" for score in found]
            made.append([name, *[""] * (columns - 1 - len(splits)), *cells])
    return made


def trained(rows: list[dict[str, Any]]) -> list[str]:
    """A table of rows that were trained: sizes, speed, and a column for each split."""
    done = [row for row in rows if row["mean"]]
    splits = list(done[0]["mean"]["splits"]) if done else []
    bits = next((BITS[key] for key in BITS if done and key in done[0]["mean"]["splits"][splits[0]]), "perplexity, accuracy")
    timed = any(row["time_limit"] for row in rows)  # then steps differ, and what training itself says is of interest
    header = ["", "parameters", "steps", "tokens/s", "MiB", *(["last tenth of training"] if timed else []),
              *[f"{split}: {bits}" for split in splits]]
    cells = []
    for row in rows:
        name = f"`{row['name']}`"
        if row.get("chosen"):
            name += f" ({', '.join(row['chosen'])})"
        if not row["mean"]:
            said = {"diverged": f"diverged in step {row['runs'][0]['steps'] + 1}" if row["runs"] else "", "no data": "no data"}
            cells.append([name, said.get(row["status"], row["status"]), *[""] * (len(header) - 2)])
            continue
        mean, run = row["mean"], row["runs"][0]
        cells.append([name, f"{row['parameters']:,}", f"{run['steps']:,}", value(mean["tokens_per_second"] | {"standard_error": None}, 0),
                      f"{mean['peak_memory_mib']['mean']:,.0f}", *([learned(run["last_tenth"])] if timed else []),
                      *[scores(mean["splits"][split]) for split in splits]])
    return table(header, cells + (baselines(done[0], splits, len(header)) if done else []))


def measured(row: dict[str, Any]) -> list[str]:
    """Tables of a row of `performer bench`: a line for each kind, a column for each length."""
    lines, bench = [f"*{row['name']}*: {row['summary']}", ""], row["runs"][0]["bench"]
    for op, direction, dtype, passes in dict.fromkeys((r["op"], r["direction"], r["dtype"], r["pass"]) for r in bench):
        found = [r for r in bench if (r["op"], r["direction"], r["dtype"], r["pass"]) == (op, direction, dtype, passes)]
        lengths = sorted({r["length"] for r in found})
        unit = "tokens a second" if op == "train" else "ns per token and head"
        cells = []
        for kind in dict.fromkeys(r["kind"] for r in found):
            by_length = {r["length"]: r for r in found if r["kind"] == kind}
            cells.append([f"`{kind}`", *[speed(by_length.get(length)) for length in lengths]])
        name = f"{direction}, {passes.replace('_', ' and ')}, {dtype}: {unit}"
        lines += [*table([name, *[f"{length:,}" for length in lengths]], cells), ""]
    return lines[:-1]


def speed(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    if row.get("ns") is None:
        return "wrong"
    return f"{row['tokens_per_second']:,.0f}" if row.get("tokens_per_second") else f"{row['ns']:,.0f}"


def similarity(rows: list[dict[str, Any]]) -> list[str]:
    """What `performer attention` found: heads by kind, correlations to BLOSUM62, ranks of two pairs among 190."""
    cells = []
    for row in rows:
        attention = row["runs"][0].get("attention") if row["runs"] else None
        if not attention:
            continue
        labels = [head["label"] for head in attention["sequences"][0]["heads"]]
        found = attention["similarity"]
        for name, each in [(f"`{row['name']}`", found["model"]), ("untrained weights", found["untrained"][0])]:
            heads, partners = each["by_heads"], each["by_partners"]
            counts = ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(sorted(labels)))
            cells.append([name, counts if each is found["model"] else "",
                          *[("-" if c is None else f"{c:.3f}") for c in (heads["correlation"], partners["correlation"])],
                          *[str(partners["pairs"][pair]["rank"] or "-") for pair in ("DE", "FY")]])
    header = ["", "heads", "correlation to BLOSUM62, by heads", "by partners", "rank of D, E", "rank of F, Y"]
    return ["", *table(header, cells)] if cells else []


def section(document: dict[str, Any], folder: pathlib.Path) -> tuple[list[str], dict[pathlib.Path, str]]:
    """The lines between the marks, and the pictures to write."""
    about = document["program"]
    lines = [f"`{document['command']}` on {document['machine']}, {about['threads']} threads, sources {document['commit']} "
             f"([results.json](results/{document['experiment']}/results.json)"
             + (")." if document["complete"] else "; not all rows)."), ""]
    pictures = {}
    for group in dict.fromkeys(row["group"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["group"] == group]
        if any("bench" in run for row in rows for run in row["runs"]):
            for row in (row for row in rows if row["runs"]):
                unit = "ns per token and head" if row["runs"][0]["bench"][0]["op"] == "favor" else "ns per token and head of the model"
                path = folder / (re.sub(r"[^a-z0-9]+", "-", f"bench {group} {row['name']}") + ".svg")
                pictures[path] = against_length(row["runs"][0]["bench"], f"{group or document['title']}, {row['name']}: {unit}")
                lines += [*measured(row), "", f"![Time against the length](results/{document['experiment']}/{path.name})", ""]
            continue
        lines += [*([f"**{group}**", ""] if group else []), *trained(rows), *similarity(rows), ""]
        picture = curves(document, group)
        if picture:
            path = folder / f"curves-{group}.svg".replace(" ", "-")
            pictures[path] = picture
            lines += [f"![Training loss against tokens and seconds](results/{document['experiment']}/{path.name})", ""]
    return lines[:-1], pictures


def update(text: str, name: str, lines: list[str]) -> str:
    mark = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
    if not mark.search(text):
        raise SystemExit(f"table.py: {DOCUMENT} has no marks for {name}: write a section with <!-- {name}: begin --> and end")
    return mark.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=pathlib.Path, metavar="FOLDER", help="what recipes/papers/run wrote")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where something would change")
    options = parser.parse_args()
    for folder in options.folders:
        document = json.loads((folder / "results.json").read_text())
        if document["smoke"]:
            raise SystemExit(f"table.py: {folder} is a run with --smoke, which is no result")
        target = RESULTS / document["experiment"] / "results.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(dump(document))
    text, wrong = DOCUMENT.read_text(), []
    wanted: dict[pathlib.Path, str] = {}
    for path in sorted(RESULTS.glob("*/results.json")):
        document = json.loads(path.read_text())
        lines, pictures = section(document, path.parent)
        text = update(text, document["experiment"], lines)
        wanted |= pictures
    for path, content in (wanted | {DOCUMENT: text}).items():
        if path.exists() and path.read_text() == content:
            continue
        wrong.append(str(path.relative_to(ROOT)))
        if not options.check:
            path.write_text(content)
    if wrong:
        print(("differs from the results: " if options.check else "written: ") + ", ".join(wrong))
    return 1 if wrong and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
