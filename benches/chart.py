"""Results as a chart (SVG): how each number stands to its goal, on a logarithmic scale."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from table import Row, number

LINE, TOP, NAMES, BARS, NUMBERS = 22, 44, 330, 360, 270
# The farthest that a bar goes to either side of the goal, in times.
FARTHEST = 8.0
MET, MISSED = "#2f855a", "#c05621"


def write_svg(rows: Sequence[Row], path: Path) -> None:
    """A bar for each row that has a goal; the line in the middle is the goal."""
    shown = [row for row in rows if row.goal is not None]
    width, height = NAMES + BARS + NUMBERS, TOP + LINE * len(shown) + 12
    middle = NAMES + BARS / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{middle}" y="16" text-anchor="middle">goal</text>',
        f'<text x="{NAMES}" y="32" fill="#555">worse, {FARTHEST:g} times or more</text>',
        f'<text x="{NAMES + BARS}" y="32" text-anchor="end" fill="#555">better, {FARTHEST:g} times or more</text>',
    ]
    for place, row in enumerate(shown):
        parts += bar(row, TOP + LINE * place, middle)
    parts += [f'<line x1="{middle}" x2="{middle}" y1="20" y2="{height - 8}" stroke="black"/>', "</svg>"]
    path.write_text("\n".join(parts) + "\n")


def bar(row: Row, top: float, middle: float) -> list[str]:
    reach = math.log(better_by(row)) / math.log(FARTHEST) * BARS / 2
    x, length = (middle, reach) if reach >= 0 else (middle + reach, -reach)
    sign = "≤" if row.at_most else "≥"
    told = f"{number(row.value, row.unit)} ({sign} {number(row.goal or 0.0, row.unit)})"
    return [
        f'<text x="{NAMES - 8}" y="{top + 14}" text-anchor="end">{escape(row.what)}</text>',
        f'<rect x="{x:.1f}" y="{top + 3}" width="{max(length, 1):.1f}" height="{LINE - 8}" '
        f'fill="{MET if row.met else MISSED}"/>',
        f'<text x="{NAMES + BARS + 8}" y="{top + 14}">{escape(told)}</text>',
    ]


def better_by(row: Row) -> float:
    """How many times better than its goal, within what is shown."""
    goal = row.goal or 0.0
    over, under = (goal, row.value) if row.at_most else (row.value, goal)
    if under <= 0:
        return FARTHEST
    return min(FARTHEST, max(1 / FARTHEST, over / under))
