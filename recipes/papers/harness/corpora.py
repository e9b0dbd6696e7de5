# SPDX-License-Identifier: Apache-2.0
"""The parts of a data set as files that the program reads: chosen records, documents cut to a length, data for --smoke.

What is made lies in OUTPUT/data and is made once. Records are chosen evenly spaced, so that a choice is the same everywhere.
"""
import gzip
import math
import pathlib
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from harness.experiment import ROOT, DataSet, Part, Problem

SMOKE_SEQUENCES = 24
SMOKE_PICTURES = 6
SMOKE_LENGTH = 200
RAW_NAME = re.compile(r"_(\d+)x(\d+)x(\d+)x(\d+)\.u8$")


def find(folder: pathlib.Path, part: Part) -> pathlib.Path:
    path = folder / part.file
    if not path.exists():
        raise Problem(f"{path} is not there: recipes/data/README.md says how it is made, and --data FOLDER where it lies")
    return path


def open_unpacked(path: pathlib.Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix != ".zst":
        return path.open("rb")
    if shutil.which("zstd") is None:
        raise Problem(f"{path} is packed with zstd, which is not installed: apt-get install zstd")
    # Through standard input: zstd ignores files that are links.
    with path.open("rb") as packed:
        process = subprocess.Popen(["zstd", "-dc", "--long=27"], stdin=packed, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process.stdout  # type: ignore[return-value]


def fasta_records(path: pathlib.Path) -> Iterator[tuple[bytes, bytes]]:
    """Header lines and sequences."""
    header = b""
    lines: list[bytes] = []
    with open_unpacked(path) as file:
        for line in file:
            if line.startswith(b">"):
                if header:
                    yield header, b"".join(lines)
                header, lines = line.rstrip(), []
            else:
                lines.append(line.strip())
    if not header:
        raise Problem(f"{path} holds no FASTA record: it is empty, damaged or of another format")
    yield header, b"".join(lines)


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` numbers below `count`, evenly spaced; all of them where there are not more."""
    if wanted <= 0 or wanted >= count:
        return list(range(count))
    return [i * count // wanted for i in range(wanted)]


def choose_proteins(source: pathlib.Path, part: Part, sequences: int, target: pathlib.Path) -> pathlib.Path:
    kept = [record for record in fasta_records(source) if not part.longest or len(record[1]) <= part.longest]
    with target.open("wb") as out:
        for i in evenly(len(kept), sequences):
            out.write(kept[i][0] + b"\n" + kept[i][1] + b"\n")
    return target


def cut_text(source: pathlib.Path, part: Part, sequences: int, target: pathlib.Path) -> pathlib.Path:
    """A folder of documents of part.cut bytes; what is left over at the end is dropped."""
    with open_unpacked(source) as file:
        text = file.read()
    begin, end = (math.floor(share * len(text)) for share in part.share)
    documents = [text[at:at + part.cut] for at in range(begin, end - part.cut + 1, part.cut)]
    target.mkdir()
    for i in evenly(len(documents), sequences):
        (target / f"{i:06}.txt").write_bytes(documents[i])
    return target


def choose_pictures(source: pathlib.Path, sequences: int, stem: pathlib.Path) -> pathlib.Path:
    raw = RAW_NAME.search(source.name)
    if raw:
        count, *shape = (int(number) for number in raw.groups())
        chosen = evenly(count, sequences)
        made = stem.with_name(f"{stem.name}_{len(chosen)}x{'x'.join(map(str, shape))}.u8")
        size = math.prod(shape)
        with source.open("rb") as file, made.open("wb") as out:
            for i in chosen:
                file.seek(i * size)
                out.write(file.read(size))
        return made
    made = stem.with_name(stem.name + ".tar")
    with tarfile.open(source) as archive, tarfile.open(made, "w") as out:
        members = [member for member in archive if member.isfile()]
        for i in evenly(len(members), sequences):
            out.addfile(members[i], archive.extractfile(members[i]))
    return made


def smoke_pictures(shape: tuple[int, int, int], stem: pathlib.Path) -> pathlib.Path:
    """Gradients of light with a disc: no photographs, but of their shape."""
    height, width, channels = shape
    made = stem.with_name(f"{stem.name}_{SMOKE_PICTURES}x{height}x{width}x{channels}.u8")
    with made.open("wb") as out:
        for i in range(SMOKE_PICTURES):
            for y in range(height):
                for x in range(width):
                    inside = (x - width // 3 - i) ** 2 + (y - height // 2) ** 2 < (height // 4) ** 2
                    out.write(bytes(((3 * x + 50 * c if inside else 255 - 3 * y + 20 * i) % 256) for c in range(channels)))
    return made


def smoke_part(data: DataSet, name: str, stem: pathlib.Path) -> pathlib.Path:
    """Data of the project itself, enough to see that a row runs."""
    if data.kind == "proteins":
        source = ROOT / "data" / "sample" / {"train": "train.fasta"}.get(name, "ood.fasta" if "ood" in name else "heldout.fasta")
        return choose_proteins(source, Part(str(source), longest=SMOKE_LENGTH), SMOKE_SEQUENCES, stem.with_name(stem.name + ".fasta"))
    if data.kind == "text":
        source = ROOT / "docs" / ("mechanisms.md" if name == "train" else "notation.md")
        return cut_text(source, Part(str(source), cut=SMOKE_LENGTH), SMOKE_SEQUENCES, stem)
    raw = RAW_NAME.search(data.parts[name].file)
    height, width, channels = (int(size) for size in raw.groups()[1:]) if raw else (64, 64, 3)
    return smoke_pictures((height, width, channels), stem)


class Corpora:
    """Files for the parts of data sets, made when they are asked for."""

    def __init__(self, folder: pathlib.Path, made: pathlib.Path, size: str, smoke: bool):
        self.folder, self.made, self.size, self.smoke = folder, made, size, smoke

    def missing(self, data: DataSet) -> str:
        """Why the data set cannot be used; empty if it can."""
        if self.smoke:
            return ""
        try:
            for part in data.parts.values():
                find(self.folder, part)
        except Problem as problem:
            return str(problem)
        return ""

    def path(self, data: DataSet, name: str) -> pathlib.Path:
        part = data.parts[name]
        sequences = part.sequences if self.size == "small" else 0
        if not self.smoke and not sequences and not part.longest and not part.cut:
            return find(self.folder, part)
        self.made.mkdir(parents=True, exist_ok=True)
        done = self.made / f"{data.name}-{name}.path"  # written last: what was interrupted is made again
        if done.exists():
            return self.made / done.read_text()
        for old in self.made.glob(f"{data.name}-{name}[._]*"):
            old.unlink()
        stem = self.made / f"{data.name}-{name}"
        if stem.is_dir():
            shutil.rmtree(stem)
        if self.smoke:
            target = smoke_part(data, name, stem)
        elif data.kind == "proteins":
            target = choose_proteins(find(self.folder, part), part, sequences, stem.with_name(stem.name + ".fasta"))
        elif data.kind == "text":
            target = cut_text(find(self.folder, part), part, sequences, stem)
        else:
            target = choose_pictures(find(self.folder, part), sequences, stem)
        done.write_text(target.name)
        return target

    def source(self, data: DataSet, name: str) -> dict[str, object]:
        """What the results say about a part."""
        part = data.parts[name]
        if self.smoke:
            return {"file": "smoke"}
        said: dict[str, object] = {"file": part.file, "bytes": find(self.folder, part).stat().st_size}
        if part.sequences and self.size == "small":
            said["sequences"] = part.sequences
        if part.longest:
            said["longest"] = part.longest
        if part.cut:
            said |= {"cut": part.cut, "share": list(part.share)}
        return said
