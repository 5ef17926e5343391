"""The few drawings of the report, as inline SVG that follows the page's colours.

Every function returns markup in which the texts are escaped. Colours come as CSS classes (`c0`, `c1`, ... for the experiments),
so that a drawing is right on a light page and on a dark one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from evals.miniature.render import MONK_TONES

TONES = ("#f7ead0", "#d7bd96", "#825c43", "#3a312a")
"""One Monk swatch (3, 5, 7, 9) for each of the four tone groups 1-4, 5, 6-7, 8-10."""


class Scale(NamedTuple):
    """A linear scale of the horizontal axis, in per cent of the width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a value lies, in per cent, with a margin so that a mark at an end is whole."""
        span = self.high - self.low or 1.0
        return 2 + 96 * (value - self.low) / span


def scale_of(values: Sequence[float]) -> Scale:
    """The scale that holds all finite values."""
    finite = [value for value in values if math.isfinite(value)]
    return Scale(min(finite), max(finite)) if finite else Scale(0.0, 1.0)


def interval_bar(
    value: float, low: float, high: float, base: float, scale: Scale, colour: str, label: str
) -> Markup:
    """A point with its interval, and a dashed line where the base is."""
    if not math.isfinite(value):
        return Markup("")
    low, high = (low, high) if math.isfinite(low) else (value, value)
    dashed = ""
    if math.isfinite(base):
        dashed = (
            f'<line class="at-base" x1="{scale.at(base):.2f}%" x2="{scale.at(base):.2f}%" y1="0" y2="22"/>'
        )
    return Markup(
        f'<svg class="bar {colour}" width="100%" height="22" role="img" aria-label="{escape(label)}">{dashed}'
        f'<line class="range" x1="{scale.at(low):.2f}%" x2="{scale.at(high):.2f}%" y1="11" y2="11"/>'
        f'<circle cx="{scale.at(value):.2f}%" cy="11" r="5"/></svg>'
    )


class Line(NamedTuple):
    """One curve of a chart."""

    x: Sequence[float]
    y: Sequence[float]
    css: str


def chart(lines: Sequence[Line], title: str, x_title: str, from_zero: bool = False) -> Markup:
    """Curves over a common pair of axes, which begin at 0 where that is asked for; the ends of both axes are written out."""
    width, height, left, right, top, bottom = 320, 132, 46, 8, 8, 24
    points = [(x, y) for line in lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not points:
        return Markup("")
    ends = [*points, (0.0, 0.0)] if from_zero else points
    x0, x1 = min(x for x, _ in ends), max(x for x, _ in ends)
    y0, y1 = min(y for _, y in ends), max(y for _, y in ends)

    def place(x: float, y: float) -> str:
        across = left + (width - left - right) * (x - x0) / (x1 - x0 or 1)
        up = height - bottom - (height - top - bottom) * (y - y0) / (y1 - y0 or 1)
        return f"{across:.1f},{up:.1f}"

    paths = "".join(
        f'<polyline class="{line.css}" points="'
        + " ".join(place(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y))
        + '"/>'
        for line in lines
    )
    floor, wide = height - bottom, width - right
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<line class="axis" x1="{left}" x2="{wide}" y1="{floor}" y2="{floor}"/>'
        f'<line class="grid" x1="{left}" x2="{wide}" y1="{top}" y2="{top}"/>'
        f'<text x="{left - 6}" y="{top + 4}" text-anchor="end">{written(y1)}</text>'
        f'<text x="{left - 6}" y="{floor + 3}" text-anchor="end">{written(y0)}</text>'
        f'<text x="{left}" y="{height - 6}">{x0:,.0f}</text>'
        f'<text x="{wide}" y="{height - 6}" text-anchor="end">{x1:,.0f} {escape(x_title)}</text>{paths}</svg>'
    )


def written(end: float) -> str:
    """The end of an axis: two decimals, of hundreds none."""
    return f"{end:,.0f}" if abs(end) >= 100 else f"{end:.2f}"


class Marks(NamedTuple):
    """What is marked on a curve, by the places of its points."""

    kept: int | None
    """The checkpoint to keep: a dashed line."""
    apart: tuple[int, ...]
    """Where it has parted from the reward: rings."""


def banded(
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    marks: Marks,
    title: str,
    x_title: str,
    css: str,
) -> Markup:
    """One curve with its band, a line at 0, and marks; the ends of both axes are written out."""
    width, height, left, right, top, bottom = 320, 150, 46, 10, 18, 24
    places = [i for i, value in enumerate(y) if math.isfinite(value) and math.isfinite(x[i])]
    if not places:
        return Markup("")
    ends = [(low[i], high[i]) if math.isfinite(low[i] + high[i]) else (y[i], y[i]) for i in range(len(y))]
    x0, x1 = min(x[i] for i in places), max(x[i] for i in places)
    y0, y1 = min(0.0, *(ends[i][0] for i in places)), max(0.0, *(ends[i][1] for i in places))

    def across(value: float) -> float:
        return left + (width - left - right) * (value - x0) / (x1 - x0 or 1)

    def up(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - y0) / (y1 - y0 or 1)

    in_order = sorted(places, key=lambda i: x[i])
    line = " ".join(f"{across(x[i]):.1f},{up(y[i]):.1f}" for i in in_order)
    band = " ".join(
        [f"{across(x[i]):.1f},{up(ends[i][1]):.1f}" for i in in_order]
        + [f"{across(x[i]):.1f},{up(ends[i][0]):.1f}" for i in reversed(in_order)]
    )
    dots = "".join(
        f'<circle class="{"ring" if i in marks.apart else "dot"}" cx="{across(x[i]):.1f}" cy="{up(y[i]):.1f}" '
        f'r="{4.5 if i in marks.apart else 2.4}"/>'
        for i in in_order
    )
    kept = ""
    if marks.kept is not None and marks.kept in places:
        at = across(x[marks.kept])
        end = "end" if at > width / 2 else "start"
        kept = (
            f'<line class="kept" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 6}" y2="{height - bottom}"/>'
            f'<text class="name" x="{at + (-4 if end == "end" else 4):.1f}" y="10" text-anchor="{end}">keep</text>'
        )
    wide, floor = width - right, height - bottom
    lowest = up(y0) + 3
    zero = (
        ""
        if y0 == 0 or up(0) > lowest - 9
        else f'<text x="{left - 6}" y="{up(0) + 3:.1f}" text-anchor="end">0</text>'
    )
    return Markup(
        f'<svg class="chart {css}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f'<polygon points="{band}"/><line class="axis" x1="{left}" x2="{wide}" y1="{up(0):.1f}" y2="{up(0):.1f}"/>'
        f'<line class="grid" x1="{left}" x2="{wide}" y1="{floor}" y2="{floor}"/>{kept}'
        f'<text x="{left - 6}" y="{top + 4}" text-anchor="end">{y1:.3g}</text>{zero}'
        f'<text x="{left - 6}" y="{lowest:.1f}" text-anchor="end">{y0:.3g}</text>'
        f'<text x="{left}" y="{height - 6}">{x0:,.3g}</text>'
        f'<text x="{wide}" y="{height - 6}" text-anchor="end">{x1:,.0f} {escape(x_title)}</text>'
        f'<polyline class="mean" points="{line}"/>{dots}</svg>'
    )


class Ribbon(NamedTuple):
    """A curve with its band, and the thin ones of which it is the mean."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    each: Sequence[Sequence[float]]
    colour: str


class Corner(NamedTuple):
    """Where a panel of a sheet begins."""

    left: float
    top: float


PANEL_WIDTH, PANEL_HEIGHT = 232, 148


def panel(
    ribbons: Sequence[Ribbon],
    x_ends: tuple[float, float],
    y_ends: tuple[float, float],
    title: str,
    x_title: str,
    at: Corner,
    level: float = math.nan,
) -> Markup:
    """Curves of a sheet over axes that its other panels share, with a line at 0 and a dashed one at a level; colours are written out, as a file of its own has no page."""
    left, right, top, bottom = 44, 10, 22, 26
    wide, tall = PANEL_WIDTH - left - right, PANEL_HEIGHT - top - bottom

    def across(value: float) -> float:
        return left + wide * (value - x_ends[0]) / (x_ends[1] - x_ends[0] or 1)

    def up(value: float) -> float:
        return top + tall * (y_ends[1] - value) / (y_ends[1] - y_ends[0] or 1)

    def line(x: Sequence[float], y: Sequence[float]) -> str:
        return " ".join(
            f"{across(a):.1f},{up(b):.1f}" for a, b in zip(x, y, strict=True) if math.isfinite(a + b)
        )

    drawn = ""
    for r in ribbons:
        whole = [i for i in range(len(r.x)) if math.isfinite(r.low[i] + r.high[i])]
        there, back = [r.x[i] for i in whole], [r.x[i] for i in reversed(whole)]
        edge = f"{line(there, [r.high[i] for i in whole])} {line(back, [r.low[i] for i in reversed(whole)])}"
        drawn += f'<polygon points="{edge}" fill="{r.colour}" fill-opacity=".18"/>'
        thin = f'fill="none" stroke="{r.colour}" stroke-width=".7" stroke-opacity=".55"'
        drawn += "".join(f'<polyline points="{line(r.x, y)}" {thin}/>' for y in r.each)
        drawn += f'<polyline points="{line(r.x, r.y)}" fill="none" stroke="{r.colour}" stroke-width="1.8"/>'
    floor, end = top + tall, left + wide
    zero = up(0) if y_ends[0] <= 0 <= y_ends[1] else floor
    dashed = (
        f'<line x1="{left}" x2="{end}" y1="{up(level):.1f}" y2="{up(level):.1f}" stroke="#b03a16" stroke-dasharray="4 3"/>'
        if math.isfinite(level)
        else ""
    )
    return Markup(
        f'<g transform="translate({at.left:.0f} {at.top:.0f})"><text x="{left}" y="13" font-weight="600">{escape(title)}</text>'
        f'<line x1="{left}" x2="{left}" y1="{top}" y2="{floor}" stroke="#bbb"/>'
        f'<line x1="{left}" x2="{end}" y1="{zero:.1f}" y2="{zero:.1f}" stroke="#bbb"/>'
        f'<text x="{left - 5}" y="{top + 4}" text-anchor="end">{y_ends[1]:.3g}</text>'
        f'<text x="{left - 5}" y="{floor + 3}" text-anchor="end">{y_ends[0]:.3g}</text>'
        f'<text x="{left}" y="{floor + 14}">{x_ends[0]:,.3g}</text>'
        f'<text x="{end}" y="{floor + 14}" text-anchor="end">{x_ends[1]:,.0f} {escape(x_title)}</text>{drawn}{dashed}</g>'
    )


def caption(text: str, at: Corner) -> Markup:
    """A line of text on a sheet."""
    return Markup(f'<text x="{at.left:.0f}" y="{at.top:.0f}">{escape(text)}</text>')


def sheet(panels: Sequence[Markup], width: float, height: float, title: str) -> Markup:
    """Panels as a file of its own, on white."""
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="10" fill="#333">'
        f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>{Markup("").join(panels)}</svg>'
    )


def win_bar(win: float, tie: float, loss: float, label: str) -> Markup:
    """Shares won, tied and lost as one bar, always in this order and with a gap between, so that it reads without colours; the tick is at one half."""
    if not math.isfinite(win + tie + loss):
        return Markup("")
    told = ", ".join(
        f"{100 * share:.0f} % {name}" for share, name in ((win, "won"), (tie, "tied"), (loss, "lost"))
    )
    parts, left = "", 0.0
    for share, css in ((win, "won"), (tie, "tied"), (loss, "lost")):
        parts += f'<rect class="{css}" x="{100 * left:.2f}%" width="{100 * share:.2f}%" height="12" y="2"/>'
        left += share
    return Markup(
        f'<svg class="wins" width="100%" height="16" role="img" aria-label="{escape(label)}: {told}">{parts}'
        '<line x1="50%" x2="50%" y1="0" y2="16"/></svg>'
    )


MONK = tuple("#{:02x}{:02x}{:02x}".format(*rgb) for rgb in MONK_TONES)


def monk_histogram(counts: Sequence[int], top: float, label: str) -> Markup:
    """Ten bars, one per tone, `top` being the share of the full height; nothing where tones were not read."""
    total = sum(counts)
    if not total:
        return Markup("")
    width, height, gap = 200, 84, 4
    each = (width - gap * (len(counts) + 1)) / len(counts)
    bars = ""
    for tone, count in enumerate(counts):
        tall = (height - 16) * count / total / top
        left = gap + tone * (each + gap)
        bars += (
            f'<rect x="{left:.1f}" y="{height - 14 - tall:.1f}" width="{each:.1f}" height="{tall:.1f}" rx="2" fill="{MONK[tone]}"/>'
            f'<text class="name" x="{left + each / 2:.1f}" y="{height - 3}" text-anchor="middle">{tone + 1}</text>'
        )
    return Markup(
        f'<svg class="tones" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{bars}</svg>'
    )


def tone_histogram(shares: Sequence[float], top: float, label: str) -> Markup:
    """Four bars, one per tone group, `top` being the full height, with a dashed line at the even share."""
    width, height, gap = 200, 120, 10
    each = (width - gap * (len(shares) + 1)) / len(shares)
    even = height - 18 - (height - 34) / len(shares) / top
    bars = ""
    for group, share in enumerate(shares):
        tall = (height - 34) * share / top
        left = gap + group * (each + gap)
        bars += (
            f'<rect x="{left:.1f}" y="{height - 18 - tall:.1f}" width="{each:.1f}" height="{tall:.1f}" rx="3" '
            f'fill="{TONES[group]}"/><text x="{left + each / 2:.1f}" y="{height - 22 - tall:.1f}" '
            f'text-anchor="middle">{100 * share:.0f}</text>'
            f'<text class="name" x="{left + each / 2:.1f}" y="{height - 4}" text-anchor="middle">'
            f"{('1–4', '5', '6–7', '8–10')[group]}</text>"
        )
    return Markup(
        f'<svg class="tones" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{bars}'
        f'<line class="even" x1="0" x2="{width}" y1="{even:.1f}" y2="{even:.1f}"/></svg>'
    )


def tone_strip(counts: Sequence[int], unusable: int, label: str) -> Markup:
    """One prompt's images as a stacked bar of tone groups; unusable ones are last."""
    total = sum(counts) + unusable
    if total == 0:
        return Markup("")
    parts, left = "", 0.0
    for group, count in enumerate(counts):
        wide = 100 * count / total
        parts += f'<rect x="{left:.2f}%" width="{wide:.2f}%" height="14" fill="{TONES[group]}"/>'
        left += wide
    parts += (
        f'<rect class="unusable" x="{left:.2f}%" width="{100 - left:.2f}%" height="14"/>' if unusable else ""
    )
    return Markup(
        f'<svg class="strip" width="100%" height="14" role="img" aria-label="{escape(label)}">{parts}</svg>'
    )
