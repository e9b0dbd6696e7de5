#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of recipes: recipes_test.py PROGRAM WHAT

  harness           choosing records, statistics, curves, what is wrong in rows.toml, an interrupted run that goes on; tables; the
                    passages and the table of recipes/conversion
  smoke EXPERIMENT  all rows of an experiment for two steps each, on data of the project
  paper             models of the papers' sizes, one step of one sequence each: 36 layers of 1,024 tokens in both directions, 8,192
                    tokens, 12,288 tokens; bfloat16, as their configurations say, with at most 24 GiB
"""
import gzip
import importlib.machinery
import importlib.util
import json
import math
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "recipes" / "papers"))
import table
from harness import corpora, experiment, results, runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUN = ROOT / "recipes" / "papers" / "run"
PROGRAM = ""


def command(output, *words):
    return [str(RUN), *words, "-o", str(output), "--program", PROGRAM, "-t", "2"]


def run(output, *words):
    """results.json of a run that must succeed, and what it said."""
    answer = subprocess.run(command(output, *words), capture_output=True, text=True)
    if answer.returncode != 0:
        raise AssertionError(f"exit code {answer.returncode}:\n{answer.stdout}{answer.stderr}")
    return json.loads((pathlib.Path(output) / "results.json").read_text()), answer.stderr


class Harness(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix="recipes")
        self.addCleanup(holder.cleanup)
        self.folder = pathlib.Path(holder.name)

    def test_records_are_chosen_evenly(self):
        self.assertEqual(corpora.evenly(10, 3), [0, 3, 6])
        self.assertEqual(corpora.evenly(3, 10), [0, 1, 2])
        self.assertEqual(corpora.evenly(3, 0), [0, 1, 2])
        source = self.folder / "all.fasta"
        source.write_text("".join(f">s{i}\n{'AC' * i}\n{'D'}\n" for i in range(1, 21)))
        part = experiment.Part(str(source), longest=21)
        made = corpora.choose_proteins(source, part, 5, self.folder / "some.fasta")
        self.assertEqual(made.read_text().splitlines()[::2], [">s1", ">s3", ">s5", ">s7", ">s9"])
        self.assertEqual(made.read_text().splitlines()[1], "ACD")

    def test_documents_are_cut_from_their_share(self):
        source = self.folder / "text"
        source.write_bytes(bytes(range(100)))
        part = experiment.Part(str(source), cut=7, share=(0.5, 1.0))
        made = sorted(corpora.cut_text(source, part, 0, self.folder / "cut").iterdir())
        self.assertEqual(b"".join(path.read_bytes() for path in made), bytes(range(50, 99)))

    def test_pictures_are_chosen_from_raw_files(self):
        source = self.folder / "all_5x1x2x1.u8"
        source.write_bytes(bytes(range(10)))
        made = corpora.choose_pictures(source, 2, self.folder / "some")
        self.assertEqual((made.name, made.read_bytes()), ("some_2x1x2x1.u8", bytes([0, 1, 4, 5])))

    def test_means_carry_their_standard_errors(self):
        self.assertEqual(results.mean_of([3.0]), {"mean": 3.0, "standard_error": None})
        found = results.mean_of([1.0, 2.0, 6.0])
        self.assertAlmostEqual(found["mean"], 3.0)
        self.assertAlmostEqual(found["standard_error"], math.sqrt(7 / 3))

    def test_curves_are_means_of_spans(self):
        steps = [{"step": i + 1, "tokens": 10 * (i + 1), "seconds": float(i), "loss": float(i), "accuracy": 0.5} for i in range(600)]
        points = runs.curve([*steps, {"step": 600, "final": {}}])
        self.assertEqual(len(points), runs.CURVE_POINTS)
        self.assertEqual(points[0], [10, 100, 9.0, 4.5, 0.5])
        self.assertEqual(points[-1][0], 600)

    def test_the_last_tenth_is_weighted_by_its_targets(self):
        targets = [10 * (i + 1) for i in range(18)] + [190, 220]  # of the last two steps 10 and 30
        steps = [{"targets": count, "loss": 9.0, "accuracy": 0.9} for count in targets[:18]]
        steps += [{"targets": 190, "loss": math.log(4), "accuracy": 0.2}, {"targets": 220, "loss": math.log(8), "accuracy": 0.4}]
        found = runs.last_tenth(steps)
        self.assertAlmostEqual(found["perplexity"], 4 ** 0.25 * 8 ** 0.75, places=4)
        self.assertAlmostEqual(found["accuracy"], 0.35)
        self.assertEqual(found["tokens"], 40)

    def test_spans_of_time(self):
        self.assertEqual([runs.seconds_of(text) for text in ("90", "90s", "1.5m", "2h")], [90, 90, 90, 7200])
        self.assertRaises(experiment.Problem, runs.seconds_of, "3 weeks")

    def test_every_experiment_loads_in_both_sizes(self):
        names = experiment.names()
        self.assertEqual(names, ["attention", "concatenated", "kernels", "pixels", "proteins", "speed", "text"])
        for name in names:
            for size in experiment.SIZES:
                rows = experiment.load(name, size, False).rows
                self.assertTrue(rows, f"{name} {size}")
                for row in rows:
                    self.assertTrue(row.bench or row.settings, row.label)

    def test_unknown_keys_are_named(self):
        with self.assertRaisesRegex(experiment.Problem, "there is no key 'sequence'; known are cut"):
            experiment.read_data("x", {"kind": "text", "train": {"sequence": 3}}, "rows.toml")
        with self.assertRaisesRegex(experiment.Problem, "must be one of proteins"):
            experiment.read_data("x", {"kind": "sounds"}, "rows.toml")

    def test_missing_data_leave_rows_out(self):
        found, told = run(self.folder / "out", "text", "--data", str(self.folder), "--only", "Brown exact")
        self.assertEqual([row["status"] for row in found["rows"]], ["no data"])
        self.assertFalse(found["complete"])
        self.assertIn("brown_untagged.txt.gz is not there", told)

    def test_a_stopped_run_goes_on_and_other_settings_are_refused(self):
        words = ("kernels", "--smoke", "--only", "none relu", "--set", "train.steps=60")
        whole, _ = run(self.folder / "whole", *words)
        stopped = self.folder / "stopped"
        with subprocess.Popen(command(stopped, *words), stderr=subprocess.PIPE, text=True) as process:
            metrics = stopped / "runs" / "none-relu" / "seed-0" / "model" / "metrics.jsonl"
            deadline = time.monotonic() + 240
            while not (metrics.exists() and metrics.stat().st_size > 500) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            told = process.communicate()[1]
        if process.returncode != 0:  # else it was faster than the signal
            self.assertEqual(process.returncode, 130, told)
            self.assertIn("the same command goes on from here", told)
        found, _ = run(stopped, *words)
        if process.returncode != 0:
            self.assertIn("continuing the run in", (stopped / "runs" / "none-relu" / "seed-0" / "log.txt").read_text())
        for row in (whole, found):
            for key in ("seconds", "tokens_per_second", "peak_memory_mib", "wall_seconds"):
                del row["rows"][0]["runs"][0][key]
            row["rows"][0]["runs"][0]["curve"] = [point[:2] + point[3:] for point in row["rows"][0]["runs"][0]["curve"]]
        self.assertEqual(found["rows"][0]["runs"], whole["rows"][0]["runs"])
        refused = subprocess.run(command(stopped, *words[:-1], "train.steps=70"), capture_output=True, text=True)
        self.assertEqual(refused.returncode, 2)
        self.assertIn("holds a run with other settings or data", refused.stderr)


def trained_run(seed, perplexity):
    """What a run leaves in results.json, in short."""
    score = {"accuracy": 0.1, "perplexity": perplexity, "bits_per_token": math.log2(perplexity), "tokens": 7, "unigram": 18.0,
             "unigram_accuracy": 0.09, "bigram": 17.5, "bigram_accuracy": 0.095}
    return {"seed": seed, "choice": [], "status": "done", "steps": 40, "parameters": 1234, "tokens": 4000, "seconds": 2.0,
            "tokens_per_second": 2000.0, "peak_memory_mib": 100.0, "wall_seconds": 3.0, "splits": {"test": score},
            "curve": [[20, 2000, 1.0, 3.0, 0.05], [40, 4000, 2.0, 2.9, 0.1]],
            "last_tenth": {"perplexity": 19.0, "accuracy": 0.08, "tokens": 400}}


class Tables(unittest.TestCase):
    def setUp(self):
        def row(name):
            return experiment.Row(name, "U", "", "data", ["a.b=c"], 2, [], 0, "", [], [])
        lost = {"seed": 0, "choice": [], "status": "diverged", "steps": 6, "curve": []}
        rows = [results.row_json(row("one & two"), [trained_run(0, 16.0), trained_run(1, 17.0)], [], "done", ""),
                results.row_json(row("three"), [lost], [], "diverged", "")]
        self.document = {"format": 1, "experiment": "proteins", "title": "A & B", "size": "small", "smoke": False, "complete": True,
                         "command": "recipes/papers/run proteins", "commit": "abc", "machine": "a machine", "program": {"threads": 2},
                         "data": {}, "rows": rows}

    def test_tables_tell_means_errors_baselines_and_what_diverged(self):
        lines, pictures = table.section(self.document, pathlib.Path("x"))
        self.assertIn("| `one & two` | 1,234 | 40 | 2,000 | 100 | 16.50 ± 0.50, 10.00 ± 0.00 % |", lines)
        self.assertIn("| `three` | diverged in step 7 |  |  |  |  |", lines)
        self.assertIn("| bigram |  |  |  |  | 17.50, 9.50 % |", lines)
        (picture,) = pictures.values()
        root = xml.etree.ElementTree.fromstring(picture)
        self.assertEqual(sum(element.tag.endswith("polyline") for element in root.iter()), 2)

    def test_the_document_is_changed_between_its_marks_alone(self):
        text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
        self.assertEqual(table.update(text, "x", ["new"]), "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb\n")
        self.assertRaises(SystemExit, table.update, text, "y", ["new"])

    def test_measurements_are_a_line_for_each_kind(self):
        bench = [{"op": "train", "direction": "causal", "dtype": "bfloat16", "pass": "forward_backward", "kind": kind, "length": length,
                  "ns": 5.0, "tokens_per_second": 100.0 * length} for kind in ("exact", "favor-relu") for length in (64, 128)]
        bench[-1] = bench[-1] | {"failure": "differs", "ns": None}
        lines = table.measured({"name": "n", "summary": "s", "runs": [{"bench": bench}]})
        self.assertIn("| causal, forward and backward, bfloat16: tokens a second | 64 | 128 |", lines)
        self.assertIn("| `exact` | 6,400 | 12,800 |", lines)
        self.assertIn("| `favor-relu` | 6,400 | wrong |", lines)


class Conversion(unittest.TestCase):
    def setUp(self):
        loader = importlib.machinery.SourceFileLoader("conversion_run", str(ROOT / "recipes" / "conversion" / "run"))
        self.run_module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
        with unittest.mock.patch.object(sys, "dont_write_bytecode", True):
            loader.exec_module(self.run_module)

    def test_passages_are_whole_lines_evenly_spread(self):
        with tempfile.TemporaryDirectory(prefix="recipes") as folder:
            text = pathlib.Path(folder) / "text.gz"
            lines = [" ".join(f"w{i}" for _ in range(60)) for i in range(1400)]  # 700 passages of two lines
            text.write_bytes(gzip.compress("\n".join(lines).encode()))
            found = self.run_module.passages(text)
            self.assertEqual(len(found), self.run_module.PASSAGES)
            self.assertEqual(found[1], lines[4] + " " + lines[5])
            with self.assertRaisesRegex(SystemExit, "missing.gz is not there"):
                self.run_module.passages(pathlib.Path(folder) / "missing.gz")

    def test_the_table_has_the_measures_that_a_source_has(self):
        rows = [{"source": "a", "attention": "x", "seconds": 90,
                 "stages": {"original": {"accuracy": 0.5, "perplexity": 8.0, "cosine_similarity": 1.0, "relative_error": 0.0}}},
                {"source": "b", "attention": "y", "seconds": 60,
                 "stages": {"swapped": {"cosine_similarity": 0.75, "relative_error": 0.5},
                            "with_exact_heads": {"cosine_similarity": 0.875, "relative_error": 0.25}}}]
        lines = self.run_module.table(rows).splitlines()
        self.assertEqual(lines[0], "| source | attention | original | swapped | transferred | with exact heads | fine-tuned | minutes |")
        self.assertEqual(lines[2], "| a | `x` | 50.0 %, 8.00 |  |  |  |  | 1.5 |")
        self.assertEqual(lines[3], "| b | `y` |  | 0.7500, 0.500 |  | 0.8750, 0.250 |  | 1.0 |")
        self.assertNotIn("exact heads", self.run_module.table(rows[:1]))


class Smoke(unittest.TestCase):
    name = ""

    def test_rows(self):
        wanted = experiment.load(self.name, "small", True).rows
        with tempfile.TemporaryDirectory(prefix="recipes") as folder:
            found, _ = run(folder, self.name, "--smoke")
            kept = {path: path.stat().st_mtime_ns for path in pathlib.Path(folder).glob("runs/*/*/run.json")}
            again, told = run(folder, self.name, "--smoke")
            self.assertEqual(kept, {path: path.stat().st_mtime_ns for path in kept}, "finished runs are not repeated")
            self.assertEqual(again["rows"], found["rows"])
            self.assertNotIn("begins", told)
        self.assertTrue(found["complete"])
        self.assertEqual([(row["group"], row["name"]) for row in found["rows"]], [(row.group, row.name) for row in wanted])
        for row in found["rows"]:
            with self.subTest(row=row["name"]):
                self.assertEqual(row["status"], "done")
                self.check_runs(row)

    def check_runs(self, row):
        for each in row["runs"]:
            if "bench" in each:
                self.assertTrue(each["bench"])
                for line in each["bench"]:
                    self.assertNotIn("failure", line, line)
                    self.assertGreater(line["ns"], 0)
                continue
            self.assertEqual(each["steps"], 2)
            self.assertGreater(row["parameters"], 1000)
            for score in each["splits"].values():
                self.assertGreater(score["tokens"], 0)
                self.assertTrue(1 < score["perplexity"] < 1000, score)
                self.assertAlmostEqual(2 ** score["bits_per_token"], score["perplexity"], delta=1e-3 * score["perplexity"])


class Paper(unittest.TestCase):
    def step(self, name, rows, parameters):
        with tempfile.TemporaryDirectory(prefix="recipes") as folder:
            found, _ = run(folder, name, "--size", "paper", "--one-step", "--only", *rows)
        self.assertEqual(len(found["rows"]), len(rows))
        for row in found["rows"]:
            self.assertEqual(row["status"], "done")
            self.assertEqual(row["runs"][0]["steps"], 1)
            self.assertTrue(math.isfinite(row["runs"][0]["curve"][0][3]))
            self.assertLess(row["runs"][0]["peak_memory_mib"], 24 * 1024)
            self.assertEqual(row["parameters"], parameters)
        return [row["runs"][0]["tokens"] for row in found["rows"]]

    # Width d, inner size f: a layer has 4 d d + 2 d f + f + d + 4 d numbers; beside them are the embedding, its positions, the last
    # norm and the output layer.
    @staticmethod
    def parameters(layers, width, inner, vocabulary, positions):
        layer = 4 * width * width + 2 * width * inner + inner + width + 4 * width
        return layers * layer + (2 * vocabulary + positions + 2) * width + vocabulary

    def test_36_layers_of_1024_tokens(self):
        tokens = self.step("proteins", ["U favor-relu", "B favor-softmax"], self.parameters(36, 512, 1024, 29, 1024))
        self.assertTrue(all(700 < count <= 1024 for count in tokens), tokens)

    def test_8192_tokens(self):
        self.assertEqual(self.step("concatenated", ["favor-relu"], self.parameters(6, 512, 2048, 29, 0)), [8192])

    def test_12288_tokens(self):
        self.assertEqual(self.step("pixels", ["64 favor-relu"], self.parameters(6, 512, 2048, 260, 65 + 64 + 3)), [12288])


def main():
    global PROGRAM
    if len(sys.argv) < 3 or sys.argv[2] not in ("harness", "smoke", "paper"):
        sys.exit(__doc__)
    PROGRAM = sys.argv[1]
    cases = {"harness": [Harness, Tables, Conversion], "smoke": [Smoke], "paper": [Paper]}[sys.argv[2]]
    if Smoke in cases:
        Smoke.name = sys.argv.pop(3)
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], defaultTest=[case.__name__ for case in cases], verbosity=2)


if __name__ == "__main__":
    main()
