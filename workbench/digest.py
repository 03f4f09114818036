"""Names for content: SHA-256 over bytes, files, folders and canonical JSON (RFC 8785).

A digest is 64 lower-case hex digits everywhere inside the workbench. The prefix ``sha256:`` is
only for people and for references on the command line.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import rfc8785

from workbench.errors import DataError

SHORT = 12


def of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """RFC 8785 bytes: one value, one spelling, on every machine.

    Raises:
        DataError: A number that JSON cannot carry exactly: a whole one of 2^53 or more, or one
            that is not finite.
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise DataError(f"a value cannot be kept as canonical JSON: {error}") from error


def of_json(value: Any) -> str:
    return of_bytes(canonical_json(value))


def short(digest: str) -> str:
    """The first characters, for screens; never for storage."""
    return digest[:SHORT]
