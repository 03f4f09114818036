"""Find credentials in text and in a step's files, and redact them.

Known values are searched in every encoding in which they appear (plain, inside JSON, in a URL, in
base64); unknown credentials are guessed from their patterns. A step's files are searched before
anything else reads them: a secret that a cell prints, or that is part of an error, would otherwise
stay in the executed notebook.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from workbench.core.credentials import PUBLIC_KEY_SUFFIX
from workbench.core.workspace import Workspace, write_atomic

__all__ = ()

_REDACTED = "[redacted: {}]"
_SEARCHED_FILES = ("*.ipynb", "*.txt", "*.json", "*.jsonl")

_MIN_SECRET_LENGTH = 4
"""A shorter value would match everywhere."""

_SHAPES = (
    ("private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*KEY-----|\Z)"),
    ("AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("AWS secret key", r"(?i)aws_secret_access_key['\"]?\s*[=:]\s*['\"]?([A-Za-z0-9/+]{40})\b"),
    ("GitHub token", r"\bgh[pousr]_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{50,}"),
    ("Hugging Face token", r"\bhf_[A-Za-z0-9]{30,}\b"),
    ("Slack token", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    ("Google API key", r"\bAIza[A-Za-z0-9_-]{35}"),
    ("JSON web token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{8,}"),
    ("bearer token", r"(?i)\bbearer\s+([A-Za-z0-9._~+/-]{20,}=*)"),
    ("password in an address", r"\b[a-z][a-z0-9+.-]*://[^\s:/@'\"]+:([^\s:/@'\"{}$<]{3,})@"),
)
_COMPILED = tuple((name, re.compile(shape)) for name, shape in _SHAPES)

# password = "…", "api_key": "…", token: str = '…'
_ASSIGNMENT = re.compile(
    r"""(?ix) (?P<name>\w*(?:password|passwd|secret|token|api_?key|access_?key|credential)\w*)
    ['"]? \s* (?: :\s*[\w.\[\]| ]+= | = | : ) \s*
    [rbu]? (?P<quote>['"]) (?P<value>[^'"\n]{8,}) (?P=quote)"""
)
_PLACEHOLDER = re.compile(r"(?i)^(env:|\$|\{|<|models:|sha256:)|^(your|example|change|placeholder)")
_MIN_ENTROPY_BITS = 2.8
"""Bits per character from which a quoted value looks random."""


@dataclass(frozen=True)
class Leak:
    """A credential in a text, without its value.

    Attributes:
        name: The secret's name if its value is known, else the kind of credential.
        start: First character.
        end: First character after it.
        line: Line number, from 1.
        known: Whether the value is known.
    """

    name: str
    start: int
    end: int
    line: int
    known: bool = False


def scan_text(text: str, known: Mapping[str, str]) -> list[Leak]:
    """Every credential in ``text``, in order and without overlaps.

    Args:
        text: The text to search.
        known: Secret values by name; very short values are skipped.
    """
    return _without_overlaps(
        [*_find_known(text, known), *_find_shaped(text), *_find_assigned(text)]
    )


def _without_overlaps(found: list[Leak]) -> list[Leak]:
    found.sort(key=lambda leak: (leak.start, not leak.known, -leak.end))
    kept: list[Leak] = []
    for leak in found:
        if not kept or leak.start >= kept[-1].end:
            kept.append(leak)
        elif leak.end > kept[-1].end:  # overlaps the one before: redact both
            last = kept.pop()
            kept.append(Leak(last.name, last.start, leak.end, last.line, last.known))
    return kept


def redact(text: str, leaks: Sequence[Leak]) -> str:
    """``text`` with each leak replaced by a marker with its name."""
    for leak in sorted(leaks, key=lambda leak: leak.start, reverse=True):
        text = text[: leak.start] + _REDACTED.format(leak.name) + text[leak.end :]
    return text


def _find_known(text: str, known: Mapping[str, str]) -> Iterator[Leak]:
    for name, value in known.items():
        if len(value) < _MIN_SECRET_LENGTH:
            continue
        for spelling in _encodings(value):
            for match in re.finditer(re.escape(spelling), text):
                yield _leak_at(name, text, match.span(), known=True)


def _encodings(value: str) -> set[str]:
    encoded = base64.b64encode(value.encode()).decode()
    return {value, json.dumps(value)[1:-1], quote(value, safe=""), encoded.rstrip("=")}


def _find_shaped(text: str) -> Iterator[Leak]:
    for name, shape in _COMPILED:
        for match in shape.finditer(text):
            yield _leak_at(name, text, match.span(shape.groups))


def _find_assigned(text: str) -> Iterator[Leak]:
    for match in _ASSIGNMENT.finditer(text):
        value = match["value"]
        if not _PLACEHOLDER.search(value) and _looks_random(value):
            yield _leak_at(f"value of {match['name']}", text, match.span("value"))


def _looks_random(value: str) -> bool:
    kinds = [any(map(test, value)) for test in (str.isdigit, str.isalpha)]
    return all(kinds) and " " not in value and _entropy_bits(value) >= _MIN_ENTROPY_BITS


def _entropy_bits(value: str) -> float:
    """Shannon entropy of a character, in bits."""
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares)


def _leak_at(name: str, text: str, span: tuple[int, int], *, known: bool = False) -> Leak:
    return Leak(name, *span, line=text.count("\n", 0, span[0]) + 1, known=known)


def known_secrets(workspace: Workspace, names: Iterable[str]) -> dict[str, str]:
    """Secret values by name: the step's own, and those in the workspace.

    Args:
        workspace: Its ``secrets`` folder holds passwords of servers and the signing key.
        names: Environment variables that the step may read.
    """
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    if workspace.secrets.is_dir():
        for path in workspace.secrets.iterdir():
            if path.is_file() and not path.name.endswith(PUBLIC_KEY_SUFFIX):
                found[path.name] = path.read_text(encoding="utf-8", errors="replace").strip()
    return found


def redact_folder(folder: Path, known: Mapping[str, str]) -> dict[str, list[str]]:
    """Redact known values in a step's files.

    Args:
        folder: The step's folder; text files directly in it are searched.
        known: Secret values by name.

    Returns:
        Names of the secrets that were found, by file.
    """
    found: dict[str, list[str]] = {}
    if not known:
        return found
    for pattern in _SEARCHED_FILES:
        for path in sorted(folder.glob(pattern)):
            text = path.read_text(encoding="utf-8", errors="replace")
            leaks = _without_overlaps(list(_find_known(text, known)))
            if leaks:
                found[path.name] = sorted({leak.name for leak in leaks})
                write_atomic(path, redact(text, leaks).encode())
    return found
