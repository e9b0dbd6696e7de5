# SPDX-License-Identifier: Apache-2.0
"""Reads FASTA with the rules of docs/formats.md that concern letters, gaps, stops and names."""

from __future__ import annotations

import gzip
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

from performer.models.vocabulary import Vocabulary

Source = str | os.PathLike[str] | Iterable[str] | Iterable[tuple[str, str]]


class Record(NamedTuple):
    """One sequence: its name, its ids, and where it stands (record and line from 1; line 0: not from a file)."""

    id: str
    tokens: list[int]
    number: int
    line: int


def _open(path: pathlib.Path) -> IO[bytes]:
    file = path.open("rb")
    magic = file.peek(2)[:2] if hasattr(file, "peek") else b""
    return gzip.open(file) if magic == b"\x1f\x8b" else file  # type: ignore[return-value]


class _Reader:
    """The state of one file."""

    def __init__(self, source: str, vocabulary: Vocabulary) -> None:
        self.source = source
        self.ids = vocabulary.ids
        self.what = f"{vocabulary.unit} of the vocabulary {vocabulary.name}"
        self.name, self.number, self.line = "", 0, 0
        self.tokens: list[int] = []
        self.stopped = 0  # the line of a final '*'
        self.has_case = any(symbol.islower() for symbol in self.ids)

    def fail(self, line: int, message: str) -> ValueError:
        return ValueError(f"{self.source}, record {self.number} ('{self.name}'), line {line}: {message}")

    def finish(self) -> Record | None:
        if self.number == 0:
            return None
        if not self.tokens:
            raise self.fail(self.line, "a record without letters")
        return Record(self.name, self.tokens, self.number, self.line)

    def begin(self, header: bytes, line: int) -> None:
        parts = header[1:].split(b"\x01")[0].split(maxsplit=1) if header[1:2].strip() else []
        self.name = parts[0].decode(errors="replace") if parts else ""
        self.number, self.line, self.tokens, self.stopped = self.number + 1, line, [], 0

    def add(self, text: bytes, line: int) -> None:
        for column, code in enumerate(text, 1):
            letter = bytes([code])
            found = self.ids.get(letter)
            if found is None and not self.has_case:
                found = self.ids.get(letter.upper())
            if found is None and letter in b"-. \t":
                continue
            if self.stopped:
                raise self.fail(self.stopped, "'*' in the middle of a sequence: a stop may only be its last letter")
            if found is None and letter == b"*":
                self.stopped = line
                continue
            if found is None:
                shown = letter.decode() if 32 < code < 127 else f"byte {code:#04x}"
                raise self.fail(line, f"illegal letter {shown!r} in column {column}: expected {self.what}")
            self.tokens.append(found)


def read_fasta(path: str | os.PathLike[str], vocabulary: Vocabulary) -> Iterator[Record]:
    """The records of a FASTA file, plain or gzip.

    Lower-case letters are read as upper case, gaps (- and .) and a last * are dropped, aliases are followed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming file, record, line and column for anything that is no symbol of the vocabulary, a record
            without letters, and a file that is no FASTA.
    """
    reader = _Reader(str(path), vocabulary)
    with _open(pathlib.Path(path)) as lines:
        for number, raw in enumerate(lines, 1):
            line = raw.strip(b" \t\r\n") if number > 1 else raw.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
            if not line or line.startswith(b";"):
                continue
            if line.startswith(b">"):
                if (record := reader.finish()) is not None:
                    yield record
                reader.begin(line, number)
            elif reader.number == 0:
                raise ValueError(
                    f"{path}, line {number}: a FASTA file begins with '>' and a name, not with {line[:20]!r}"
                )
            else:
                reader.add(line, number)
    record = reader.finish()
    if record is None:
        raise ValueError(f"{path} is empty: expected FASTA")
    yield record


def records(source: Source, vocabulary: Vocabulary) -> Iterator[Record]:
    """Sequences of a FASTA file (a path), or of texts, or of pairs of name and text."""
    if isinstance(source, str | os.PathLike):
        yield from read_fasta(source, vocabulary)
        return
    for number, item in enumerate(source, 1):
        name, text = item if isinstance(item, tuple) else (str(number), item)
        yield Record(name, vocabulary.encode(text), number, 0)
