# SPDX-License-Identifier: Apache-2.0
"""Figures of an experiment as SVG: learning curves, a line for each row; and what was measured against the length of sequences."""
import dataclasses
import html
import math
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 300, 60, 36, 90
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f", "#8250df", "#a8a600")
STYLE = """text{font:12px sans-serif;fill:#222}.frame{fill:none;stroke:#888}.grid{stroke:#ccc;stroke-width:.5}
@media(prefers-color-scheme:dark){svg{background:#161616}text{fill:#ddd}.grid{stroke:#444}}"""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between two bounds."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-9) / count))
    step *= next((factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count), 10)
    return [tick * step for tick in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def stroke(i: int) -> str:
    """Colour and dashes of line number i."""
    dash = ("", ' stroke-dasharray="6 3"', ' stroke-dasharray="2 3"', ' stroke-dasharray="9 3 2 3"')[i // len(COLOURS) % 4]
    return f'stroke="{COLOURS[i % len(COLOURS)]}"{dash}'


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two bounds, with 2 and 5 between them where there are few."""
    digits = (1,) if high / low > 200 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]


@dataclasses.dataclass(frozen=True)
class Axis:
    """Where numbers between two bounds lie, linear or logarithmic, and which of them are written."""
    low: float
    high: float
    start: float
    size: float
    marks: list[float]
    log: bool = False

    def place(self, number: float) -> float:
        number = min(number, self.high)
        if self.log:
            return self.start + self.size * math.log(number / self.low) / math.log(self.high / self.low)
        return self.start + self.size * (number - self.low) / (self.high - self.low)


Lines = list[tuple[str, list[tuple[float, float]]]]


def panel(lines: Lines, styles: dict[str, str], title: str, x: Axis, y: Axis) -> list[str]:
    """One coordinate system; `styles` has the colour and dashes of each line by its name."""
    left, right, bottom = x.start, x.start + x.size, y.start
    parts = [f'<rect class="frame" x="{left}" y="{bottom + y.size}" width="{x.size}" height="{-y.size}"/>',
             f'<text x="{left + x.size / 2}" y="{bottom + 34}" text-anchor="middle">{title}</text>']
    for tick in x.marks:
        at = x.place(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom + y.size}" y2="{bottom}"/>'
                     f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{f"{tick:,}" if x.log else short(tick)}</text>')
    for tick in y.marks:
        at = y.place(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{short(tick) if y.log else f"{tick:.4g}"}</text>')
    for name, points in lines:
        path = " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in points)
        parts.append(f'<polyline fill="none" stroke-width="1.6" {styles[name]} points="{path}">'
                     f"<title>{html.escape(name)}</title></polyline>")
    return parts


def learning(lines: Lines, styles: dict[str, str], title: str, offset: float) -> list[str]:
    """A panel of losses, linear; the first steps, which would take all the room, are cut off at the top."""
    xs = [a for _, points in lines for a, _ in points]
    ys = sorted(b for _, points in lines for _, b in points)
    right, bottom = max(xs) or 1.0, ys[0]
    top = max(ys[min(len(ys) - 1, int(0.97 * len(ys)))], bottom + 1e-6)
    return panel(lines, styles, title, Axis(0, right, offset, WIDTH, ticks(0, right)),
                 Axis(bottom, top, TOP + HEIGHT, -HEIGHT, ticks(bottom, top)))


def picture(title: str, parts: list[str], styles: dict[str, str], top: float) -> str:
    """The whole SVG: panels, and from `top` on the legend."""
    for i, (name, style) in enumerate(styles.items()):
        x, y = LEFT + i % 4 * 220, top + i // 4 * 18
        parts.append(f'<path d="M{x} {y - 4}h20" stroke-width="2" {style}/>'
                     f'<text x="{x + 24}" y="{y}">{html.escape(name)}</text>')
    width, height = LEFT + WIDTH + GAP + WIDTH + 30, top + (len(styles) + 3) // 4 * 18
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
            f'<title>{html.escape(title)}</title><style>{STYLE}</style><text x="{LEFT}" y="20">{html.escape(title)}</text>'
            + "\n".join(parts) + "</svg>\n")


def curves(document: dict[str, Any], group: str) -> str:
    """The curves of the rows of a group (seed 0), or "" where there are none."""
    rows = [(row["name"], row["runs"][0]["curve"]) for row in document["rows"]
            if row["group"] == group and row["runs"] and row["runs"][0].get("curve")]
    if not rows:
        return ""
    styles = {name: stroke(i) for i, (name, _) in enumerate(rows)}
    parts = []
    for title, column, offset in (("tokens", 1, LEFT), ("seconds of training", 2, LEFT + WIDTH + GAP)):
        lines = [(name, [(point[column], point[3]) for point in curve]) for name, curve in rows]
        parts += learning(lines, styles, title, offset)
    title = f"{document['title']}: training loss (natural logarithm) of {group or 'all rows'}"
    return picture(title, parts, styles, TOP + HEIGHT + 58)


def against_length(bench: list[dict[str, Any]], title: str) -> str:
    """What `performer bench` measured: a panel for each direction and pass, time a token (op train: a token of the step)."""
    bench = [row for row in bench if row.get("ns") is not None]
    kinds = list(dict.fromkeys(row["kind"] for row in bench))
    types = list(dict.fromkeys(row["dtype"] for row in bench))
    names = {(kind, dtype): kind + (f", {dtype}" if len(types) > 1 else "") for kind in kinds for dtype in types}
    styles = {name: stroke(kinds.index(kind) + len(COLOURS) * types.index(dtype)) for (kind, dtype), name in names.items()}
    lengths = sorted({row["length"] for row in bench})
    panels = list(dict.fromkeys((row["direction"], row["pass"]) for row in bench))
    parts = []
    for i, (direction, passes) in enumerate(panels):
        shown = [row for row in bench if (row["direction"], row["pass"]) == (direction, passes)]
        values = [row["ns"] for row in shown]
        low, high = 0.8 * min(values), 1.25 * max(values)
        x = Axis(lengths[0] / 1.2, 1.2 * lengths[-1], LEFT + i % 2 * (WIDTH + GAP), WIDTH, lengths, log=True)
        y = Axis(low, high, TOP + HEIGHT + i // 2 * (HEIGHT + 60), -HEIGHT, log_ticks(low, high), log=True)
        lines = [(names[kind, dtype], [(row["length"], row["ns"]) for row in shown if (row["kind"], row["dtype"]) == (kind, dtype)])
                 for kind, dtype in names]
        parts += panel([line for line in lines if line[1]], styles, f"tokens ({direction}, {passes.replace('_', ' and ')})", x, y)
    return picture(title, parts, styles, TOP + (len(panels) + 1) // 2 * (HEIGHT + 60))
