"""Keeps the small files that a step read, so that its lineage alone is enough to run it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench import digest
from workbench.pipeline.steps import secrets

FOLDER = "files"
"""Where they lie in the payload of a run's record."""

_LARGEST_BYTES = 2**20


def kept(parameters: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, bytes]:
    """Payload of a run's record: each file that a path parameter named, if it is small.

    A file that changed while the step ran is left out, as is one that holds what looks like a
    credential: records are for everybody.

    Args:
        fingerprints: Path parameters to what the step's key knows of them.
    """
    payload = {}
    for name, fingerprint in fingerprints.items():
        path = Path(str(parameters[name]))
        if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
            continue
        content = path.read_bytes()
        if digest.of_bytes(content) != fingerprint:
            continue
        if not secrets.scan(content.decode(errors="replace"), {}):
            payload[f"{FOLDER}/{name}"] = content
    return payload
