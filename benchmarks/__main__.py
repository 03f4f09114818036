"""Runs every benchmark: ``python -m benchmarks [--quick] [--json]``.

Each runs in a process of its own, so that none inherits another's memory, threads or caches; one
that fails is reported at the end and does not stop the rest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.common import Row, show


def _names() -> list[str]:
    """Modules here that can be run alone."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if _is_benchmark(file)]


def _is_benchmark(file: Path) -> bool:
    return "\ndef measure(quick: bool)" in file.read_text()


def _run(name: str, quick: bool) -> list[Row]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
    done = subprocess.run(
        [*command, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"exit status {done.returncode}")
    return [_row(entry) for entry in _entries(done.stdout.decode())]


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


def _row(entry: dict[str, Any]) -> Row:
    """A row from its JSON; what a benchmark adds beyond the common form stays with it."""
    names = [field.name for field in fields(Row)]
    missing = {"name", "ours", "unit"} - entry.keys()
    if missing:
        raise ValueError(f"a row without {', '.join(sorted(missing))}")
    return Row(**{name: entry.get(name) for name in names})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows: list[Row] = []
    failed: list[str] = []
    for name in _names():
        print(f"measuring {name}", file=sys.stderr)
        try:
            rows += _run(name, chosen.quick)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
            failed.append(f"{name}: {error}")
    show(rows, as_json=chosen.json)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
