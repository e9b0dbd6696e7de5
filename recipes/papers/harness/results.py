# SPDX-License-Identifier: Apache-2.0
"""results.json (docs/formats.md): the rows of an experiment with their runs, means and standard errors."""
import json
import math
import pathlib
import platform
import re
import statistics
import subprocess
from typing import Any

from harness.experiment import ROOT, Experiment, Row

FORMAT = 1
MEASURES = ("accuracy", "perplexity", "bits_per_token", "bits_per_byte", "bits_per_dimension")


def machine() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name


def commit() -> str | None:
    """The commit of the sources, with a plus where they were changed."""
    try:
        answer = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True,
                                check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def mean_of(values: list[float]) -> dict[str, Any]:
    """Mean, and its standard error from the spread over seeds (null for one seed)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "standard_error": error}


def means(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By split and measure, over the runs that were evaluated; and of speed and memory."""
    done = [run for run in runs if "splits" in run]
    if not done:
        return {}
    splits = {split: {measure: mean_of([run["splits"][split][measure] for run in done]) for measure in MEASURES
                      if measure in done[0]["splits"][split]} for split in done[0]["splits"]}
    speed = {key: mean_of([run[key] for run in done]) for key in ("seconds", "tokens_per_second", "peak_memory_mib")}
    return {"splits": splits} | speed


def row_json(row: Row, runs: list[dict[str, Any]], candidates: list[dict[str, Any]], status: str, note: str) -> dict[str, Any]:
    json_row: dict[str, Any] = {"name": row.name, "group": row.group, "summary": row.summary, "status": status}
    if note:
        json_row["note"] = note
    json_row |= {"settings": row.settings, "time_limit": row.time_limit or None}
    if runs and "parameters" in runs[0]:
        json_row["parameters"] = runs[0]["parameters"]
    if candidates:
        json_row["chosen"] = runs[0]["choice"] if runs else None
        json_row["candidates"] = [{"choice": run["choice"], "status": run["status"], "steps": run["steps"], "valid": run.get("valid")}
                                  for run in candidates]
    return json_row | {"runs": runs, "mean": means(runs)}


def dump(document: Any) -> str:
    """JSON with lists of numbers on one line each."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\[\s*((?:[-+.\deE]+,\s*)*[-+.\deE]+)\s*\]", lambda found: "[" + " ".join(found[1].split()) + "]", text) + "\n"


def write(path: pathlib.Path, experiment: Experiment, command: str, about: dict[str, Any], data: dict[str, Any],
          rows: list[dict[str, Any]], complete: bool) -> None:
    document = {"format": FORMAT, "experiment": experiment.name, "title": experiment.title, "size": experiment.size,
                "smoke": experiment.smoke, "complete": complete, "command": command, "commit": commit(), "machine": machine(),
                "program": about, "data": data, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".json.new")
    new.write_text(dump(document))
    new.replace(path)
