// SPDX-License-Identifier: Apache-2.0
// How pages look: on a light and a dark screen, narrow and wide, and printed.
#pragma once

namespace performer::studies {

inline constexpr const char* kPageStyle = R"css(
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --quiet: #59616b; --rule: #d6dae0;
  --grid: #e4e7eb; --link: #0b5cad; --mark: #fff6dd; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1c2026; --ink: #e6e9ed; --quiet: #a3acb7;
  --rule: #39414b; --grid: #2c333c; --link: #7db8f2; --mark: #33301f; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 3rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.5rem 0 0.75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.75rem 0 0.75rem; padding-top: 0.75rem; border-top: 2px solid var(--rule); }
h3 { font-size: 1.08rem; margin: 1.75rem 0 0.5rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: 0.5rem 0 0.9rem; }
a { color: var(--link); text-underline-offset: 0.15em; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -100vw; top: 0; background: var(--paper); padding: 0.5rem 1rem; z-index: 1; }
.skip:focus { left: 1rem; }
main:focus { outline: none; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.3rem 1.3rem; margin: 0; padding: 0; }
.scroll { overflow-x: auto; margin: 0.75rem 0 1.25rem; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.93rem; }
caption { text-align: left; color: var(--quiet); padding-bottom: 0.4rem; }
th, td { padding: 0.32rem 0.95rem 0.32rem 0; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: top; }
td data { white-space: nowrap; }
thead th:first-child { text-align: left; padding-left: 0.3rem; }
th:last-child, td:last-child { padding-right: 0.3rem; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--rule); }
tbody th { text-align: left; font-weight: 500; white-space: nowrap; padding-left: 0.3rem; }
tr.compared th, tr.compared td { color: var(--quiet); font-style: italic; }
td:has(> .text) { text-align: left; }
.best { font-weight: 700; background: var(--mark); border-radius: 3px; padding: 0 0.2em; }
.none { color: var(--quiet); }
details { margin: 0.5rem 0 1rem; }
summary { cursor: pointer; color: var(--link); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0.75rem 0; }
.charts figure { margin: 0; }
figure > svg { display: block; width: 100%; max-width: 56rem; height: auto; border: 1px solid var(--rule); border-radius: 6px; }
.picture { max-width: none; overflow-x: auto; }
img.drawing { max-width: 100%; height: auto; border: 1px solid var(--rule); border-radius: 6px; }
img.sample { image-rendering: pixelated; min-width: 96px; margin: 0 0.5rem 0.5rem 0; border: 1px solid var(--rule); }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: 0.75rem 1rem; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; font: 0.85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
footer { margin-top: 3rem; border-top: 1px solid var(--rule); color: var(--quiet); font-size: 0.88rem; }
svg .paper { fill: var(--paper); }
svg .ink { fill: var(--ink); }
svg .grid { stroke: var(--grid); }
svg .frame { stroke: var(--quiet); }
svg .hollow { fill: var(--paper); }
@media screen and (prefers-color-scheme: dark) {
  svg .stroke-0 { stroke: #5aa9e6; } svg .mark-0 { stroke: #5aa9e6; } svg .mark-0.filled { fill: #5aa9e6; }
  svg .stroke-1 { stroke: #ff8a3d; } svg .mark-1 { stroke: #ff8a3d; } svg .mark-1.filled { fill: #ff8a3d; }
  svg .stroke-2 { stroke: #2fc79a; } svg .mark-2 { stroke: #2fc79a; } svg .mark-2.filled { fill: #2fc79a; }
  svg .stroke-6 { stroke: #e6e9ed; } svg .mark-6 { stroke: #e6e9ed; } svg .mark-6.filled { fill: #e6e9ed; }
  img.drawing { filter: invert(0.92) hue-rotate(180deg); }
}
@media print {
  :root { --paper: #ffffff; --card: #ffffff; --ink: #000000; --quiet: #444444; --rule: #bbbbbb; --grid: #dddddd;
    --link: #000000; --mark: #ffffff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .skip { display: none; }
  h2 { break-after: avoid; } h3 { break-after: avoid; }
  figure, tr, img { break-inside: avoid; }
  .scroll, .picture, pre { overflow: visible; }
  details::details-content { content-visibility: visible; height: auto; }
  summary { list-style: none; color: var(--quiet); }
}
)css";

}  // namespace performer::studies
