"""One row as a picture: bars of medians with a line from the lowest to the highest. SVG, written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.view import Line

WIDTH = 860
_LABELS, _FIGURES, _TOP, _BAR, _STEP, _BOTTOM = 262, 92, 64, 15, 25, 34
_MOST_TICKS = 10
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
_COLOURS = {"ours": "#2563eb", "limit": "#9ca3af", "peer": "#d9a066"}
_MEANING = {"ours": "ckptstore", "limit": "limit or raw client", "peer": "other library"}
_INK, _PALE, _GRID = "#1f2937", "#6b7280", "#e5e7eb"


def plot(title: str, unit: str, digits: int, lines: Sequence[Line]) -> str:
    """Return the picture of a row, as the text of an SVG file; contenders without figures are named in it."""
    shown = [line for line in lines if line.value is not None]
    missing = [line.label for line in lines if line.value is None]
    height = _TOP + _STEP * len(shown) + _BOTTOM + (18 if missing else 0)
    step = tick_step(max((line.value.high for line in shown if line.value), default=1.0))
    ticks = max(1, _ticks(shown, step))
    room = WIDTH - _LABELS - _FIGURES
    scale = room / (ticks * step)
    bottom = _TOP + _STEP * len(shown)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' width='{WIDTH}' "
        f"height='{height}' role='img' {_FONT} font-size='12.5' fill='{_INK}'>",
        f"<title>{escape(title)}</title>",
        f"<rect width='{WIDTH}' height='{height}' rx='6' fill='#ffffff'/>",
        f"<text x='14' y='22' font-size='14.5' font-weight='600'>{escape(title)}</text>",
        *_legend({line.kind for line in shown}),
    ]
    for number in range(ticks + 1):
        x = _LABELS + number * step * scale
        parts.append(f"<path d='M{x:.1f} {_TOP - 6}V{bottom}' stroke='{_GRID}'/>")
        text = f"{number * step:g}" + (f" {unit}" if number == ticks else "")
        parts.append(
            f"<text x='{x:.1f}' y='{bottom + 16}' text-anchor='middle' font-size='11' fill='{_PALE}'>"
            f"{text}</text>"
        )
    for number, line in enumerate(shown):
        parts += _bar(line, _TOP + number * _STEP, scale, digits)
    if missing:
        text = escape("Failed or did not run: " + ", ".join(missing))
        parts.append(f"<text x='14' y='{height - 9}' font-size='11' fill='#b91c1c'>{text}</text>")
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _ticks(lines: Sequence[Line], step: float) -> int:
    highest = max((line.value.high for line in lines if line.value), default=1.0)
    return math.ceil(highest / step - 1e-9)


def tick_step(highest: float) -> float:
    """Return a round distance between ticks, such that there are four to ten of them up to `highest`."""
    size = 10.0 ** math.floor(math.log10(highest)) if highest > 0 else 1.0
    factor = next(
        factor for factor in (0.1, 0.2, 0.5, 1.0) if highest / (size * factor) <= _MOST_TICKS + 1e-9
    )
    return float(f"{size * factor:.6g}")


def _legend(kinds: set[str]) -> list[str]:
    parts = []
    x = _LABELS
    for kind in ("ours", "limit", "peer"):
        if kind not in kinds:
            continue
        text = _MEANING[kind]
        parts.append(f"<rect x='{x}' y='34' width='10' height='10' rx='2' fill='{_COLOURS[kind]}'/>")
        parts.append(f"<text x='{x + 15}' y='43' font-size='11' fill='{_PALE}'>{text}</text>")
        x += 15 + round(6.4 * len(text)) + 18
    return parts


def _bar(line: Line, top: float, scale: float, digits: int) -> list[str]:
    value = line.value
    assert value is not None
    middle = top + _BAR / 2
    low, high = _LABELS + value.low * scale, _LABELS + value.high * scale
    ends = f"M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"
    stroke = f"stroke='{_INK}' stroke-width='1.2' fill='none'"
    # One round has no spread to show.
    whisker = [f"<path d='M{low:.1f} {middle}H{high:.1f}{ends}' {stroke}/>"] if high > low else []
    weight = " font-weight='600'" if line.kind == "ours" else ""
    label = escape(line.label)
    return [
        f"<text x='{_LABELS - 44}' y='{middle + 4.5}' text-anchor='end'{weight}>{label}</text>",
        f"<text x='{_LABELS - 9}' y='{middle + 4}' text-anchor='end' font-size='10.5' fill='{_PALE}' "
        f"font-family='ui-monospace, Menlo, Consolas, monospace'>{line.marks}</text>",
        f"<rect x='{_LABELS}' y='{top}' width='{max(1.0, value.median * scale):.1f}' height='{_BAR}' rx='2' "
        f"fill='{_COLOURS[line.kind]}'/>",
        *whisker,
        f"<text x='{max(high, _LABELS + value.median * scale) + 7:.1f}' y='{middle + 4.5}'{weight}>"
        f"{value.median:,.{digits}f}</text>",
    ]
