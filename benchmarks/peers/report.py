# SPDX-License-Identifier: Apache-2.0
"""results.json as a table in Markdown and as a picture."""
import html
import math

STYLE = """<style>
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 } .dim { fill: #59636e } .back { fill: #ffffff }
.bar { fill: #9aa4af } .ours { fill: #0072b2 } .exact { fill: #d55e00 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .dim { fill: #9198a1 } .back { fill: #0d1117 }
.bar { fill: #6e7781 } .ours { fill: #58a6ff } .exact { fill: #ff9b5e } }
</style>
"""


def groups(results):
    """[(title, unit, larger is better, {name: value})], one a case."""
    found = {}
    for row in results["rows"]:
        if row["op"] == "kernels":
            which = "forward and backward" if row["pass"] == "forward_backward" else "forward"
            key = (f"{row['direction']}, {which}, {row['length']} tokens", "ns per token and head", False)
            value = row["ns"]
        elif row["op"] == "train":
            key = (f"training step, {row['batch']} x {row['length']} tokens, {row['direction']}, {row['dtype']}", "tokens/s", True)
            value = row["tokens_per_second"]
        else:
            key = (f"generation, {row['batch']} x {row['length']} tokens", "tokens/s", True)
            value = row["tokens_per_second"]
        found.setdefault(key, {})[row["name"]] = value
    return [(*key, values) for key, values in found.items()]


def short(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def sections(results):
    """Cases side by side that have the same unit and op."""
    wide = {}
    for title, unit, larger, values in groups(results):
        head = title.split(",")[0]
        place = wide.setdefault((head, unit, larger), [])
        place.append((title, values))
    return wide


def is_rival(other, name):
    """Whether a peer computes what a row of ours does: linear attention, or without attention the values themselves."""
    if other.startswith("ours") or "exact" in other or "exact" in name:
        return False
    return ("identity" in other) == ("identity" in name)


def table(results):
    lines = [f"Machine: {results['machine']}. Fastest of samples that took turns; {results['heads']} heads of size "
             f"{results['head_size']}, {results['features']} features. Versions: "
             + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + "."]
    if results["left_out"]:
        lines.append("Left out, since it could not be installed or failed: " + ", ".join(results["left_out"]) + ".")
    for (head, unit, larger), cases in sections(results).items():
        names = sorted({name for _, values in cases for name in values},
                       key=lambda name: (not name.startswith("ours"), name))
        lines += ["", f"{head}, {unit}", "", "| | " + " | ".join(title.split(", ", 1)[-1] for title, _ in cases) + " |",
                  "|---|" + "---|" * len(cases)]
        for name in names:
            cells = []
            for _, values in cases:
                rivals = [value for other, value in values.items() if is_rival(other, name)]
                best = (max if larger else min)(rivals, default=None)
                text = short(values[name]) if name in values else ""
                if text and name.startswith("ours") and best is not None:
                    text += f" ({short(values[name] / best if larger else best / values[name])} x)"
                cells.append(text)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "In brackets: how many times as fast as the fastest peer of the column that computes linear attention; rows "
              "of identity beside the plain composition without attention."]
    return "\n".join(lines) + "\n"


def figure(results):
    """A bar for each candidate, on a logarithmic scale within a case."""
    left, width, line, parts, y = 250, 430, 20, [], 60
    for title, unit, larger, values in groups(results):
        parts.append(f'<text class="title" x="16" y="{y}">{html.escape(title)}</text>')
        parts.append(f'<text class="dim" x="{left + width + 90}" y="{y}" text-anchor="end">{unit}, '
                     f'{"more" if larger else "less"} is better, logarithmic</text>')
        y += 12
        low = math.log10(min(values.values())) - 0.3
        high = max(math.log10(max(values.values())), low + 0.5)
        for name, value in sorted(values.items(), key=lambda item: -item[1] if larger else item[1]):
            kind = "ours" if name.startswith("ours") else "exact" if "exact" in name else "bar"
            size = width * (math.log10(value) - low) / (high - low)
            parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>')
            parts.append(f'<rect class="{kind}" x="{left}" y="{y + 2}" width="{size:.1f}" height="{line - 6}" rx="2"/>')
            parts.append(f'<text class="dim" x="{left + size + 6:.1f}" y="{y + 13}">{short(value)}</text>')
            y += line
        y += 34
    wide = left + width + 106
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{y}" viewBox="0 0 {wide} {y}" role="img">\n'
            f'<title>Performer attention: this project and its peers</title>\n{STYLE}'
            f'<rect class="back" width="{wide}" height="{y}"/>\n'
            f'<text class="dim" x="16" y="26">{html.escape(results["machine"])}</text>\n' + "\n".join(parts) + "\n</svg>\n")
