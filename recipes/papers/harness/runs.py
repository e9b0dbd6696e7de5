# SPDX-License-Identifier: Apache-2.0
"""One run: a row with one seed and one choice of settings, trained, evaluated and followed by its further commands.

A folder holds model/, log.txt and, once all is done, run.json: what was asked for (`spec`) and what came out. A run whose folder
has that file is not repeated; one that was interrupted goes on from its checkpoint.
"""
import dataclasses
import json
import math
import pathlib
import re
import shutil
import tomllib
from typing import Any

from harness.corpora import Corpora
from harness.experiment import Experiment, Problem, Row
from harness.program import Failed, Program, checkpoint_seconds, last_step, read_metrics
from harness.progress import Progress

CURVE_POINTS = 60
SPAN = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
# What is kept of a row of `performer bench`.
BENCH_KEYS = ("op", "kind", "direction", "pass", "dtype", "length", "heads", "head_size", "features", "batch", "threads", "ns",
              "ns_median", "tokens_per_second", "share_of_limit", "extra_bytes", "break_even", "failure")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run to be done."""
    row: Row
    seed: int
    choice: list[str]
    folder: pathlib.Path
    candidate: bool = False  # to choose by: shorter, and evaluated on `valid` alone

    @property
    def label(self) -> str:
        chosen = f", {', '.join(self.choice)}" if self.choice else ""
        return f"{self.row.label}, {'to choose by' if self.candidate else f'seed {self.seed}'}{chosen}"

    @property
    def settings(self) -> list[str]:
        short = [f"train.steps={self.row.choose_steps}"] if self.candidate and self.row.choose_steps else []
        return self.row.settings + self.choice + short


def seconds_of(span: str) -> float:
    """"90s", "3m", "1.5h" or a number of seconds."""
    match = SPAN.fullmatch(span)
    if not match:
        raise Problem(f"a time limit is a number with s, m or h behind it, such as 3m, not '{span}'")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def rounded(number: float, digits: int = 6) -> float:
    return float(f"{number:.{digits}g}")


def curve(metrics: list[dict[str, Any]]) -> list[list[float]]:
    """Means over equal spans of steps: [step, tokens, seconds, loss, accuracy], the first three at the end of a span."""
    steps = [record for record in metrics if "loss" in record]
    points: list[list[float]] = []
    for i in range(min(CURVE_POINTS, len(steps))):
        span = steps[i * len(steps) // min(CURVE_POINTS, len(steps)):(i + 1) * len(steps) // min(CURVE_POINTS, len(steps))]
        last = span[-1]
        points.append([last["step"], last["tokens"], rounded(last["seconds"]), rounded(sum(s["loss"] for s in span) / len(span)),
                       rounded(sum(s["accuracy"] for s in span) / len(span))])
    return points


def last_tenth(steps: list[dict[str, Any]]) -> dict[str, float]:
    """How well the last tenth of the steps was predicted, before it was learned from: a measurement on new data where no sequence is
    seen twice."""
    first = len(steps) - max(1, len(steps) // 10)
    weights = [steps[i]["targets"] - (steps[i - 1]["targets"] if i else 0) for i in range(first, len(steps))]
    means = {key: sum(weight * step[key] for weight, step in zip(weights, steps[first:], strict=True)) / sum(weights)
             for key in ("loss", "accuracy")}
    return {"perplexity": rounded(math.exp(means["loss"])), "accuracy": rounded(means["accuracy"]), "tokens": sum(weights)}


class Runner:
    def __init__(self, experiment: Experiment, program: Program, corpora: Corpora, progress: Progress, extra: list[str],
                 one_step: bool):
        self.experiment, self.program, self.corpora, self.progress = experiment, program, corpora, progress
        self.extra, self.one_step = list(extra), one_step
        self.config = tomllib.loads(experiment.config.read_text()) if experiment.config.exists() else {}
        if one_step:
            self.extra += ["train.steps=1", f"data.batch_tokens={self.config['data']['length']}"]

    def steps(self, plan: Plan) -> int:
        steps = self.config.get("train", {}).get("steps", 1000)
        for setting in plan.settings + self.extra:
            key, _, value = setting.partition("=")
            if key == "train.steps":
                steps = int(value)
        return steps

    def spec(self, plan: Plan) -> dict[str, Any]:
        """All that decides what comes out, beside the program."""
        if plan.row.bench:
            return {"bench": plan.row.bench}
        data = self.experiment.data[plan.row.data]
        return {"config": self.config, "set": plan.settings + self.extra, "seed": plan.seed, "time_limit": plan.row.time_limit,
                "data": {part: self.corpora.source(data, part) for part in data.parts}, "one_step": self.one_step}

    def done(self, plan: Plan) -> dict[str, Any] | None:
        """The results of a run that is finished; a Problem when its folder holds another one."""
        path = plan.folder / "run.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        if found["spec"] != json.loads(json.dumps(self.spec(plan))):
            raise Problem(f"{plan.folder} holds a run with other settings or data: remove it, or give another folder with -o")
        return found["result"]

    def run(self, plan: Plan) -> dict[str, Any]:
        found = self.done(plan)
        if found is not None:
            return found
        plan.folder.mkdir(parents=True, exist_ok=True)
        self.progress.begin(plan.label)
        result = self.measure(plan) if plan.row.bench else self.train_and_evaluate(plan)
        self.progress.end(result.get("wall_seconds", 0.0))
        written = plan.folder / "run.json.new"
        written.write_text(json.dumps({"spec": self.spec(plan), "result": result}, indent=1))
        written.replace(plan.folder / "run.json")
        return result

    # Training -----------------------------------------------------------------------------------------------------------

    def training_words(self, plan: Plan, model: pathlib.Path) -> list[str]:
        data = self.experiment.data[plan.row.data]
        words = ["train", "-o", str(model), "--train", str(self.corpora.path(data, "train"))]
        if "valid" in data.parts and not self.one_step:
            words += ["--valid", str(self.corpora.path(data, "valid"))]
        limit = seconds_of(plan.row.time_limit) if plan.row.time_limit else 0.0
        if (model / "training.safetensors").exists():
            words.append("--resume")
            limit = max(limit - checkpoint_seconds(model), 0.001) if limit else 0.0
        else:
            shutil.rmtree(model, ignore_errors=True)
            settings = (["data.holdout=0"] if "--valid" not in words else []) + plan.settings + self.extra
            words += ["--config", str(self.experiment.config), "--seed", str(plan.seed)]
            words += [word for setting in settings for word in ("--set", setting)]
            if limit:
                words += ["--steps", str(10**9)]
        return words + (["--time-limit", f"{limit:.3f}"] if limit else [])

    def watch(self, plan: Plan, model: pathlib.Path) -> None:
        last = last_step(model)
        if not last:
            return self.progress.tell(0, "reading data")
        if plan.row.time_limit:
            share = last["seconds"] / seconds_of(plan.row.time_limit)
        else:
            share = last["step"] / self.steps(plan)
        self.progress.tell(min(share, 1.0), f"step {last['step']}, loss {last['loss']:.3f}, {last['tokens_per_second']:,.0f} tokens/s")

    def train(self, plan: Plan, model: pathlib.Path, log: pathlib.Path) -> str:
        """done, or diverged; what is trained already is not repeated."""
        metrics = read_metrics(model)
        if metrics and "final" in metrics[-1]:
            return "done"
        try:
            self.program.run(self.training_words(plan, model), log, lambda: self.watch(plan, model))
        except Failed as failure:
            if not failure.diverged:
                raise
            return "diverged"
        return "done"

    def train_and_evaluate(self, plan: Plan) -> dict[str, Any]:
        model, log = plan.folder / "model", plan.folder / "log.txt"
        status = self.train(plan, model, log)
        metrics = read_metrics(model)
        steps = [record for record in metrics if "loss" in record]
        result: dict[str, Any] = {"seed": plan.seed, "choice": plan.choice, "status": status, "steps": steps[-1]["step"] if steps else 0}
        result["parameters"] = self.program.json(["info", str(model)])["model"]["parameters"]
        if steps:
            last = steps[-1]
            result |= {"tokens": last["tokens"], "seconds": rounded(last["seconds"]), "curve": curve(metrics),
                       "tokens_per_second": rounded(last["tokens"] / last["seconds"]),
                       "peak_memory_mib": rounded(max(step["peak_memory_mib"] for step in steps)), "last_tenth": last_tenth(steps)}
        valid = [record["valid"] for record in metrics if "valid" in record]
        if valid:
            result["valid"] = self.score(valid[-1])
        if status == "done" and not self.one_step and not plan.candidate:
            result["splits"] = self.evaluate(plan, model, log)
            result |= self.follow(plan, model, log)
        result["wall_seconds"] = rounded(self.progress.elapsed())
        return result

    @staticmethod
    def score(evaluation: dict[str, Any]) -> dict[str, Any]:
        """The model's score, and the perplexities of the baselines beside it."""
        model = evaluation["model"]
        score = {key: rounded(value) if isinstance(value, float) else value for key, value in model.items()}
        score["bits_per_token"] = rounded(math.log2(model["perplexity"]))
        for baseline in ("unigram", "bigram"):
            if evaluation.get(baseline):
                score[baseline] = rounded(evaluation[baseline]["perplexity"])
                score[f"{baseline}_accuracy"] = rounded(evaluation[baseline]["accuracy"])
        return score

    def evaluate(self, plan: Plan, model: pathlib.Path, log: pathlib.Path) -> dict[str, Any]:
        data, found = self.experiment.data[plan.row.data], {}
        for split in data.splits():
            path = plan.folder / f"{split}.json"
            if not path.exists():
                self.progress.tell(1.0, f"evaluating {split}")
                self.program.run(["evaluate", str(model), str(self.corpora.path(data, split)), "--json", "-o", str(path)], log)
            found[split] = self.score(json.loads(path.read_text()))
        return found

    def follow(self, plan: Plan, model: pathlib.Path, log: pathlib.Path) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        data = self.experiment.data[plan.row.data]
        names = {split: self.corpora.path(data, split) for split in data.splits()} if plan.row.then else {}
        names |= {"model": model, "folder": plan.folder, "recipe": self.experiment.folder}
        for command in plan.row.then:
            words = [word.format(**names) for word in command["run"]]
            self.progress.tell(1.0, words[0])
            self.program.run(words, log)
            if "keep" in command:
                kept[words[0]] = json.loads((plan.folder / command["keep"]).read_text())
        return kept

    # Measurements -------------------------------------------------------------------------------------------------------

    def measure(self, plan: Plan) -> dict[str, Any]:
        folder = plan.folder / "bench"
        try:
            self.program.run(["bench", *plan.row.bench, "-o", str(folder)], plan.folder / "log.txt",
                             lambda: self.progress.tell(0, "measuring"))
        except Failed:
            if not (folder / "bench.json").exists():  # else some rows were wrong, and say so
                raise
        rows = json.loads((folder / "bench.json").read_text())
        return {"seed": plan.seed, "choice": [], "status": "done", "wall_seconds": rounded(self.progress.elapsed()),
                "bench": [{key: row[key] for key in BENCH_KEYS if key in row} for row in rows]}
