"""A line chart as SVG: the bytes of each sync, in MB on a logarithmic axis."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

MEGABYTE = 10**6
_WIDTH, _HEIGHT = 860, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 44
_LEGEND_WIDTH, _LEGEND_STEP = 300, 22
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Distinguishable with every kind of colour vision (Okabe and Ito)."""

_STYLE = """<style>
text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:15px;font-weight:600}
.grid{stroke:#ccc;stroke-width:1}.line{fill:none;stroke-width:2}svg{background:#fff}
</style>"""


@dataclass(frozen=True)
class Series:
    """The bytes of each sync by one program."""

    name: str
    counts: Sequence[int]


def chart(title: str, series: Sequence[Series]) -> str:
    """Return the SVG document. Every count is positive."""
    most = max(max(each.counts) for each in series) / MEGABYTE
    least = min(min(each.counts) for each in series) / MEGABYTE
    axis = _Axis(math.floor(math.log10(least)), math.ceil(math.log10(most)), max(len(each.counts) for each in series))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + _LEGEND_WIDTH} {_HEIGHT}" role="img">',
            f"<title>{escape(title)}</title>",
            _STYLE,
            f'<text class="title" x="{_LEFT}" y="24">{escape(title)}</text>',
            *axis.grid(),
            *_lines(axis, series),
            "</svg>\n",
        ]
    )


@dataclass(frozen=True)
class _Axis:
    """Powers of ten from `low` to `high`, and the numbers of syncs from 1 to `syncs`."""

    low: int
    high: int
    syncs: int

    def x(self, number: int) -> float:
        return _LEFT + (number - 1) * (_WIDTH - _LEFT - _RIGHT) / max(self.syncs - 1, 1)

    def y(self, megabytes: float) -> float:
        part = (math.log10(megabytes) - self.low) / max(self.high - self.low, 1)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self) -> Iterator[str]:
        """Yield the lines and labels of both axes."""
        right = _WIDTH - _RIGHT
        for power in range(self.low, self.high + 1):
            y = self.y(10.0**power)
            yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} MB</text>'
        step = max(self.syncs // 7, 1)
        for number in range(step, self.syncs + 1, step):
            y = _HEIGHT - _BOTTOM + 20
            yield f'<text x="{self.x(number):.1f}" y="{y}" text-anchor="middle">{number}</text>'


def _lines(axis: _Axis, series: Sequence[Series]) -> Iterator[str]:
    for place, (each, colour) in enumerate(zip(series, _COLOURS, strict=False)):
        points = " ".join(
            f"{axis.x(number):.1f},{axis.y(count / MEGABYTE):.1f}" for number, count in enumerate(each.counts, 1)
        )
        yield f'<polyline class="line" stroke="{colour}" points="{points}"/>'
        y = _TOP + 12 + place * _LEGEND_STEP
        yield f'<line class="line" stroke="{colour}" x1="{_WIDTH}" x2="{_WIDTH + 20}" y1="{y - 4}" y2="{y - 4}"/>'
        yield f'<text x="{_WIDTH + 28}" y="{y}">{escape(each.name)}</text>'
