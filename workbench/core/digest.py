"""SHA-256 digests of bytes, files and canonical JSON (RFC 8785).

A digest is 64 lower-case hex digits. Only references on the command line have the prefix
``sha256:``.
"""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import rfc8785

from workbench.core.errors import DataError
from workbench.core.workspace import open_regular

__all__ = ["shorten"]

_SHORT_LENGTH = 12
_MAX_EXACT = 2**53  # integers of a JSON number are exact below
_ENCODER = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":")
)
"""Equal to RFC 8785 for the values that `_as_canonical` accepts, and many times faster."""


def of_bytes(data: bytes) -> str:
    """SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_NOT_ABOUT_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


def file_matches(path: Path, expected: str) -> bool:
    """Whether a file can be read and has this digest.

    Raises:
        OSError: This process lacks what it takes to read any file, which says nothing of this one.
    """
    try:
        return of_file(path) == expected
    except OSError as error:
        if error.errno in _NOT_ABOUT_THE_FILE:
            raise
        return False


def of_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON.

    Args:
        value: Plain data: dicts with string keys, lists, strings, numbers, booleans, None.

    Raises:
        DataError: JSON cannot hold a number exactly.
    """
    return of_bytes(canonical_json(value))


def shorten(digest: str) -> str:
    """The first 12 digits, for messages and names of temporary files."""
    return digest[:_SHORT_LENGTH]


def canonical_json(value: Any) -> bytes:
    """Encode plain data as RFC 8785 does: the same bytes on every machine.

    Raises:
        DataError: An integer of 2^53 or more, NaN, or infinity: JSON cannot hold it exactly.
    """
    try:
        return _ENCODER.encode(_as_canonical(value)).encode()
    except (_NotCanonicalError, UnicodeEncodeError):
        pass
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise DataError(f"a value cannot be encoded as canonical JSON: {error}") from error


class _NotCanonicalError(Exception):
    """Python and RFC 8785 may encode this value differently."""


def _as_canonical(value: Any) -> Any:
    """The same value if Python encodes it as RFC 8785 does, with whole floats as integers."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is float:
        if value.is_integer() and -_MAX_EXACT < value < _MAX_EXACT:
            return int(value)
        if 1e-4 <= value < _MAX_EXACT or -_MAX_EXACT < value <= -1e-4:
            return value  # outside, Python switches to exponents earlier
    elif kind is dict:
        for key in value:  # RFC 8785 sorts keys by UTF-16 units, Python by code points
            if type(key) is not str or not key.isascii():
                raise _NotCanonicalError
        return {key: _as_canonical(inner) for key, inner in value.items()}
    elif kind is list or kind is tuple:
        return [_as_canonical(inner) for inner in value]
    elif kind is int and -_MAX_EXACT < value < _MAX_EXACT:
        return value
    raise _NotCanonicalError
