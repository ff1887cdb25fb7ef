"""The report as one self-contained HTML page.

It holds tables, charts as inline SVG, and pictures as data URIs. Every function returns a piece of
HTML; texts are escaped here and in `svg`, nowhere else. Angles are in degrees.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from neural_mesh.report.cards import Card
from neural_mesh.report.charts import accuracy_chart, azimuth_chart, histogram_chart, level_chart
from neural_mesh.report.level_report import LevelReport
from neural_mesh.report.page_assets import SCRIPT, STYLE
from neural_mesh.report.timings import Timing, duration


def page(
    title: str,
    levels: Sequence[LevelReport],
    cards: Sequence[Card],
    timings: Sequence[Timing],
    left_out: Sequence[str],
    mark: str,
) -> str:
    """Assemble the whole page.

    left_out: a sentence for everything that could not be reported. mark: digest of what the page is
    made from.
    """
    # Alarms are put above all results.
    alarms = [f"{report.title}: {note}" for report in levels for note in report.alarms]
    alarms += [f"PARTIAL: {sentence}" for sentence in left_out]
    images = sum(len(report.errors) for report in levels)
    # The subtitle.
    noun = "level" if len(levels) == 1 else "levels"
    subtitle = f"{images:,} poses, {len(levels)} occlusion {noun}"
    # Empty sections are dropped below.
    sections = [
        f"<h1>{escape(title)}</h1><p class=subtitle>{escape(subtitle)}</p>",
        "".join(f"<p class=alarm role=alert>{escape(alarm)}</p>" for alarm in alarms),
        section("Accuracy by occlusion", levels_figure(levels)) if len(levels) > 1 else "",
        level_buttons(levels),
        "".join(level_section(report, k) for k, report in enumerate(levels)),
        section("Gallery", gallery(cards)),
        section("Time spent", timing_table(timings)),
        section("Settings", settings_table(levels)),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f"<!-- made from {mark} -->",
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # An empty icon keeps browsers from asking for a file that is not there.
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<main>",
            *(content for content in sections if content),
            "</main>",
            f"<script>{SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def section(title: str, content: str) -> str:
    """A headed part of the page."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def figure(title: str, chart: str) -> str:
    """A chart with its title."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"


# ---- levels --------------------------------------------------------------------------------------


def levels_figure(levels: Sequence[LevelReport]) -> str:
    """The chart of all levels."""
    chart = figure("Image-weighted mean over the categories", level_chart(levels))
    return f"<div class=charts>{chart}</div>"


def level_buttons(levels: Sequence[LevelReport]) -> str:
    """Make the buttons that choose the level; without scripts all levels are shown."""
    if len(levels) < 2:
        return ""
    buttons = ""
    for report in levels:
        attributes = f'type=button data-show="{escape(report.level)}" aria-pressed=false'
        buttons += f"<button {attributes}>{escape(report.title)}</button>"
    return f'<nav class=levels aria-label="occlusion level">{buttons}</nav>'


def level_section(report: LevelReport, number: int) -> str:
    """Table, notes and charts of one level."""
    notes = ""
    for note in report.notes:
        # What is not the full test set cannot be compared with the published numbers.
        kind = " class=strong" if note.startswith("Not the full") else ""
        notes += f"<li{kind}>{escape(note)}</li>"
    charts = (
        figure("Accuracy by category", accuracy_chart(report))
        + figure(f"Errors of {len(report.errors):,} images", histogram_chart(report.errors))
        + figure("Error against annotated azimuth", azimuth_chart(report.errors, report.azimuths))
    )
    return (
        f'<section class=level data-level="{escape(report.level)}" id=level{number}>'
        f"<h2>Results: {escape(report.title)}</h2>{table(report.table)}"
        f"<ul class=notes>{notes}</ul><div class=charts>{charts}</div></section>"
    )


def table(lines: Sequence[Sequence[str]]) -> str:
    """Make a table of numbers, which scrolls on narrow screens; published lines are set apart."""
    head = "".join(f"<th scope=col>{escape(cell.strip())}</th>" for cell in lines[0])
    rows = ""
    for line in lines[1:]:
        name = line[0].strip()
        kind = " class=published" if name.endswith(("reference", "paper")) else ""
        cells = "".join(f"<td>{escape(cell.strip())}</td>" for cell in line[1:])
        rows += f"<tr{kind}><th scope=row>{escape(name)}</th>{cells}</tr>"
    return (
        "<div class=wide tabindex=0><table class=numbers>"
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


# ---- gallery -------------------------------------------------------------------------------------


def gallery(cards: Sequence[Card]) -> str:
    """Show the pictures sorted by error, with filters by category, level and place."""
    if not cards:
        return "<p>No picture could be made.</p>"
    # The choices are those that the cards offer, in their order.
    categories = dict.fromkeys(card.category for card in cards)
    levels = dict.fromkeys(card.level for card in cards)
    filters = (
        choice("category", [("*", "all categories"), *((name, name) for name in categories)])
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
    count = f"<output id=shown>{len(cards)} of {len(cards)} pictures</output>"
    # Without scripts the cards stay in this order.
    ordered = sorted(cards, key=lambda card: card.error)
    body = "".join(card_html(card) for card in ordered)
    return (
        f"<form class=filters autocomplete=off>{filters}{count}</form>"
        f"<div class=gallery id=gallery>{body}</div>"
    )


def choice(name: str, options: Sequence[tuple[str, str]]) -> str:
    """A drop-down list."""
    items = ""
    for value, label in options:
        items += f'<option value="{escape(value)}">{escape(label)}</option>'
    return f'<label>{name} <select name={name} id="filter-{name}">{items}</select></label>'


def card_html(card: Card) -> str:
    """One picture with its name, error and poses."""
    name = escape(card.name)
    category = escape(card.category)
    level = f" {escape(card.level)}" if card.level else ""
    # The script filters and sorts by these.
    attributes = (
        f'data-category="{category}" data-level="{escape(card.level)}" '
        f'data-place={card.place} data-error="{card.error:.3f}"'
    )
    picture = (
        f'<img loading=lazy alt="{name}: input above, predicted pose below" '
        f'src="data:image/jpeg;base64,{base64.b64encode(card.jpeg).decode()}">'
    )
    heading = (
        f"<p><b>{card.error:.1f}°</b> {category}{level} "
        f"<span class=tag>{card.place}, {card.rank:,} of {card.of:,}</span></p>"
    )
    poses = f"predicted {escape(card.predicted)}, annotated {escape(card.annotated)}"
    details = f"<p class=small>{name}<br>{poses}</p>"
    return f"<article {attributes}>{picture}{heading}{details}</article>"


# ---- time and settings ---------------------------------------------------------------------------


def timing_table(timings: Sequence[Timing]) -> str:
    """Show the time of each stage with bars, and that of each part of the work below."""
    if not timings:
        return "<p>No stage has noted its time.</p>"
    # Sums over categories, levels and shares.
    totals: dict[str, float] = {}
    for timing in timings:
        totals[timing.stage] = totals.get(timing.stage, 0) + timing.seconds
    longest = max(totals.values()) or 1.0
    bars = ""
    for stage, total in totals.items():
        bar = f'<td class=bar><span style="width:{100 * total / longest:.1f}%"></span></td>'
        bars += f"<tr><th scope=row>{escape(stage)}</th><td>{duration(total)}</td>{bar}</tr>"
    # Each part of the work.
    lines = [["stage", "of", "time", "done", "rate"]]
    for timing in timings:
        done = f"{timing.items:,} {timing.unit}"
        if timing.resumed:
            done += " (resumed)"
        rate = ""
        if timing.seconds > 0:
            rate = f"{timing.items / timing.seconds:.2f} {timing.unit}/s"
        lines.append([timing.stage, timing.subset, duration(timing.seconds), done, rate])
    return (
        f"<table class=stages>{bars}</table>"
        f"<details><summary>by category and level</summary>{table(lines)}</details>"
        "<p class=small>Time on the clock, sums over categories, levels and the shares of parallel "
        "runs. A run that is killed notes no time: what is resumed counts from there on.</p>"
    )


def settings_table(levels: Sequence[LevelReport]) -> str:
    """Show the settings of all levels side by side; a value that all levels share spans them."""
    names = dict.fromkeys(name for report in levels for name in report.settings)
    rows = ""
    for name in names:
        values = [report.settings.get(name, "") for report in levels]
        if len(set(values)) == 1:
            cells = f"<td colspan={len(levels)}>{escape(values[0])}</td>"
        else:
            cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows += f"<tr><th scope=row>{escape(name)}</th>{cells}</tr>"
    head = "".join(f"<th scope=col>{escape(report.title)}</th>" for report in levels)
    return (
        "<div class=wide tabindex=0><table class=settings>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
