"""Runs the benchmarks: each is a ratio against a baseline of the same run, with evidence of the path taken.

`make bench` builds what is measured and calls this as root, with the binaries' places in EVOKE_BIN and
EVOKE_BASELINE_BIN.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import chart
import cold
import data
import idle
import machine
import million
import peers
import pull
import volumes
import warm
from servers import HOST, Evoke, started
from table import Row, print_table, write_json

# The service user must be able to pass through every folder above a data folder.
FOLDER_PARENT = "/var/tmp"


def main() -> int:
    options = arguments()
    evoke_bin = binary("EVOKE_BIN", "evoke")
    baseline_bin = binary("EVOKE_BASELINE_BIN", "evoke-baseline", beside=evoke_bin)
    work = Path(tempfile.mkdtemp(prefix="evoke-bench-", dir=FOLDER_PARENT))
    work.chmod(0o755)
    busy, steal = machine.busy_seconds(), machine.steal_seconds()
    rows: list[Row] = []
    try:
        lean = None if options.lean is None else [way for way in options.lean.split(",") if way != "off"]
        for name, benchmark in benchmarks(evoke_bin, baseline_bin, work, lean).items():
            if not options.only or name in options.only:
                print(f"{name}:", flush=True)
                rows += benchmark()
    finally:
        if not options.keep:
            shutil.rmtree(work)
    print_table(rows)
    busy, steal = machine.busy_seconds() - busy, machine.steal_seconds() - steal
    print(f"\nthis machine was busy for {busy:.0f} CPU seconds meanwhile, {steal:.0f} more were stolen from it")
    if options.json:
        write_json(rows, options.json)
    if options.svg:
        chart.write_svg(rows, options.svg)
    return 0 if all(row.met for row in rows) else 1


def benchmarks(
    evoke_bin: Path, baseline_bin: Path, work: Path, lean: list[str] | None
) -> dict[str, Callable[[], list[Row]]]:
    """Every benchmark by its name, each with a server and a data folder of its own."""

    def with_server(
        measure: Callable[[Evoke], list[Row]], name: str, bases: list[str] | None = HOST
    ) -> Callable[[], list[Row]]:
        def run() -> list[Row]:
            with started(Evoke(evoke_bin, work / name, bases, lean)) as evoke:
                return measure(evoke)

        return run

    def million_run() -> list[Row]:
        full, empty = (Evoke(evoke_bin, work / name, lean=lean) for name in ("full", "empty"))
        with started(full), started(empty):
            return million.measure(full, empty, work)

    return {
        "warm": with_server(lambda evoke: warm.measure(evoke, baseline_bin, work), "warm"),
        "cold": with_server(lambda evoke: cold.measure(evoke, work), "cold", bases=None),
        "idle": with_server(lambda evoke: idle.measure(evoke, work), "idle"),
        "million": million_run,
        "volumes": with_server(lambda evoke: volumes.measure(evoke, work), "volumes"),
        "pull": with_server(lambda evoke: pull.measure(evoke, work), "pull", ["registry", "host"]),
        "data": with_server(lambda evoke: data.measure(evoke, work), "data"),
        "peers": with_server(lambda evoke: peers.measure(evoke, work), "peers", bases=None),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as JSON too")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw how they stand to their goals there")
    parser.add_argument("--only", action="append", metavar="NAME", help="run this benchmark (may be repeated)")
    parser.add_argument("--lean", help="the lean ways that containers take, as EVOKE_LEAN lists them; `off` for none")
    parser.add_argument("--keep", action="store_true", help="keep the data folders and logs")
    return parser.parse_args()


def binary(variable: str, name: str, beside: Path | None = None) -> Path:
    """The binary that a variable names, else the one of that name beside another."""
    named = os.environ.get(variable)
    path = Path(named) if named else (beside.parent / name if beside else Path(name))
    if not path.is_file():
        sys.exit(f"{variable} must name the {name} binary to measure; `make bench` does that")
    return path.resolve()


if __name__ == "__main__":
    sys.exit(main())
