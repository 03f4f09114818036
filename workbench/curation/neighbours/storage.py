"""An index on disk, beside the shards its vectors came from: built once, found again by content.

    embeddings/<…>/neighbours-<identity>/{lists.faiss, index.json}

The vectors stay where they are; the identity is a digest of them and of all that shapes the index.
``index.json`` is written last and carries the digest of the other file, which is checked before
it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from workbench import digest
from workbench.curation.neighbours.index import NeighbourIndex, Recall
from workbench.curation.neighbours.vectors import Vectors
from workbench.errors import DataError, WorkbenchError

_ABOUT, _LISTS = "index.json", "lists.faiss"
_LAYOUT = 1
_ROWS = 16_384


def index_beside(
    folder: Path, vectors: Vectors, *, k: int = 10, target: float = 0.97, seed: int = 0
) -> NeighbourIndex:
    """The index of ``vectors`` that is kept in ``folder``; built and kept when there is none.

    Raises:
        DataError: The file was changed since it was written, or a vector is not finite.
        WorkbenchError: The disk is full; nothing is left behind.
    """
    identity = digest.of_json(
        {
            "layout": _LAYOUT,
            "vectors": _digest_of(vectors),
            "k": k,
            "target": str(target),
            "seed": seed,
        }
    )
    place = folder / f"neighbours-{digest.short(identity)}"
    if (place / _ABOUT).exists():
        return _load(place, vectors, k=k, target=target, seed=seed)
    index = NeighbourIndex(vectors, k=k, target=target, seed=seed)
    _save(index, place)
    return index


def _save(index: NeighbourIndex, place: Path) -> None:
    import faiss

    temporary: Path | None = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=".writing-"))
        # Serialised first: faiss's own writing turns a full disk into an error without a reason.
        (temporary / _LISTS).write_bytes(faiss.serialize_index(index.lists).tobytes())
        about = {
            "layout": _LAYOUT,
            "lists": digest.of_file(temporary / _LISTS),
            "unit": index.unit,
            "probes": index.probes,
            "recall": vars(index.recall),
        }
        (temporary / _ABOUT).write_text(json.dumps(about))
        temporary.chmod(0o755)
        try:
            os.rename(temporary, place)  # noqa: PTH104 - says what it replaces: nothing
        except OSError:
            if not (place / _ABOUT).exists():  # another process was quicker
                raise
    except OSError as error:
        raise WorkbenchError(
            f"the index cannot be written: {error.strerror or error}",
            where=place,
            hint="Free some space and run again",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _load(place: Path, vectors: Vectors, *, k: int, target: float, seed: int) -> NeighbourIndex:
    import faiss

    try:
        about = json.loads((place / _ABOUT).read_text())
        data = (place / _LISTS).read_bytes()
        whole = digest.of_bytes(data) == about["lists"]
        recall = Recall(**about["recall"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(place, str(error)) from error
    if not whole:
        raise _damaged(place, "its digest does not hold")
    lists = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    built = (lists, about["unit"], about["probes"], recall)
    return NeighbourIndex(vectors, k=k, target=target, seed=seed, built=built)


def _damaged(place: Path, why: str) -> DataError:
    return DataError(
        f"the index cannot be read: {why}", where=place, hint="Delete its folder and ask again"
    )


def _digest_of(vectors: Vectors) -> str:
    found = hashlib.sha256(f"{vectors.dtype.str} {vectors.shape}".encode())
    for start in range(0, len(vectors), _ROWS):
        found.update(np.ascontiguousarray(vectors[start : start + _ROWS]).tobytes())
    return found.hexdigest()
