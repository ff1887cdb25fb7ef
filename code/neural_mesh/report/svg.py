"""Pieces of SVG pictures as text. Texts are escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH = 460  # of a picture, in the units of its own coordinates


class Area(NamedTuple):
    """The part of a picture that holds the data, by its borders: x to the right, y down."""

    left: float
    right: float
    top: float
    bottom: float

    @property
    def middle(self) -> float:
        """Half-way between left and right."""
        return (self.left + self.right) / 2


def svg(height: float, label: str, body: str) -> str:
    """Wrap a picture that is as wide as its container on the page."""
    box = f'viewBox="0 0 {WIDTH} {height:g}"'
    return f'<svg {box} role="img" aria-label="{escape(label)}">{body}</svg>'


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    """Write text at a point. anchor: start, middle or end. kind: classes of the style sheet."""
    extra = f' class="{kind}"' if kind else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text {place}{extra}>{escape(content)}</text>"


def rect(x: float, y: float, width: float, height: float, colour: str, tip: str = "") -> str:
    """Draw a bar, with a tip that appears under the mouse."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    place = f'x="{x:.1f}" y="{y:.1f}"'
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect {place} {size} fill="{colour}">{title}</rect>'


def line(x0: float, y0: float, x1: float, y1: float, kind: str = "grid") -> str:
    """Draw a straight line. kind: class of the style sheet."""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"/>'


def circle(x: float, y: float, colour: str) -> str:
    """Draw a dot."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'


def polyline(points: Sequence[tuple[float, float]], colour: str, dashed: bool = False) -> str:
    """Join points by a line."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    stroke = f'stroke="{colour}" stroke-width="2"{dashes}'
    return f'<polyline points="{path}" fill="none" {stroke}/>'


def legend(x: float, y: float, entries: Sequence[tuple[str, str]]) -> str:
    """Draw a legend in a row of coloured squares and their names."""
    pieces = []
    for colour, name in entries:
        pieces.append(rect(x, y - 10, 12, 12, colour))
        pieces.append(text(x + 17, y, name))
        x += 34 + 7.2 * len(name)
    return "".join(pieces)
