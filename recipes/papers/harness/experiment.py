# SPDX-License-Identifier: Apache-2.0
"""What an experiment consists of: the file rows.toml in its folder, and one TOML configuration a size.

rows.toml:

    title   one line
    seeds   how many seeds each row has, unless the row says otherwise (default 1)
    smoke   settings on top of everything else for --smoke, which only shows that the rows run

    [data.NAME]          a data set; `kind` is proteins, text or pictures. Every other key is a part of it: `train`, `valid`
                         (for curves and for `choose`) and the splits that are evaluated. A part has
        file             below the folder of --data
        sequences        so many records, evenly spaced; size small only
        longest          proteins: longer ones are left out
        cut, share       text: documents of so many bytes, of this share of the file, such as [0.0, 0.9]

    [groups.NAME]        what rows have in common: data, set, small, paper
    [[row]]              name, group, summary, and
        set              settings, as `performer train --set` takes them; `small` and `paper` are added for that size
        sizes            the sizes that have this row (default both)
        seeds            as above
        choose           lists of settings: seed 0 is tried with each, and all runs take the one that is best on `valid`
        choose_steps     for so many steps, by size, such as {small = 100, paper = 50000}
        time_limit       size small: trained for so long, such as "3m", instead of so many steps
        then             commands of `performer` after the training: {run = [...], keep = FILE}; words may hold {model}, {folder},
                         {recipe} and the name of a split; `keep` is a JSON file in {folder} that becomes part of the results
        bench            arguments of `performer bench` (and `bench_smoke`): the row is a measurement and trains nothing
"""
import dataclasses
import pathlib
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[3]
PAPERS = ROOT / "recipes" / "papers"
SIZES = ("small", "paper")


class Problem(Exception):
    """Something that the user has to know; the message is all that is shown."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a data set: which records of which file."""
    file: str
    sequences: int = 0  # 0: all
    longest: int = 0  # 0: any
    cut: int = 0  # 0: as it is
    share: tuple[float, float] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class DataSet:
    name: str
    kind: str
    parts: dict[str, Part]

    def splits(self) -> list[str]:
        return [name for name in self.parts if name not in ("train", "valid")]


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    group: str
    summary: str
    data: str
    settings: list[str]  # of the group, the row and the size
    seeds: int
    choose: list[list[str]]
    choose_steps: int  # 0: as many as a run has
    time_limit: str
    then: list[dict[str, Any]]
    bench: list[str]

    @property
    def label(self) -> str:
        return f"{self.group} {self.name}".strip()


@dataclasses.dataclass(frozen=True)
class Experiment:
    name: str
    title: str
    size: str
    smoke: bool
    config: pathlib.Path
    data: dict[str, DataSet]
    rows: list[Row]

    @property
    def folder(self) -> pathlib.Path:
        return PAPERS / self.name


ROW_KEYS = {"name", "group", "summary", "data", "set", "small", "paper", "sizes", "seeds", "choose", "choose_steps", "time_limit", "then", "bench",
            "bench_smoke"}
GROUP_KEYS = {"data", "set", "small", "paper"}
TOP_KEYS = {"title", "seeds", "smoke", "data", "groups", "row"}
KINDS = ("proteins", "text", "pictures")


def names() -> list[str]:
    return sorted(path.parent.name for path in PAPERS.glob("*/rows.toml"))


def check_keys(given: dict[str, Any], known: set[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise Problem(f"{where}: there is no key '{key}'; known are {', '.join(sorted(known))}")


def read_data(name: str, table: dict[str, Any], where: str) -> DataSet:
    kind = table.get("kind")
    if kind not in KINDS:
        raise Problem(f"{where}: data.{name}.kind must be one of {', '.join(KINDS)}, not {kind}")
    parts = {}
    for part, values in table.items():
        if part == "kind":
            continue
        check_keys(values, {field.name for field in dataclasses.fields(Part)}, f"{where}: data.{name}.{part}")
        values = dict(values)
        if "share" in values:
            values["share"] = tuple(values["share"])
        parts[part] = Part(**values)
    if "train" not in parts:
        raise Problem(f"{where}: data.{name} has no part 'train'")
    return DataSet(name, kind, parts)


def read_row(table: dict[str, Any], groups: dict[str, Any], top: dict[str, Any], size: str, smoke: bool, where: str) -> Row:
    check_keys(table, ROW_KEYS, f"{where}: row '{table.get('name')}'")
    group = groups.get(table.get("group", ""), {})
    check_keys(group, GROUP_KEYS, f"{where}: group '{table.get('group')}'")
    settings = group.get("set", []) + group.get(size, []) + table.get("set", []) + table.get(size, [])
    if smoke:
        settings = settings + top.get("smoke", [])
    timed = size == "small" and not smoke
    return Row(name=table["name"], group=table.get("group", ""), summary=table.get("summary", ""),
               data=table.get("data", group.get("data", "")), settings=settings,
               seeds=1 if smoke else table.get("seeds", top.get("seeds", 1)), choose=table.get("choose", []),
               choose_steps=0 if smoke else table.get("choose_steps", {}).get(size, 0),
               time_limit=table.get("time_limit", "") if timed else "", then=table.get("then", []),
               bench=table.get("bench_smoke", []) if smoke else table.get("bench", []))


def load(name: str, size: str, smoke: bool) -> Experiment:
    """The experiment `name` at a size; --smoke is the small size with the settings of `smoke`."""
    if name not in names():
        raise Problem(f"there is no experiment '{name}'; there are {', '.join(names())}")
    path = PAPERS / name / "rows.toml"
    try:
        top = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise Problem(f"{path}: {error}") from error
    check_keys(top, TOP_KEYS, str(path))
    data = {key: read_data(key, table, str(path)) for key, table in top.get("data", {}).items()}
    rows = [read_row(table, top.get("groups", {}), top, size, smoke, str(path)) for table in top.get("row", [])
            if size in table.get("sizes", SIZES)]
    for row in rows:
        if not row.bench and row.data not in data:
            raise Problem(f"{path}: row '{row.label}' names no data set")
    labels = [row.label for row in rows]
    if len(set(labels)) != len(labels):
        raise Problem(f"{path}: two rows have the same name")
    return Experiment(name, top["title"], size, smoke, PAPERS / name / f"{size}.toml", data, rows)
