"""Keeps the values of secrets out of what a step leaves behind.

A secret reaches a step by name. Its value, printed by a cell or standing in an error, would be kept
for years in the executed notebook; so that is searched before anything else reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from workbench import workspace
from workbench.pipeline.steps import secrets
from workbench.workspace import Workspace

_SEARCHED = ("*.ipynb", "*.txt", "*.json", "*.jsonl")
_PUBLIC = ".pub.pem"


def known_secrets(place: Workspace, names: Iterable[str]) -> dict[str, str]:
    """Values that must not be shown, by name: the step's own, and those of our servers."""
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    if place.secrets.is_dir():
        for path in place.secrets.iterdir():
            if path.is_file() and not path.name.endswith(_PUBLIC):
                found[path.name] = path.read_text(encoding="utf-8", errors="replace").strip()
    return found


def take_out(folder: Path, known: Mapping[str, str]) -> dict[str, list[str]]:
    """Redact known values in a step's files; returns the names of secrets by file."""
    found: dict[str, list[str]] = {}
    if not known:
        return found
    for pattern in _SEARCHED:
        for path in sorted(folder.glob(pattern)):
            text = path.read_text(encoding="utf-8", errors="replace")
            leaks = secrets.scan_known(text, known)
            if leaks:
                found[path.name] = sorted({leak.name for leak in leaks})
                workspace.write_atomic(path, secrets.redact(text, leaks).encode())
    return found
