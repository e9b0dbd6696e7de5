# SPDX-License-Identifier: Apache-2.0
"""Vocabularies: what sequences consist of, and the ids of symbols and markers (performer/data/vocabulary.h)."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence

_MARKER_NAMES = ("<bos>", "<eos>", "<pad>", "<mask>")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\s": " ", "\\\\": "\\", "\\#": "#"}


def _unescape(text: str) -> bytes:
    out, at = bytearray(), 0
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] == "x":
            out.append(int(text[at + 2 : at + 4], 16))
            at += 4
        elif text[at] == "\\":
            out += _ESCAPES[text[at : at + 2]].encode()
            at += 2
        else:
            out += text[at].encode()
            at += 1
    return bytes(out)


def _escape(symbol: bytes) -> str:
    named = {value: key for key, value in _ESCAPES.items()}
    text = ""
    for code in symbol:
        letter = chr(code)
        text += named.get(letter) or (letter if 32 < code < 127 else f"\\x{code:02x}")
    return text


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Symbols have the ids 0 .. n - 1; the markers BOS, EOS, PAD and MASK follow them.

    Args:
        name: protein, dna, rna, bytes, pixels, or another.
        symbols: each of one or more bytes.
        aliases: letters that are read as a symbol.
        marker_letters: how BOS, EOS, PAD and MASK are written; "" for <bos> <eos> <pad> <mask>.
        numbers: symbols are written as numbers between white space.
        unit: what tokens are called in messages.
        reserved: so many symbols, the last ones, have names for people; no text stands for them.
        source_ids: of an imported model, the ids that its symbols and markers had in the source, -1 for none.
    """

    name: str
    symbols: tuple[bytes, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    marker_letters: str = ""
    numbers: bool = False
    unit: str = "tokens"
    reserved: int = 0
    source_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.reserved < len(self.symbols):
            raise ValueError(
                f"{self.reserved} of {len(self.symbols)} symbols of the vocabulary {self.name} are reserved; at least "
                "one must be there to be written"
            )
        if self.source_ids and len(self.source_ids) != len(self):
            raise ValueError(f"source_ids has {len(self.source_ids)} ids for {len(self.symbols)} symbols and 4 markers")

    @staticmethod
    def protein() -> Vocabulary:
        """25 residues with the ids of protein_lm; J is read as X."""
        return _letters("protein", "ACDEFGHIKLMNPQRSTVWYBOUXZ", [("J", "X")], "residues")

    @staticmethod
    def named(name: str) -> Vocabulary:
        """A built-in vocabulary: protein, dna, rna, bytes or pixels; raises ValueError for another."""
        if name == "protein":
            return Vocabulary.protein()
        if name in ("dna", "rna"):
            base, other = ("T", "U") if name == "dna" else ("U", "T")
            aliases = [(other, base), *((letter, "N") for letter in "BDHKMRSVWY")]
            return _letters(name, f"ACG{base}N", aliases, "nucleotides")
        if name == "bytes":
            return Vocabulary("bytes", tuple(bytes([code]) for code in range(256)), unit="bytes")
        if name == "pixels":
            symbols = tuple(str(value).encode() for value in range(256))
            return Vocabulary("pixels", symbols, numbers=True, unit="values")
        raise ValueError(f"there is no built-in vocabulary {name!r}; there are protein, dna, rna, bytes, pixels")

    @staticmethod
    def from_json(text: str) -> Vocabulary:
        """The vocabulary of a model folder's tokenizer.json.

        Raises:
            ValueError: for a text that is not one.
        """
        root = json.loads(text)
        try:
            symbols = tuple(_unescape(symbol) for symbol in root["symbols"])
            found = Vocabulary(
                root["name"],
                symbols,
                tuple(root.get("aliases", {}).items()),
                root.get("marker_letters", ""),
                root.get("spelling", "letters") == "numbers",
                root.get("unit", "tokens"),
                root.get("reserved", 0),
                tuple(root.get("source_ids", ())),
            )
            markers = [root[marker] for marker in ("bos", "eos", "pad", "mask")]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is not a tokenizer.json of a performer model: {error!r}") from error
        if markers != [found.bos, found.eos, found.pad, found.mask]:
            raise ValueError("the markers of a tokenizer.json must follow its symbols, as bos, eos, pad, mask")
        return found

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        content: dict[str, object] = {
            "name": self.name,
            "unit": self.unit,
            "spelling": "numbers" if self.numbers else "letters",
            "symbols": [_escape(symbol) for symbol in self.symbols],
            "aliases": dict(self.aliases),
            "marker_letters": self.marker_letters,
            "bos": self.bos,
            "eos": self.eos,
            "pad": self.pad,
            "mask": self.mask,
        }
        if self.reserved:
            content["reserved"] = self.reserved
        if self.source_ids:
            content["source_ids"] = list(self.source_ids)
        return json.dumps(content, indent=2) + "\n"

    def __len__(self) -> int:
        """Symbols and markers together."""
        return len(self.symbols) + 4

    @property
    def bos(self) -> int:
        """The id of the begin marker."""
        return len(self.symbols)

    @property
    def eos(self) -> int:
        """The id of the end marker."""
        return len(self.symbols) + 1

    @property
    def pad(self) -> int:
        """The id of padding."""
        return len(self.symbols) + 2

    @property
    def mask(self) -> int:
        """The id of a hidden token."""
        return len(self.symbols) + 3

    @property
    def written(self) -> tuple[bytes, ...]:
        """The symbols that a text can hold: all but the reserved ones."""
        return self.symbols[: len(self.symbols) - self.reserved]

    @functools.cached_property
    def ids(self) -> dict[bytes, int]:
        """The ids of what a text can hold: written symbols, and the letters that are read as one."""
        ids = {symbol: index for index, symbol in enumerate(self.written)}
        return ids | {letter.encode(): ids[read_as.encode()] for letter, read_as in self.aliases}

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text, the longest symbol first where several fit; aliases are followed. No markers.

        Raises:
            ValueError: naming the position (from 1, in bytes) of what is no symbol.
        """
        data = text.encode() if isinstance(text, str) else text
        ids = self.ids
        if self.numbers:
            return [self._number(word) for word in data.split()]
        longest, out, at = max(map(len, ids)), [], 0
        while at < len(data):
            for size in range(min(longest, len(data) - at), 0, -1):
                found = ids.get(data[at : at + size])
                if found is not None:
                    break
            else:
                raise ValueError(
                    f"illegal letter {data[at : at + 1]!r} at position {at + 1} of a sequence: expected {self.unit} of "
                    f"the vocabulary {self.name}"
                )
            out.append(found)
            at += size
        return out

    def _number(self, word: bytes) -> int:
        found = self.ids.get(word.lstrip(b"0") or b"0") if word.isdigit() else None
        if found is None:
            first, last = self.written[0].decode(), self.written[-1].decode()
            raise ValueError(f"{word!r} is no value of the vocabulary {self.name}: expected {first} to {last}")
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; markers as they are written, bytes that are no UTF-8 as replacement characters."""
        markers = list(self.marker_letters) or list(_MARKER_NAMES)
        parts: list[bytes] = []
        for index in ids:
            if 0 <= index < len(self.symbols):
                parts.append(self.symbols[index])
            else:
                place = index - len(self.symbols)
                parts.append(markers[place].encode() if 0 <= place < 4 else b"?")
        return (b" " if self.numbers else b"").join(parts).decode(errors="replace")

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """One printable text an id."""
        count = len(self.symbols)
        return [_escape(self.symbols[i]) if 0 <= i < count else self.decode([i]) for i in ids]


def _letters(name: str, letters: str, aliases: list[tuple[str, str]], unit: str) -> Vocabulary:
    return Vocabulary(name, tuple(letter.encode() for letter in letters), tuple(aliases), "<>_*", unit=unit)
