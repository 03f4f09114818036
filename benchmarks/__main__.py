"""Run benchmarks and write `docs/benchmarks.md`: ``python -m benchmarks [NAME ...] [--quick]``.

Each benchmark runs in a process of its own, so that none inherits another's memory, threads or
caches; one that fails is reported at the end and does not stop the rest. A row names the commit it
was measured at. Rows of benchmarks that were not run stay as they are, so the page is complete and
shows its age. ``--quick`` prints its rows and writes nothing: smaller sizes give rougher figures.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.common import Row, show

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"

MAKE_RUN = "make run"
"""Rows taken by hand from the report of a default run on real rides, not from a benchmark."""

# The page leads with real roads; figures of rendered drives stand apart.
SECTIONS = {
    "Real rides": (MAKE_RUN, "detector", "mining_real", "search_real"),
    "Speed and size": (
        "pipeline",
        "ingest",
        "curation",
        "curation_neighbours",
        "training",
        "export",
        "evaluation",
        "labeling",
        "hygiene",
        "explore",
    ),
    "Rendered drives (simulated, never a headline)": ("mining",),
    "Rollout and drift (simulated vehicles)": ("fleet", "fleet_scale", "shadow", "drift"),
}

_HEAD = """# Benchmarks

Written by `make bench`; `make bench ARGS=NAME` measures one again. Two cores. A ratio is ours
divided by the peer's, measured in the same run on the same machine unless marked as extrapolated.
Rows of `make run` are copied from the report of a default run, not made by a benchmark.
"""


def benchmark_names() -> list[str]:
    """Modules of this package that can be run alone."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if "\ndef measure(quick: bool)" in file.read_text()]


def render(results: dict[str, Any]) -> str:
    """The page: one row a figure, with the commit and the machine it was measured on."""
    listed = [name for names in SECTIONS.values() for name in names]
    rest = tuple(name for name in results if name not in listed)
    parts = [_HEAD]
    for title, names in {**SECTIONS, "Other": rest}.items():
        lines = [
            _line(name, entry, results[name])
            for name in names
            if name in results
            for entry in results[name]["rows"]
            if not entry.get("detail")
        ]
        if lines:
            header = "| figure | ours | peer | ratio | goal | met | measured at |"
            parts.append(
                "\n".join([f"## {title}", "", header, "|---|---|---|---|---|---|---|", *lines])
            )
    machines = sorted({f"`{name}`: {one['machine']}" for name, one in results.items()})
    parts.append("## Machines\n\n" + "\n".join(f"- {line}" for line in machines))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks; all by default")
    parser.add_argument("--quick", action="store_true", help="smaller sizes; writes nothing")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    chosen = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if chosen.page:
        PAGE.write_text(render(results))
        return 0
    unknown = sorted(set(chosen.names) - set(benchmark_names()))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(benchmark_names())}")
    rows: list[Row] = []
    failed: list[str] = []
    for name in chosen.names or benchmark_names():
        print(f"measuring {name}", file=sys.stderr)
        try:
            measured, machine = _run(name, chosen.quick)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            failed.append(f"{name}: {error}")
            continue
        rows += measured
        results[name] = {
            "commit": _commit(),
            "date": datetime.date.today().isoformat(),
            "machine": machine,
            "rows": [asdict(row) for row in measured],
        }
        if not chosen.quick:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            PAGE.write_text(render(results))
    show(rows, as_json=chosen.json)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, quick: bool) -> tuple[list[Row], str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"exit status {done.returncode}")
    text = done.stdout.decode()
    return [_row(entry) for entry in _entries(text)], _machine(text)


def _entries(text: str) -> Iterator[dict[str, Any]]:
    """Rows in whatever JSON a benchmark printed: one object with rows, a list, or one a line."""
    found = False
    for line in text.splitlines():
        if not line.startswith(("{", "[")):
            continue
        value = json.loads(line)
        if isinstance(value, dict):
            value = value.get("rows", [value])
        found = True
        yield from value
    if not found:
        raise ValueError("it printed no JSON")


def _machine(text: str) -> str:
    for line in text.splitlines():
        if line.startswith("{") and "machine" in (value := json.loads(line)):
            about = value["machine"]
            return f"{about['cpu']}, {about['cores']} cores ({' '.join(about['flags'])})"
    return "unknown"


def _row(entry: dict[str, Any]) -> Row:
    """A row from its JSON; what a benchmark adds beyond the common form stays with it."""
    missing = {"name", "ours", "unit"} - entry.keys()
    if missing:
        raise ValueError(f"a row without {', '.join(sorted(missing))}")
    given = {field.name: entry.get(field.name) for field in fields(Row)}
    return Row(**{**given, "detail": bool(given["detail"])})


def _line(name: str, entry: dict[str, Any], result: dict[str, Any]) -> str:
    peer = "" if entry["peer"] is None else f"{_number(entry['peer'])} ({entry['peer_name']})"
    if entry["peer_method"] == "extrapolated":
        peer += ", extrapolated"
    ratio = "" if entry["ratio"] is None else f"{entry['ratio']:.2f}"
    met = {True: "yes", False: "**no**", None: ""}[entry["met"]]
    ours = f"{_number(entry['ours'])} {entry['unit']}"
    cells: Sequence[str] = (
        entry["name"],
        ours,
        peer,
        ratio,
        entry["goal"] or "",
        met,
        f"`{name}` {result['commit']}",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _commit() -> str:
    """The commit that was measured, with ``+`` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
