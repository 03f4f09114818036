"""A long JSON array from a file, an object at a time: memory stays flat however long it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.errors import ServiceError

_CHUNK = 1 << 20


def objects(path: Path, key: str | None = None) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, or of the first one that a canonical object has as ``key``.

    Raises:
        ServiceError: The file ends too soon or is no such array.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text = file.read(_CHUNK).lstrip()
        opening = "[" if key is None else f'"{key}":['
        position = text.find(opening) + len(opening)
        if position < len(opening) or (key is None and position > 1):
            raise ServiceError("expected a JSON array in an export", where=path)
        while True:
            while position < len(text) and text[position] in " ,\n\r\t":
                position += 1
            if text[position : position + 1] == "]":
                return
            try:
                found, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:
                more = file.read(_CHUNK)
                if not more:
                    raise ServiceError("an export broke off", where=path) from error
                text, position = text[position:] + more, 0
                continue
            yield found
