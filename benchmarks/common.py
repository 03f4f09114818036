"""The form of a figure, and how figures are shown.

Every benchmark module has ``measure(quick: bool) -> list[Row]`` and ends with ``main(measure)``.
A figure stands beside its peer, which is measured in the same run on the same machine: figures are
ratios, because machines differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

PeerMethod = Literal["measured", "extrapolated", "none"]

# Instructions that decide how fast images and networks run here.
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(frozen=True)
class Row:
    """One figure. ``ratio`` is ours / peer; ``goal`` in words; ``met`` None when there is none.

    ``detail`` is printed and kept in results.json, and left out of the page.
    """

    name: str
    ours: float
    peer: float | None
    peer_name: str
    peer_method: PeerMethod
    ratio: float | None
    unit: str
    goal: str
    met: bool | None
    detail: bool = False


def row(  # noqa: PLR0913 - the fields of a row
    name: str,
    ours: float,
    unit: str,
    *,
    peer: float | None = None,
    peer_name: str = "",
    peer_method: PeerMethod = "measured",
    goal: str = "",
    met: bool | None = None,
    detail: bool = False,
) -> Row:
    """A figure with its ratio worked out."""
    ratio = ours / peer if peer else None
    method: PeerMethod = "none" if peer is None else peer_method
    return Row(name, ours, peer, peer_name, method, ratio, unit, goal, met, detail)


def seconds(work: Callable[[], object], repeat: int = 3) -> float:
    """Shortest wall time of ``work``: the one that other programs disturbed least."""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def note(message: str) -> None:
    """A line for whoever waits, never mixed into the rows."""
    print(message, file=sys.stderr, flush=True)


def machine() -> dict[str, object]:
    """What the figures were measured on; ``load`` tells whether it was doing something else."""
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags = set(value.split())
            if key.strip() == "model name":
                model = value.strip()
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "flags": [flag for flag in _TELLING if flag in flags],
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a figure a line."""
    heads = ("figure", "ours", "peer", "ratio", "unit", "goal", "met")
    lines = [heads, *(_cells(entry) for entry in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main(measure: Callable[[bool], list[Row]], arguments: list[str] | None = None) -> None:
    """Parse ``--quick`` and ``--json``, measure, print. Missed goals do not fail: they show."""
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, rougher figures")
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    chosen = parser.parse_args(arguments)
    show(measure(chosen.quick), as_json=chosen.json)


def show(rows: Sequence[Row], *, as_json: bool) -> None:
    about = machine()
    if as_json:
        print(json.dumps({"machine": about, "rows": [asdict(entry) for entry in rows]}))
        return
    print(table(rows))
    flags = " ".join(str(flag) for flag in about["flags"])  # type: ignore[attr-defined]
    print(f"{about['cpu']}, {about['cores']} cores ({flags}), load {about['load']}")


def _cells(entry: Row) -> tuple[str, ...]:
    peer = "-" if entry.peer is None else f"{_figure(entry.peer)} ({entry.peer_name})"
    if entry.peer_method == "extrapolated":
        peer += " extrapolated"
    met = {True: "yes", False: "NO", None: "-"}[entry.met]
    ratio = "-" if entry.ratio is None else f"{entry.ratio:.2f}"
    return (entry.name, _figure(entry.ours), peer, ratio, entry.unit, entry.goal or "-", met)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
