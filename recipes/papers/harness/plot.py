# SPDX-License-Identifier: Apache-2.0
"""Learning curves of an experiment as one SVG: the loss against tokens and against seconds, a line for each row."""
import html
import math
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 300, 60, 36, 90
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
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


def panel(lines: list[tuple[str, list[tuple[float, float]]]], title: str, offset: float) -> list[str]:
    xs = [x for _, points in lines for x, _ in points]
    ys = sorted(y for _, points in lines for _, y in points)
    right, bottom = max(xs) or 1.0, ys[0]
    top = max(ys[min(len(ys) - 1, int(0.97 * len(ys)))], bottom + 1e-6)  # the first steps would take all the room

    def place(x: float, y: float) -> tuple[float, float]:
        return offset + WIDTH * x / right, TOP + HEIGHT * (1 - (min(y, top) - bottom) / (top - bottom))

    parts = [f'<rect class="frame" x="{offset}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}"/>',
             f'<text x="{offset + WIDTH / 2}" y="{TOP + HEIGHT + 34}" text-anchor="middle">{title}</text>']
    for tick in ticks(0, right):
        x, _ = place(tick, top)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + HEIGHT}"/>'
                     f'<text x="{x:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{short(tick)}</text>')
    for tick in ticks(bottom, top):
        _, y = place(0, tick)
        parts.append(f'<line class="grid" x1="{offset}" x2="{offset + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text x="{offset - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for i, (name, points) in enumerate(lines):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline fill="none" stroke-width="1.6" {stroke(i)} points="{path}">'
                     f"<title>{html.escape(name)}</title></polyline>")
    return parts


def curves(document: dict[str, Any], group: str) -> str:
    """The curves of the rows of a group (seed 0), or "" where there are none."""
    rows = [(row["name"], row["runs"][0]["curve"]) for row in document["rows"]
            if row["group"] == group and row["runs"] and row["runs"][0].get("curve")]
    if not rows:
        return ""
    offset = LEFT + WIDTH + GAP
    parts = panel([(name, [(point[1], point[3]) for point in curve]) for name, curve in rows], "tokens", LEFT)
    parts += panel([(name, [(point[2], point[3]) for point in curve]) for name, curve in rows], "seconds of training", offset)
    legend = TOP + HEIGHT + 58
    for i, (name, _) in enumerate(rows):
        x, y = LEFT + i % 4 * 220, legend + i // 4 * 18
        parts.append(f'<path d="M{x} {y - 4}h20" stroke-width="2" {stroke(i)}/>'
                     f'<text x="{x + 24}" y="{y}">{html.escape(name)}</text>')
    title = f"{document['title']}: training loss (natural logarithm) of {group or 'all rows'}"
    width, height = offset + WIDTH + 30, legend + (len(rows) + 3) // 4 * 18
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
            f'<title>{html.escape(title)}</title><style>{STYLE}</style><text x="{LEFT}" y="20">{html.escape(title)}</text>'
            + "\n".join(parts) + "</svg>\n")
