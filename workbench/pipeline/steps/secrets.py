"""Finds credentials in text, and takes them out: values that are known, and shapes that are.

`scan` is run over the sources of a notebook before it may be promoted and over what an executed
notebook shows. A shape is only a guess; a known value is looked for in each spelling in which it
travels (as it is, inside JSON, in an address, in base64).
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

REDACTED = "[redacted: {}]"

_SHORTEST_KNOWN = 4
"""A shorter secret would be found everywhere, and is none."""

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
_ASSIGNED = re.compile(
    r"""(?ix) (?P<name>\w*(?:password|passwd|secret|token|api_?key|access_?key|credential)\w*)
    ['"]? \s* (?: :\s*[\w.\[\]| ]+= | = | : ) \s*
    [rbu]? (?P<quote>['"]) (?P<value>[^'"\n]{8,}) (?P=quote)"""
)
_PLACEHOLDER = re.compile(r"(?i)^(env:|\$|\{|<|models:|sha256:)|^(your|example|change|placeholder)")
_LEAST_BITS = 2.8
"""Entropy of a character from which a quoted value looks drawn rather than written."""


@dataclass(frozen=True)
class Leak:
    """Characters ``start`` to ``end`` of a text, on ``line`` (from 1), that should not be there.

    ``name`` is the secret's own name where its value is known, else the kind of credential;
    ``known`` tells the two apart. The value itself is not kept.
    """

    name: str
    start: int
    end: int
    line: int
    known: bool = False


def scan(text: str, known: Mapping[str, str]) -> list[Leak]:
    """Every credential in ``text``, in order and without overlaps.

    Args:
        known: Secret values by name; empty and very short values are passed over.
    """
    return _without_overlaps([*_known(text, known), *_shaped(text), *_assigned(text)])


def scan_known(text: str, known: Mapping[str, str]) -> list[Leak]:
    """As `scan`, for known values alone: no step must fail by a guess at a shape."""
    return _without_overlaps(list(_known(text, known)))


def _without_overlaps(found: list[Leak]) -> list[Leak]:
    found.sort(key=lambda leak: (leak.start, not leak.known, -leak.end))
    kept: list[Leak] = []
    for leak in found:
        if not kept or leak.start >= kept[-1].end:
            kept.append(leak)
        elif leak.end > kept[-1].end:  # half inside another one: both have to go
            last = kept.pop()
            kept.append(Leak(last.name, last.start, leak.end, last.line, last.known))
    return kept


def redact(text: str, leaks: Sequence[Leak]) -> str:
    """``text`` with each leak replaced by a mark that names it."""
    for leak in sorted(leaks, key=lambda leak: leak.start, reverse=True):
        text = text[: leak.start] + REDACTED.format(leak.name) + text[leak.end :]
    return text


def _known(text: str, known: Mapping[str, str]) -> Iterator[Leak]:
    for name, value in known.items():
        if len(value) < _SHORTEST_KNOWN:
            continue
        for spelling in _spellings(value):
            for match in re.finditer(re.escape(spelling), text):
                yield _leak(name, text, match.span(), known=True)


def _spellings(value: str) -> set[str]:
    encoded = base64.b64encode(value.encode()).decode()
    return {value, json.dumps(value)[1:-1], quote(value, safe=""), encoded.rstrip("=")}


def _shaped(text: str) -> Iterator[Leak]:
    for name, shape in _COMPILED:
        for match in shape.finditer(text):
            yield _leak(name, text, match.span(shape.groups))


def _assigned(text: str) -> Iterator[Leak]:
    for match in _ASSIGNED.finditer(text):
        value = match["value"]
        if not _PLACEHOLDER.search(value) and _looks_drawn(value):
            yield _leak(f"value of {match['name']}", text, match.span("value"))


def _looks_drawn(value: str) -> bool:
    kinds = [any(map(test, value)) for test in (str.isdigit, str.isalpha)]
    return all(kinds) and " " not in value and _bits(value) >= _LEAST_BITS


def _bits(value: str) -> float:
    """Shannon entropy of a character, in bits."""
    shares = [count / len(value) for count in Counter(value).values()]
    return -sum(share * math.log2(share) for share in shares)


def _leak(name: str, text: str, span: tuple[int, int], *, known: bool = False) -> Leak:
    return Leak(name, *span, line=text.count("\n", 0, span[0]) + 1, known=known)
