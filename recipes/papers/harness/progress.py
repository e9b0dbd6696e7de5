# SPDX-License-Identifier: Apache-2.0
"""How far an experiment is, on standard error: one line that is drawn anew on a terminal, else a line now and then."""
import sys
import time

EVERY = 30.0  # seconds between lines that are no terminal's


def span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes}:{rest:02}"


class Progress:
    def __init__(self, name: str):
        self._name, self._runs = name, 0
        self._took: list[float] = []  # seconds of finished runs
        self._begun = self._told = time.monotonic()
        self._label = ""
        self._terminal = sys.stderr.isatty()

    def expect(self, runs: int, took: list[float]) -> None:
        """`runs` in all; some are done already and took so many seconds each."""
        self._runs, self._took = runs, list(took)

    def begin(self, label: str) -> None:
        self._begun, self._label = time.monotonic(), label
        self._say(0.0, "begins", always=True)

    def elapsed(self) -> float:
        return time.monotonic() - self._begun

    def tell(self, share: float, what: str) -> None:
        """The present run has done `share` of its training."""
        self._say(share, what, always=False)

    def end(self, seconds: float) -> None:
        self._took.append(seconds)

    def _left(self, share: float) -> float | None:
        """Seconds left: what runs took so far, or the pace of the present one."""
        if self._took:
            mean = sum(self._took) / len(self._took)
        elif share > 0.02:
            mean = self.elapsed() / share
        else:
            return None
        return mean * (self._runs - len(self._took)) - min(self.elapsed(), mean)

    def _say(self, share: float, what: str, always: bool) -> None:
        now = time.monotonic()
        if not always and not self._terminal and now - self._told < EVERY:
            return
        self._told = now
        left = self._left(share)
        line = (f"{self._name}: run {len(self._took) + 1} of {self._runs}: {self._label}: {what}"
                + (f"; about {span(left)} left" if left is not None else ""))
        print(f"\r\033[K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def message(self, text: str) -> None:
        print(("\r\033[K" if self._terminal else "") + text, file=sys.stderr, flush=True)
