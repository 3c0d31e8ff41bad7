"""Results: one row for each goal, as a table for people and as JSON for scripts."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured number against its goal."""

    what: str
    measured: str
    value: float
    # None where none was set: the number is only shown.
    goal: float | None
    unit: str
    at_most: bool = True
    evidence: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        if self.goal is None:
            return True
        return self.value <= self.goal if self.at_most else self.value >= self.goal


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Least to greatest of the rounds."""
    return f"{min(values):{form}}-{max(values):{form}}"


def middle(values: Sequence[float], form: str = ".2f") -> str:
    """The middle half of the rounds."""
    return f"{percentile(values, 0.25):{form}}-{percentile(values, 0.75):{form}}"


def number(value: float, unit: str) -> str:
    text = f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return f"{text} {unit}".strip()


def print_table(rows: Sequence[Row]) -> None:
    cells = [("what", "result", "goal", "", "measured")]
    for row in rows:
        sign = "<=" if row.at_most else ">="
        goal = "none set" if row.goal is None else f"{sign} {number(row.goal, row.unit)}"
        verdict = "" if row.goal is None else "met" if row.met else "MISSED"
        cells.append((row.what, number(row.value, row.unit), goal, verdict, row.measured))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    print()
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print("\nevidence of the path taken:")
    by_evidence: dict[str, list[str]] = {}
    for row in rows:
        by_evidence.setdefault(row.evidence, []).append(row.what)
    for evidence, names in by_evidence.items():
        print(f"  {'; '.join(names)}:\n    {evidence}")


def write_json(rows: Sequence[Row], path: Path) -> None:
    text = json.dumps([{**asdict(row), "met": row.met} for row in rows], indent=2)
    path.write_text(text + "\n")
