# SPDX-License-Identifier: Apache-2.0
"""What the checks on a GPU share: comparing tensors, their options, and a line for each row that was timed."""

import argparse

import torch


class Comparisons:
    """Counts comparisons and keeps what failed. Differences are relative to the largest expected value or `smallest`."""

    def __init__(self, smallest):
        self.smallest, self.compared, self.failures = smallest, 0, []

    def compare(self, name, got, expected, tolerance):
        self.compared += 1
        got, expected = (x.detach().to("cpu", torch.float64) for x in (got, expected))
        size = max(self.smallest, expected.abs().max().item() if expected.numel() else 0.0)
        gap = (got - expected).abs().max().item() if got.numel() else 0.0
        if got.shape != expected.shape or not gap <= tolerance * size:
            self.failures.append(f"{name}: {gap:.3g} of {size:.3g}, tolerance {tolerance:.3g}")

    def report(self):
        for failure in self.failures:
            print("FAILED", failure)
        print(f"{self.compared} comparisons, {len(self.failures)} failures", flush=True)

    def results(self, **others):
        """For a JSON file, with what else was found."""
        return dict(torch=torch.__version__, compared=self.compared, failures=self.failures, **others)


def parser_of(description, lengths, saves):
    """The options of both checks; `saves` says what --json does."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths)
    parser.add_argument("--json", help=saves)
    return parser


def parse(parser):
    """The options, once it is clear that the device is there. Products of float32 then take no shortcut (TF32)."""
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --device cpu tries this script out")
    torch.backends.cuda.matmul.allow_tf32 = False
    return options


def show(row):
    """One line of a row that was timed."""
    print(" ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()), flush=True)
