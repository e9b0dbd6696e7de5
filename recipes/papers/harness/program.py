# SPDX-License-Identifier: Apache-2.0
"""Runs `performer`: its commands, their logs, where a training stands, and stopping it without a loss."""
import json
import pathlib
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from harness.experiment import ROOT, Problem

DEFAULT_PROGRAM = ROOT / "build" / "release" / "bin" / "performer"
INTERRUPTED = 130


class Interrupted(Exception):
    """The program was asked to stop and has written a checkpoint."""


class Failed(Exception):
    """A command ended with an error; `told` is the end of what it said."""

    def __init__(self, command: list[str], code: int, told: str):
        super().__init__(f"{' '.join(command)}\nended with exit code {code}:\n{told}")
        self.code, self.told = code, told

    @property
    def diverged(self) -> bool:
        """Whether training stopped because a loss or a gradient was no number."""
        return self.code == 1 and "lower train.learning_rate" in self.told


class Program:
    def __init__(self, path: pathlib.Path, threads: int):
        if not path.is_file():
            raise Problem(f"{path} is not there: build it with scripts/build release performer_program, or give --program FILE")
        self.path, self.threads, self._stop = path.resolve(), threads, False
        self._child: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _frame: Any) -> None:
        self._stop = True
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)  # the second of two that a terminal may have sent changes nothing

    def run(self, words: list[str], log: pathlib.Path, watch: Callable[[], None] | None = None, cwd: pathlib.Path = ROOT) -> None:
        """Runs a command to its end; output goes to the end of `log`, and `watch` is called every few seconds."""
        if self._stop:
            raise Interrupted
        command = [str(self.path), *words] + (["-t", str(self.threads)] if self.threads else [])
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            begin = out.tell()
            out.write(f"$ {' '.join(command)}\n".encode())
            out.flush()
            # A session of its own: signals of a terminal come through _pass_on alone.
            with subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=cwd, start_new_session=True) as child:
                self._child = child
                code = self._wait(child, watch)
                self._child = None
        if code == INTERRUPTED or (self._stop and code != 0):
            raise Interrupted
        if code != 0:
            told = log.read_bytes()[begin:].decode(errors="replace").splitlines()[1:]
            raise Failed(command, code, "\n".join(told[-6:]))

    @staticmethod
    def _wait(child: subprocess.Popen[bytes], watch: Callable[[], None] | None) -> int:
        while True:
            try:
                return child.wait(timeout=2)
            except subprocess.TimeoutExpired:
                if watch is not None:
                    watch()

    def json(self, words: list[str]) -> Any:
        answer = subprocess.run([str(self.path), *words, "--json"], capture_output=True, check=False)
        if answer.returncode != 0:
            raise Failed([str(self.path), *words], answer.returncode, answer.stderr.decode(errors="replace")[-2000:])
        return json.loads(answer.stdout)


def read_metrics(model: pathlib.Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl; a last line that is being written is left out."""
    path = model / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def last_step(model: pathlib.Path) -> dict[str, Any]:
    """The last line of a step, from the end of the file; {} where there is none."""
    path = model / "metrics.jsonl"
    if not path.exists():
        return {}
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 4096))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "loss" in record:
            return record
    return {}


def checkpoint_seconds(model: pathlib.Path) -> float:
    """Seconds of training up to the last checkpoint, which training.safetensors tells in its header."""
    with (model / "training.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return float(json.loads(header["__metadata__"]["state"])["seconds"])
