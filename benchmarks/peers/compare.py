# SPDX-License-Identifier: Apache-2.0
"""Checks that this project and its peers compute the same attention, and times all of them by turns on the same cores:
kernels, training steps, generation. Called by `run`, which sets the environments up.

Results: table.md, figure.svg and results.json, with versions and the machine, in the folder of -o."""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
HEADS, HEAD_SIZE, FEATURES = 8, 64, 256
# Largest relative difference (Euclidean norm) from the definition in double precision. Peers add constants to features
# and denominators, which is a part of what they compute.
TOLERANCES = {"ours": 1e-4, "ours bf16": 3e-2, "exact SDPA bf16": 3e-2, "performer-pytorch": 0.03,
              "performer-pytorch, CPU product": 0.03, "fast-transformers": 0.03, "Keras KernelAttention": 0.03}
USUAL_TOLERANCE = 1e-3
SHORTEST_SAMPLE = 0.02  # seconds


def say(text):
    print(text, file=sys.stderr, flush=True)


class Worker:
    """A process of one environment (worker.py)."""

    def __init__(self, python, module, threads):
        variables = {**os.environ, "PEERS_THREADS": str(threads), "OMP_NUM_THREADS": str(threads),
                     "MKL_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2",
                     "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=" + ("true" if threads > 1 else "false")}
        self.log = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen([str(python), str(HERE / "worker.py"), module], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.log, text=True, env=variables, cwd=HERE)

    def ask(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError("a worker ended: " + self.log.read()[-2000:])
        return json.loads(line)


class Comparison:
    def __init__(self, options):
        self.options = options
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="peers-"))
        self.library = str(options.build / "libperformer_ops.so")
        self.program = str(options.build / "bin/performer")
        self.rows, self.workers, self.versions = [], {}, {"python": platform.python_version()}
        self.left_out = (options.environments / "failures.txt").read_text().split()
        for name in ("torch", "jax", "keras"):
            python = options.environments / name / "bin/python"
            if not (options.environments / name / "complete").exists():
                continue
            try:
                worker = Worker(python, f"candidates_{name}", options.threads)
                self.versions.update(worker.ask(do="versions")["versions"])
                self.workers[name] = worker
            except (RuntimeError, KeyError, OSError) as error:
                say(f"the environment {name} does not work and is left out: {error}")
                self.left_out.append(name)
        if "torch" not in self.workers:
            raise SystemExit("without the environment of torch there is nothing to compare")
        commit = subprocess.run(["git", "-C", str(HERE), "describe", "--always", "--dirty"], capture_output=True, text=True)
        self.versions["performer"] = commit.stdout.strip() or "unknown"

    # --- what candidates have in common -----------------------------------------------------------------------

    def candidates(self, op):
        pairs = [(w, name) for w in self.workers.values() for name in w.ask(do="names", op=op)["names"]]
        wanted = self.options.only
        return [(w, n) for w, n in pairs if not wanted or "definition" in n or any(part in n for part in wanted)]

    def prepare(self, op, case):
        """Candidates that can do the case: [(worker, name, results)]; the reasons of the others are printed."""
        ready = []
        for worker, name in self.candidates(op):
            results = str(self.folder / f"{len(self.rows)}-{len(ready)}.npz")
            reply = worker.ask(do="prepare", name=name, key=name, results=results, case=case)
            if "error" in reply:
                say(f"  left out: {name}: {reply['error']}")
                continue
            ready.append((worker, name, results))
        return ready

    def time_by_turns(self, ready, also=None):
        """Seconds of a call by name: [samples]. `also` gives one more sample of other candidates in each turn."""
        samples, calls, others = {}, {}, {}
        for turn in range(self.options.turns):
            def enough(taken, turn=turn):
                return turn >= 2 and sum(taken) > self.options.seconds

            for worker, name, _ in ready:
                if enough(samples.get(name, [])):
                    continue
                reply = worker.ask(do="time", key=name, calls=calls.get(name, 1))
                if "error" in reply:
                    say(f"  {name}: {reply['error']}")
                    continue
                if name not in calls:  # the first sample says how many calls make a long enough one
                    calls[name] = max(1, round(SHORTEST_SAMPLE / max(reply["seconds"], 1e-6)))
                samples.setdefault(name, []).append(reply["seconds"])
            if also is not None and not any(map(enough, others.values())):
                for name, seconds in also().items():
                    others.setdefault(name, []).append(seconds)
        samples.update(others)
        for worker in self.workers.values():
            worker.ask(do="drop")
        return samples

    def note(self, case, name, samples, **more):
        row = {**case, "name": name, "seconds": min(samples), "seconds_median": statistics.median(samples),
               "samples": len(samples), **more}
        self.rows.append(row)

    # --- kernels ------------------------------------------------------------------------------------------------

    def kernels(self):
        import numpy as np
        for length in self.options.lengths:
            random = np.random.default_rng(length)
            inputs = {x: random.standard_normal((1, HEADS, length, HEAD_SIZE), dtype=np.float32) for x in "qkvg"}
            # As of a fresh model. With queries and keys of deviation 1 the constants that peers add to features and
            # denominators outweigh these, and what they compute is another function.
            inputs["q"] *= 0.3
            inputs["k"] *= 0.3
            # Rows and their negatives: fast-transformers' features are exp(w x) and exp(-w x).
            half = random.standard_normal((FEATURES // 2, HEAD_SIZE), dtype=np.float32)
            inputs["w"] = np.concatenate([half, -half])
            path = str(self.folder / f"inputs-{length}.npz")
            np.savez(path, **inputs)
            for direction in self.options.directions:
                for which in ("forward", "forward_backward"):
                    case = {"op": "kernels", "length": length, "direction": direction, "pass": which}
                    say(f"kernels: {length} tokens, {direction}, {which}")
                    ready = self.prepare("kernels", {**case, "inputs": path, "library": self.library})
                    self.kernel_case(case, ready)

    def kernel_case(self, case, ready):
        import numpy as np
        results = {name: dict(np.load(path)) for _, name, path in ready}
        errors, right = {}, []
        for worker, name, path in ready:
            if "definition" in name:
                continue
            expected = results["exact definition" if name.startswith("exact") else "definition"]
            error = max(float(np.linalg.norm(results[name][x] - expected[x]) / np.linalg.norm(expected[x])) for x in expected)
            errors[name] = error
            tolerance = TOLERANCES.get(name, USUAL_TOLERANCE)
            if error <= tolerance:
                right.append((worker, name, path))
            else:
                say(f"  not timed: {name} differs from the definition by {error:.2g} of its size, more than {tolerance:g}")
        for name, samples in self.time_by_turns(right).items():
            best = min(samples)
            self.note(case, name, samples, ns=best * 1e9 / (case["length"] * HEADS), error=errors[name])

    # --- training steps -----------------------------------------------------------------------------------------

    def own_steps(self, case):
        """Step seconds of this project's models: one run of performer bench, which verifies before it times."""
        command = [self.program, "bench", "--op", "train", "--json", "--quiet", "-t", str(self.options.threads),
                   "--kinds", "identity,identity+qk,favor-softmax,favor-relu,exact", "--passes", "forward_backward",
                   "--lengths", str(case["length"]), "--dtype", case["dtype"], "--directions", case["direction"],
                   "--batch", str(case["batch"]), "--repetitions", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0 and not done.stdout:
            say("  performer bench failed: " + done.stderr.strip()[-300:])
            return {}
        tokens = case["length"] * case["batch"]
        return {"ours " + row["kind"]: tokens / row["tokens_per_second"] for row in json.loads(done.stdout) if row["ns"]}

    def train(self):
        for length in self.options.train_lengths:
            for direction in self.options.train_directions:
                for dtype in ("float32", "bfloat16"):
                    case = {"op": "train", "length": length, "direction": direction, "dtype": dtype,
                            "batch": max(1, self.options.train_tokens // length)}
                    say(f"training steps: {case['batch']} x {length} tokens, {direction}, {dtype}")
                    samples = self.time_by_turns(self.prepare("train", case), lambda case=case: self.own_steps(case))
                    for name, seconds in samples.items():
                        self.note(case, name, seconds, tokens_per_second=case["batch"] * length / min(seconds))

    # --- generation ---------------------------------------------------------------------------------------------

    def own_generation(self, batch, length):
        """Seconds in which `performer generate` starts, reads a model and draws `batch` sequences of `length` symbols.
        The model makes images, as these have a fixed length."""
        model, data = self.folder / "model", self.folder / "images.u8"
        if not model.exists():
            data.write_bytes(os.urandom(20 * length))
            settings = [f"data.image_shape=1x{length}x1", f"data.length={length + 2}", f"data.batch_tokens={length + 2}",
                        "data.holdout=0", "attention.kind=favor-softmax"]
            subprocess.run([self.program, "train", "--preset", "base", "--train", str(data), "-o", str(model), "--steps", "1",
                            "--quiet", "-t", str(self.options.threads), *sum((["--set", each] for each in settings), [])],
                           check=True)
        start = time.perf_counter()
        subprocess.run([self.program, "generate", str(model), "-n", str(batch), "--batch-size", str(batch), "--quiet",
                        "-t", str(self.options.threads), "-o", str(self.folder / "drawn") + "/"], check=True)
        return time.perf_counter() - start

    def generation(self):
        batch, length = self.options.generation_batch, self.options.generation_length
        case = {"op": "generation", "length": length, "batch": batch}
        say(f"generation: {batch} sequences of {length} tokens")
        own = [self.own_generation(batch, length) for _ in range(2)]
        self.note(case, "ours favor-softmax", own, tokens_per_second=batch * length / min(own))
        # The peer reads the whole prefix for each token: passes over prefixes of a few lengths, and the sum over all
        # lengths by straight lines between them.
        places, seconds = sorted({1, length // 8, length // 4, length // 2, length} - {0}), []
        for place in places:
            ready = self.prepare("generation", {**case, "length": place})
            samples = self.time_by_turns(ready).get("performer-pytorch") if ready else None
            if not samples:
                return
            seconds.append(min(samples))
        total = 0.0
        for (a, b), (x, y) in zip(zip(places, places[1:]), zip(seconds, seconds[1:])):
            total += sum(x + (y - x) * (t - a) / (b - a) for t in range(a, b))
        self.note(case, "performer-pytorch", [total], tokens_per_second=batch * length / total,
                  remark=f"sum over prefixes, interpolated between passes over {', '.join(map(str, places))} tokens")


def machine(threads):
    name = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                platform.processor())
    return f"{name}, {threads} thread{'s' if threads > 1 else ''} of {os.cpu_count()}"


def parse():
    whole = lambda text: [int(x) for x in text.split(",")]
    words = lambda text: text.split(",")
    parser = argparse.ArgumentParser(prog="benchmarks/peers/run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=None, help="folder of the results (build/peers/results)")
    parser.add_argument("-t", "--threads", type=int, default=1, help="threads, on as many cores (1)")
    parser.add_argument("--ops", type=words, default=["kernels", "train", "generation"], help="kernels,train,generation")
    parser.add_argument("--lengths", type=whole, default=[1024, 4096], help="of kernels (1024,4096)")
    parser.add_argument("--directions", type=words, default=["bidirectional", "causal"], help="of kernels (both)")
    parser.add_argument("--train-lengths", type=whole, default=[1024, 8192], help="of training steps (1024,8192)")
    parser.add_argument("--train-directions", type=words, default=["bidirectional"],
                        help="of training steps (bidirectional: performer-pytorch's causal form takes minutes)")
    parser.add_argument("--train-tokens", type=int, default=1024, help="of a batch, at least one sequence (1024)")
    parser.add_argument("--generation-batch", type=int, default=64, help="sequences side by side (64)")
    parser.add_argument("--generation-length", type=int, default=512, help="tokens of each (512)")
    parser.add_argument("--turns", type=int, default=7, help="samples of each candidate, taken by turns (7)")
    parser.add_argument("--seconds", type=float, default=10, help="no more samples of a candidate beyond this, but 2 (10)")
    parser.add_argument("--only", type=words, default=[], help="candidates with one of these words in their names")
    parser.add_argument("--environments", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--build", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse()
    options.environments, options.build = options.environments.resolve(), options.build.resolve()
    if options.output is None:
        options.output = options.environments / "results"
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"other work is running (load {load:.1f}): times will be too long and differ from run to run")
    cores = sorted(os.sched_getaffinity(0))[:options.threads]
    os.sched_setaffinity(0, cores)
    comparison = Comparison(options)
    for op in options.ops:
        try:
            {"kernels": comparison.kernels, "train": comparison.train, "generation": comparison.generation}[op]()
        except (subprocess.CalledProcessError, RuntimeError) as error:  # what was measured so far is kept
            say(f"{op}: {error}")
            comparison.left_out.append(op)
    write(options, comparison, load, cores)


def write(options, comparison, load, cores):
    import report
    results = {"machine": machine(options.threads), "load": load, "cores": cores, "command": " ".join(sys.argv[1:]),
               "versions": comparison.versions, "left_out": comparison.left_out,
               "heads": HEADS, "head_size": HEAD_SIZE, "features": FEATURES, "rows": comparison.rows}
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (options.output / "table.md").write_text(report.table(results))
    (options.output / "figure.svg").write_text(report.figure(results))
    print(report.table(results))
    say(f"written to {options.output}")


if __name__ == "__main__":
    main()
