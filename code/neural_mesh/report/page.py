"""The report as one HTML page that needs nothing else: tables, charts as inline SVG, pictures as data URIs.

Every function returns a piece of HTML; texts are escaped here and nowhere else. Angles are in degrees.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WIDTH = 460  # of a chart, in the units of its own coordinates
DARK, LIGHT = "#00507d", "#8cc6ec"  # pi/6 and pi/18: told apart by lightness, too
HISTOGRAM_BIN, AZIMUTH_BIN = 5, 30  # degrees


class Card(NamedTuple):
    """A picture of the gallery. rank: 1 is the smallest error of its category and level; place: best, median or worst."""

    category: str
    level: str
    name: str
    error: float
    place: str
    rank: int
    of: int
    predicted: str
    annotated: str
    jpeg: bytes


class Timing(NamedTuple):
    """How long a stage took for a part of the work."""

    stage: str
    subset: str
    seconds: float
    items: int
    unit: str
    resumed: bool


@dataclass(frozen=True)
class LevelReport:
    """What the page says of one occlusion level.

    table: header and lines. notes: those that begin with PARTIAL or MIXED are put on top of the page. categories,
    within_pi6, within_pi18: accuracies in %, one per category. errors, azimuths [B]: per image. mean: image-weighted
    (pi/6, pi/18). published: the same from the paper, where the test set is the full one.
    """

    level: str
    table: list[list[str]]
    notes: list[str]
    categories: list[str]
    within_pi6: list[float]
    within_pi18: list[float]
    errors: NDArray
    azimuths: NDArray
    mean: tuple[float, float]
    published: tuple[float, float] | None = None
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.level or "unoccluded"

    @property
    def alarms(self) -> list[str]:
        return [note for note in self.notes if note.startswith(("PARTIAL", "MIXED"))]


def page(
    title: str,
    levels: Sequence[LevelReport],
    cards: Sequence[Card],
    timings: Sequence[Timing],
    left_out: Sequence[str],
    mark: str,
) -> str:
    """The whole page. left_out: what exists but could not be reported, and why. mark: a digest of what it is made from."""
    alarms = [f"{report.title}: {note}" for report in levels for note in report.alarms] + [
        f"PARTIAL: {text}" for text in left_out
    ]
    images = sum(len(report.errors) for report in levels)
    subtitle = (
        f"{images:,} poses, {len(levels)} occlusion {'level' if len(levels) == 1 else 'levels'}"
    )
    parts = [
        f"<h1>{escape(title)}</h1><p class=subtitle>{escape(subtitle)}</p>",
        "".join(f"<p class=alarm role=alert>{escape(text)}</p>" for text in alarms),
        section("Accuracy by occlusion", level_chart(levels)) if len(levels) > 1 else "",
        level_buttons(levels),
        "".join(level_section(report, k) for k, report in enumerate(levels)),
        section("Gallery", gallery(cards)),
        section("Time spent", timing_table(timings)),
        section("Settings", settings_table(levels)),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<!-- made from {mark} -->\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n'
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, content: str) -> str:
    """A headed part of the page."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


# ---- one level ----


def level_buttons(levels: Sequence[LevelReport]) -> str:
    """Buttons that choose which level is shown; without scripts all are shown."""
    if len(levels) < 2:
        return ""
    buttons = "".join(
        f'<button type=button data-show="{escape(r.level)}" aria-pressed=false>{escape(r.title)}</button>'
        for r in levels
    )
    return f'<nav class=levels aria-label="occlusion level">{buttons}</nav>'


def level_section(report: LevelReport, number: int) -> str:
    """Table, notes and charts of one level."""
    notes = "".join(
        f"<li{' class=strong' if note.startswith('Not the full') else ''}>{escape(note)}</li>"
        for note in report.notes
    )
    charts = (
        figure("Accuracy by category", accuracy_chart(report))
        + figure(f"Errors of {len(report.errors):,} images", histogram_chart(report.errors))
        + figure("Error against annotated azimuth", azimuth_chart(report.errors, report.azimuths))
    )
    body = f"<h2>Results: {escape(report.title)}</h2>{table(report.table)}<ul class=notes>{notes}</ul><div class=charts>{charts}</div>"
    return f'<section class=level data-level="{escape(report.level)}" id=level{number}>{body}</section>'


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table of numbers; the published lines are set apart. It scrolls by itself where the screen is narrow."""
    head = "".join(f"<th scope=col>{escape(cell.strip())}</th>" for cell in lines[0])
    rows = []
    for line in lines[1:]:
        name = line[0].strip()
        kind = " class=published" if name.endswith(("reference", "paper")) else ""
        cells = "".join(f"<td>{escape(cell.strip())}</td>" for cell in line[1:])
        rows.append(f"<tr{kind}><th scope=row>{escape(name)}</th>{cells}</tr>")
    return f"<div class=wide tabindex=0><table class=numbers><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


# ---- charts ----


def figure(title: str, svg: str) -> str:
    """A chart with its title."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def svg(height: float, label: str, body: str) -> str:
    """An SVG picture as wide as its place."""
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{body}</svg>'


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """Text at a point; `anchor` is start, middle or end."""
    extra = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(content)}</text>'


def rect(x: float, y: float, width: float, height: float, colour: str, tip: str = "") -> str:
    """A bar, with a tip that a mouse shows."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" fill="{colour}">{title}</rect>'


def line(x0: float, y0: float, x1: float, y1: float, kind: str = "grid") -> str:
    """A straight line of a class of the style sheet."""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"/>'


def key(x: float, y: float, entries: Sequence[tuple[str, str]]) -> str:
    """A legend in a row: coloured squares and their names."""
    parts = []
    for colour, name in entries:
        parts.append(rect(x, y - 10, 12, 12, colour) + text(x + 17, y, name))
        x += 34 + 7.2 * len(name)
    return "".join(parts)


def accuracy_chart(report: LevelReport) -> str:
    """Horizontal bars: share of images within pi/6 and pi/18, per category."""
    left, right, step = 92, WIDTH - 34, 40
    height = 54 + step * len(report.categories)
    scale = (right - left) / 100
    body = key(left, 16, ((DARK, "within pi/6"), (LIGHT, "within pi/18")))
    for percent in (0, 25, 50, 75, 100):
        x = left + scale * percent
        body += line(x, 26, x, height - 22) + text(x, height - 7, f"{percent} %", "middle", "small")
    for k, (name, pi6, pi18) in enumerate(
        zip(report.categories, report.within_pi6, report.within_pi18, strict=True)
    ):
        y = 30 + step * k
        body += text(left - 7, y + 20, name, "end")
        for row, (value, colour) in enumerate(((pi6, DARK), (pi18, LIGHT))):
            body += rect(
                left, y + 1 + 16 * row, scale * value, 14, colour, f"{name}: {value:.1f} %"
            )
            body += text(
                left + scale * value + 4, y + 12.5 + 16 * row, f"{value:.1f}", "start", "small"
            )
    return svg(height, "accuracy by category", body)


def histogram_chart(errors: NDArray) -> str:
    """Share of the images by error, in bins of `HISTOGRAM_BIN` degrees; both thresholds are marked."""
    edges = np.arange(0, 180 + HISTOGRAM_BIN, HISTOGRAM_BIN)
    shares = 100.0 * np.histogram(np.minimum(errors, 179.999), edges)[0] / len(errors)
    left, right, top, bottom = 42, WIDTH - 12, 34, 232
    ceiling = nice_ceiling(shares.max())
    across, up = (right - left) / 180, (bottom - top) / ceiling
    body = "".join(
        line(left, bottom - up * v, right, bottom - up * v)
        + text(left - 5, bottom - up * v + 4, f"{v:g} %", "end", "small")
        for v in np.linspace(0, ceiling, 5)
    )
    for k, share in enumerate(shares):
        count = round(share * len(errors) / 100)
        tip = f"{edges[k]} to {edges[k + 1]} degrees: {count:,} images"
        body += rect(
            left + across * edges[k] + 0.5,
            bottom - up * share,
            across * HISTOGRAM_BIN - 1,
            up * share,
            DARK,
            tip,
        )
    for limit, name, low in ((10, "pi/18", 0), (30, "pi/6", 0)):
        x = left + across * limit
        body += line(x, top - 14, x, bottom, "mark") + text(
            x + 3, top - 6 - low, name, "start", "small"
        )
    body += "".join(
        text(left + across * d, bottom + 16, str(d), "middle", "small") for d in range(0, 181, 30)
    )
    return svg(
        274,
        "histogram of the errors",
        body + text((left + right) / 2, 268, "error (degrees)", "middle"),
    )


def nice_ceiling(value: float) -> float:
    """The smallest of 4, 8, 12, 20, 40, 60, 80, 100 that is not below the value."""
    return next((limit for limit in (4, 8, 12, 20, 40, 60, 80) if limit >= value), 100)


def azimuth_chart(errors: NDArray, azimuths: NDArray) -> str:
    """Median error, and the middle half of the errors, by annotated azimuth in bins of `AZIMUTH_BIN` degrees centred on
    0, 30, ...; the number of images stands below."""
    bins = 360 // AZIMUTH_BIN
    which = np.floor(np.mod(azimuths + AZIMUTH_BIN / 2, 360) / AZIMUTH_BIN).astype(int) % bins
    left, right, top, bottom = 42, WIDTH - 8, 26, 218
    step = (right - left) / bins

    def height(error: float) -> float:
        """Square-root scale: errors of a few degrees and of half a turn can both be read."""
        return bottom - (bottom - top) * float(np.sqrt(error / 180))

    body = "".join(
        line(left, height(e), right, height(e))
        + text(left - 5, height(e) + 4, f"{e}°", "end", "small")
        for e in (0, 2, 10, 30, 60, 120, 180)
    )
    body += key(left, 14, ((LIGHT, "25 to 75 %"), (DARK, "median")))
    for k in range(bins):
        x, mine = left + step * k, errors[which == k]
        body += text(x + step / 2, bottom + 15, f"{k * AZIMUTH_BIN}", "middle", "small")
        body += text(x + step / 2, bottom + 30, f"{len(mine)}", "middle", "small faint")
        if len(mine):
            low, middle, high = np.percentile(mine, (25, 50, 75))
            tip = f"azimuth {k * AZIMUTH_BIN}: median {middle:.1f}, {len(mine):,} images"
            body += rect(
                x + step * 0.2,
                height(high),
                step * 0.6,
                max(height(low) - height(high), 1.5),
                LIGHT,
                tip,
            )
            body += rect(x + step * 0.1, height(middle) - 1.5, step * 0.8, 3, DARK, tip)
    body += text(
        (left + right) / 2, 268, "azimuth (degrees; 0 is the front), number of images", "middle"
    )
    return svg(274, "error against azimuth", body)


def level_chart(levels: Sequence[LevelReport]) -> str:
    """Lines: image-weighted accuracy at each level; the paper's beside it where the test set is the full one."""
    left, right, top, bottom = 46, WIDTH - 24, 34, 226
    xs = np.linspace(left + 30, right - 30, len(levels))
    up = (bottom - top) / 100
    body = "".join(
        line(left, bottom - up * v, right, bottom - up * v)
        + text(left - 5, bottom - up * v + 4, f"{v} %", "end", "small")
        for v in (0, 25, 50, 75, 100)
    )
    body += "".join(
        text(x, bottom + 17, report.title, "middle", "small")
        for x, report in zip(xs, levels, strict=True)
    )
    known = [report.published for report in levels]
    for k, colour in ((0, DARK), (1, "#4a9fd0")):
        points = [(x, bottom - up * report.mean[k]) for x, report in zip(xs, levels, strict=True)]
        body += polyline(points, colour) + "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
            + text(x, y - 9, f"{report.mean[k]:.1f}", "middle", "value")
            for (x, y), report in zip(points, levels, strict=True)
        )
        body += polyline(
            [(x, bottom - up * p[k]) for x, p in zip(xs, known, strict=True) if p],
            colour,
            dashed=True,
        )
    body += key(left, 15, ((DARK, "within pi/6"), ("#4a9fd0", "within pi/18")))
    if any(known):
        body += text(left + 245, 15, "dashed: the paper")
    chart = svg(252, "accuracy against occlusion level", body)
    return f"<div class=charts>{figure('Image-weighted mean over the categories', chart)}</div>"


def polyline(points: Sequence[tuple[float, float]], colour: str, dashed: bool = False) -> str:
    """Points joined by a line."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


# ---- gallery ----


def gallery(cards: Sequence[Card]) -> str:
    """Pictures sorted by error, with filters by category, level and place among the errors."""
    if not cards:
        return "<p>No picture could be made.</p>"
    categories, levels = (
        list(dict.fromkeys(getattr(card, key) for card in cards)) for key in ("category", "level")
    )
    filters = (
        choice("category", [("*", "all categories"), *((c, c) for c in categories)])
        + choice("level", [("*", "all levels"), *((v, v or "unoccluded") for v in levels)])
        + choice(
            "place",
            [
                ("*", "best, median and worst"),
                ("best", "best"),
                ("median", "median"),
                ("worst", "worst"),
            ],
        )
        + choice("order", [("up", "smallest error first"), ("down", "largest error first")])
    )
    ordered = sorted(cards, key=lambda card: card.error)
    body = "".join(map(card_html, ordered))
    return (
        f"<form class=filters autocomplete=off>{filters}<output id=shown>{len(cards)} of {len(cards)} pictures</output></form>"
        f"<div class=gallery id=gallery>{body}</div>"
    )


def choice(name: str, options: Sequence[tuple[str, str]]) -> str:
    """A drop-down list."""
    items = "".join(
        f'<option value="{escape(value)}">{escape(label)}</option>' for value, label in options
    )
    return f'<label>{name} <select name={name} id="filter-{name}">{items}</select></label>'


def card_html(card: Card) -> str:
    """One picture with its name, error and poses."""
    data = base64.b64encode(card.jpeg).decode()
    level = f" {escape(card.level)}" if card.level else ""
    return (
        f'<article data-category="{escape(card.category)}" data-level="{escape(card.level)}" data-place={card.place} '
        f'data-error="{card.error:.3f}"><img loading=lazy alt="{escape(card.name)}: input above, predicted pose below" '
        f'src="data:image/jpeg;base64,{data}"><p><b>{card.error:.1f}°</b> {escape(card.category)}{level} '
        f"<span class=tag>{card.place}, {card.rank:,} of {card.of:,}</span></p>"
        f"<p class=small>{escape(card.name)}<br>predicted {escape(card.predicted)}, annotated {escape(card.annotated)}</p></article>"
    )


# ---- time and settings ----


def timing_table(timings: Sequence[Timing]) -> str:
    """Seconds by stage, with bars, and each part of the work below."""
    if not timings:
        return "<p>No stage has noted its time.</p>"
    stages = list(dict.fromkeys(timing.stage for timing in timings))
    totals = {stage: sum(t.seconds for t in timings if t.stage == stage) for stage in stages}
    longest = max(totals.values()) or 1.0
    bars = "".join(
        f"<tr><th scope=row>{escape(stage)}</th><td>{duration(total)}</td>"
        f'<td class=bar><span style="width:{100 * total / longest:.1f}%"></span></td></tr>'
        for stage, total in totals.items()
    )
    lines = [["stage", "of", "time", "done", "rate"]]
    for t in timings:
        rate = f"{t.items / t.seconds:.2f} {t.unit}/s" if t.seconds > 0 else ""
        lines.append(
            [
                t.stage,
                t.subset,
                duration(t.seconds),
                f"{t.items:,} {t.unit}" + (" (resumed)" if t.resumed else ""),
                rate,
            ]
        )
    return (
        f"<table class=stages>{bars}</table><details><summary>by category and level</summary>{table(lines)}</details>"
        "<p class=small>Time on the clock, sums over categories, levels and the shares of parallel runs. A run that is killed notes no "
        "time: what is resumed counts from there on.</p>"
    )


def duration(seconds: float) -> str:
    """`8.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def settings_table(levels: Sequence[LevelReport]) -> str:
    """Settings of every level, side by side; rows that differ are marked."""
    names = list(dict.fromkeys(name for report in levels for name in report.settings))
    rows = []
    for name in names:
        values = [report.settings.get(name, "") for report in levels]
        if len(set(values)) == 1:
            cells = f"<td colspan={len(levels)}>{escape(values[0])}</td>"
        else:
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f"<tr><th scope=row>{escape(name)}</th>{cells}</tr>")
    head = "".join(f"<th scope=col>{escape(report.title)}</th>" for report in levels)
    body = f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<div class=wide tabindex=0><table class=settings>{body}</table></div>"


STYLE = """
:root{--ink:#1b1f24;--soft:#57606a;--rule:#d8dee4;--paper:#fff;--tint:#f3f6f9;--accent:#00507d}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:16px}
h1{font-size:1.7rem;margin:.4em 0 0}h2{font-size:1.2rem;margin:1.6em 0 .6em}
.subtitle{color:var(--soft);margin:0 0 1em}
.alarm{background:#fff0d1;border-left:5px solid #b45309;padding:.5em .8em;margin:.4em 0;font-weight:600;overflow-wrap:anywhere}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.28em .6em;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap;font-weight:400}
thead th{font-weight:600}th[scope=row]{text-align:left;font-weight:600}
.published th,.published td{color:var(--soft);background:var(--tint);font-style:italic}
.settings td,.settings th{text-align:left;white-space:normal;overflow-wrap:anywhere}
.notes{color:var(--soft);font-size:.9rem;padding-left:1.2em;overflow-wrap:anywhere}
.notes .strong{color:var(--ink);font-weight:600}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:18px;max-width:100%}
figure{margin:0;min-width:0}figcaption{font-weight:600;margin-bottom:.3em}
svg{width:100%;max-width:560px;height:auto;display:block}
svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--ink)}
svg .small{font-size:12px;fill:var(--soft)}svg .faint{font-size:11px}svg .value{font-size:12px;font-weight:600}
svg .grid{stroke:var(--rule);stroke-width:1}svg .mark{stroke:#b45309;stroke-width:1.5;stroke-dasharray:4 3}
.levels{display:flex;flex-wrap:wrap;gap:8px;margin:1.4em 0 0}
button,select{font:inherit;padding:.35em .7em;border:1px solid #8c959f;border-radius:6px;background:#fff;color:var(--ink);max-width:100%}
button[aria-pressed=true]{background:var(--accent);border-color:var(--accent);color:#fff}
button:focus-visible,select:focus-visible{outline:3px solid #8cc6ec}
.filters{display:flex;flex-wrap:wrap;gap:10px 16px;align-items:center;margin-bottom:12px}
.filters output{color:var(--soft)}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:14px}
article{border:1px solid var(--rule);border-radius:8px;padding:8px;min-width:0;overflow-wrap:anywhere}
article img{width:100%;height:auto;display:block;border-radius:4px}article p{margin:.4em 0 0}
article[hidden],section[hidden]{display:none}
.small{font-size:.83rem;color:var(--soft)}.tag{font-size:.83rem;color:var(--soft)}
.stages{width:100%;max-width:640px}.bar{width:60%}.bar span{display:block;height:14px;background:var(--accent);min-width:1px}
details{margin:.8em 0}summary{cursor:pointer}
@media print{.levels,.filters{display:none}section[hidden]{display:block}article{break-inside:avoid}}
"""

SCRIPT = """
(function(){
  "use strict";
  var buttons=[].slice.call(document.querySelectorAll("[data-show]"));
  var sections=[].slice.call(document.querySelectorAll("section.level"));
  function show(level){
    sections.forEach(function(s){s.hidden=s.dataset.level!==level;});
    buttons.forEach(function(b){b.setAttribute("aria-pressed",String(b.dataset.show===level));});
  }
  buttons.forEach(function(b){b.addEventListener("click",function(){show(b.dataset.show);});});
  if(buttons.length){show(buttons[0].dataset.show);}
  var gallery=document.getElementById("gallery");
  if(!gallery){return;}
  var cards=[].slice.call(gallery.children);
  function chosen(name){return document.getElementById("filter-"+name).value;}
  function update(){
    var shown=0,up=chosen("order")==="up";
    cards.forEach(function(c){
      c.hidden=["category","level","place"].some(function(k){var v=chosen(k);return v!=="*"&&c.dataset[k]!==v;});
      if(!c.hidden){shown+=1;}
    });
    cards.slice().sort(function(a,b){return (up?1:-1)*(Number(a.dataset.error)-Number(b.dataset.error));})
      .forEach(function(c){gallery.appendChild(c);});
    document.getElementById("shown").textContent=shown+" of "+cards.length+" pictures";
  }
  document.querySelector(".filters").addEventListener("change",update);
})();
"""
