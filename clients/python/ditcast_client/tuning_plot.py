"""Draws what a Tune found, speed against likeness, as an SVG.

By hand: a scatter of a dozen points needs no plotting library, which the client would else bring
along, and an SVG opens in every browser.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from ditcast.v1.tuning_pb2 import TuneCompleted, TuneFigures
from ditcast_client.cache_names import cache_name

_WIDTH, _HEIGHT = 1160, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 520, 20, 420
"""Edges of the field of points; right of it stand the names."""
_LINE: Final = 20
"""Height of a line of names."""
_MOST_TICKS: Final = 6


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values on their way to places between two edges, in round steps."""

    low: float
    high: float
    step: float
    begin: float
    end: float

    @classmethod
    def over(cls, values: list[float], begin: float, end: float) -> _Axis:
        """Give an axis that holds all values, with at most six steps of 1, 2 or 5."""
        span = max(values) - min(values) or 1.0
        power = 10 ** math.floor(math.log10(span / _MOST_TICKS))
        step = power * next(each for each in (1, 2, 5, 10) if span / (power * each) <= _MOST_TICKS)
        low = math.floor(min(values) / step) * step
        high = math.ceil(max(values) / step) * step
        return cls(low, high if high > low else low + step, step, begin, end)

    def place(self, value: float) -> float:
        """Give where a value lies."""
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Give the values that are written down."""
        count = round((self.high - self.low) / self.step)
        return [self.low + index * self.step for index in range(count + 1)]


def pareto_svg(completed: TuneCompleted, target_psnr: float) -> str:
    """Draw each candidate, the Pareto front as a line, the target, and the recommended one."""
    found = list(completed.candidates)
    x = _Axis.over([1.0, *map(_speed, found)], _LEFT, _RIGHT)
    y = _Axis.over([target_psnr, *(each.psnr for each in found)], _BOTTOM, _TOP)
    best = completed.recommended_index if completed.HasField("recommended_index") else None
    height = max(_HEIGHT, _TOP + _LINE * (len(found) + 1))
    view, font = f"0 0 {_WIDTH} {height}", 'font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" {font}>',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_axes(x, y),
        *_target(y, target_psnr),
        *_front(found, x, y),
        *(part for each in found for part in _point(each, x, y, best)),
        *_names(found, best),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _speed(found: TuneFigures) -> float:
    return 1 / found.time_ratio


def _axes(x: _Axis, y: _Axis) -> Iterator[str]:
    for value in x.ticks():
        place = x.place(value)
        yield _path(f"M{place:.1f} {_TOP}V{_BOTTOM}", "#ddd")
        yield _text(place, _BOTTOM + 16, f"{value:g}", "middle")
    for value in y.ticks():
        place = y.place(value)
        yield _path(f"M{_LEFT} {place:.1f}H{_RIGHT}", "#ddd")
        yield _text(_LEFT - 6, place + 4, f"{value:g}", "end")
    middle = (_LEFT + _RIGHT) / 2
    yield _text(middle, _BOTTOM + 36, "times as fast as without a cache, denoising", "middle")
    middle = (_TOP + _BOTTOM) / 2
    label = "mean PSNR to the pictures without a cache, dB"
    yield (
        f'<text transform="translate(16 {middle:g}) rotate(-90)" text-anchor="middle">{label}'
        "</text>"
    )


def _target(y: _Axis, target_psnr: float) -> Iterator[str]:
    place = y.place(target_psnr)
    yield _path(f"M{_LEFT} {place:.1f}H{_RIGHT}", "#888", dashes="6 4")
    yield _text(_LEFT + 4, place - 4, f"target {target_psnr:g} dB", "start")


def _front(found: list[TuneFigures], x: _Axis, y: _Axis) -> Iterator[str]:
    front = sorted((each for each in found if each.on_pareto_front), key=_speed)
    places = [f"{x.place(_speed(each)):.1f} {y.place(each.psnr):.1f}" for each in front]
    if len(places) > 1:
        yield _path("M" + "L".join(places), "#1f77b4")


def _point(found: TuneFigures, x: _Axis, y: _Axis, best: int | None) -> Iterator[str]:
    color, fill = _colors(found, best)
    across, down = x.place(_speed(found)), y.place(found.psnr)
    name = escape(f"{cache_name(found.cache)}: {_figures(found)}")
    yield (
        f'<circle cx="{across:.1f}" cy="{down:.1f}" r="5" stroke="{color}" fill="{fill}">'
        f"<title>{name}</title></circle>"
    )
    yield _text(across + 8, down - 6, str(found.candidate_index + 1), "start")


def _names(found: list[TuneFigures], best: int | None) -> Iterator[str]:
    for line, each in enumerate(found, start=1):
        color, _ = _colors(each, best)
        text = f"{each.candidate_index + 1}. {cache_name(each.cache)}"
        notes = [word for word, holds in (("dropped", each.dropped),) if holds]
        if each.candidate_index == best:
            notes.append("recommended")
        if notes:
            text += f" ({', '.join(notes)})"
        yield _text(_RIGHT + 24, _TOP + _LINE * line - 6, text, "start", color)


def _colors(found: TuneFigures, best: int | None) -> tuple[str, str]:
    """Give the colours of the edge and of what is within."""
    if found.candidate_index == best:
        return "#d62728", "#d62728"
    if found.dropped:
        return "#999", "white"
    return ("#1f77b4", "#1f77b4") if found.on_pareto_front else ("#1f77b4", "white")


def _figures(found: TuneFigures) -> str:
    return f"{_speed(found):.2f} times as fast, {found.psnr:.1f} dB, SSIM {found.ssim:.4f}"


def _path(path: str, color: str, *, dashes: str = "none") -> str:
    return f'<path d="{path}" stroke="{color}" stroke-dasharray="{dashes}" fill="none"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = "#333") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"'
    return f"<text {place}>{escape(text)}</text>"
