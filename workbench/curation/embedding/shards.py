"""Embeddings on disk: one folder an encoder, in it shards of a few hundred frames.

    embeddings/<model>-<identity>/<frames>/{shard.json, vectors.npy, …}
    embeddings/<model>-<identity>/quarantine.jsonl

The identity is a digest of all that shapes an array: the layout's version, model, preprocessing
and grid. So an older layout, or another model, is another folder: computed again, never misread.
A shard is written to a temporary folder and renamed, so a killed pass loses at most one shard and
a reader never meets half of one. Vectors are float16: half the bytes, and far finer than the
differences that rank frames. Arrays are plain ``.npy``, mapped into memory when read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.curation.embedding.encoder import MAX_OBJECTS, Encoder
from workbench.errors import DataError, WorkbenchError
from workbench.workspace import Workspace, write_atomic

Arrays = Mapping[str, NDArray[Any]]

LAYOUT = 2
"""Version of what a shard holds and means; 2 added tiles, sizes, noise and blockage."""

_ABOUT = "shard.json"
_QUARANTINE = "quarantine.jsonl"
_WRITING = ".writing-"
_STALE_S = 3600.0
_PER_FRAME = ("vectors", "entropy", "quality", "sizes", "tiles", "counts")
_PER_OBJECT = ("object_vectors", "boxes", "scores", "classes")
ARRAYS = (*_PER_FRAME, *_PER_OBJECT)


@dataclass(frozen=True)
class Shard:
    """Some frames in order, and their arrays, see `workbench.curation.embedding.Embeddings`."""

    folder: Path
    frames: tuple[str, ...]

    def array(self, name: str) -> NDArray[Any]:
        try:
            values: NDArray[Any] = np.load(
                self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False
            )
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"embedding file cannot be read: {error}",
                where=self.folder / f"{name}.npy",
                hint="Delete its folder; the next pass makes it again",
            ) from error
        if name in _PER_FRAME and len(values) != len(self.frames):
            raise DataError(
                f"{len(values)} rows for {len(self.frames)} frames",
                where=self.folder / f"{name}.npy",
                hint="Delete its folder; the next pass makes it again",
            )
        return values


def folder_of(place: Workspace, encoder: Encoder) -> Path:
    """Where the embeddings of one encoder lie."""
    identity = digest.of_json(
        {
            "layout": LAYOUT,
            "model": encoder.model,
            "preprocessing": encoder.preprocessing,
            "grid": [list(scale) for scale in encoder.grid],
            "objects": MAX_OBJECTS,
        }
    )
    return place.root / "embeddings" / f"{digest.short(encoder.model)}-{digest.short(identity)}"


def read_all(folder: Path) -> list[Shard]:
    """Every whole shard, in order of name."""
    found = []
    for about in sorted(folder.glob(f"[!.]*/{_ABOUT}")):
        try:
            frames = tuple(json.loads(about.read_bytes())["frames"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"shard cannot be read: {error}",
                where=about,
                hint="Delete its folder; the next pass makes it again",
            ) from error
        found.append(Shard(about.parent, frames))
    return found


def write(folder: Path, frames: Sequence[str], arrays: Arrays) -> Shard:
    """Write one shard.

    Raises:
        DataError: The vectors are not as wide as those that are there.
        WorkbenchError: The disk is full; nothing is left behind.
    """
    target = folder / digest.short(digest.of_json(list(frames)))
    _check_widths(folder, arrays)
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=_WRITING))
        for name in ARRAYS:
            with (temporary / f"{name}.npy").open("wb") as stream:
                np.save(stream, arrays[name], allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        about = {"layout": LAYOUT, "frames": list(frames)}
        (temporary / _ABOUT).write_text(json.dumps(about))
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            # Another process embedded the same frames and was quicker.
            if not (target / _ABOUT).exists():
                raise
    except OSError as error:
        raise _unwritten(target, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return Shard(target, tuple(frames))


def _check_widths(folder: Path, arrays: Arrays) -> None:
    """Raise when a shard beside has vectors of another width: no model changes its own."""
    about = next(folder.glob(f"[!.]*/{_ABOUT}"), None)
    if about is None:
        return
    for name in ("vectors", "tiles", "object_vectors"):
        there = np.load(about.parent / f"{name}.npy", mmap_mode="r", allow_pickle=False).shape[1:]
        if there != arrays[name].shape[1:]:
            raise DataError(
                f"{name} of shape {list(arrays[name].shape[1:])} do not go with those of shape "
                f"{list(there)} that the same model gave before",
                where=about.parent,
                hint="The model changed under the same name; name it by its weights, or delete "
                f"{folder.name} and embed again",
            )


def sweep(folder: Path) -> None:
    """Remove what killed passes left half written, long enough ago that nobody writes it still."""
    for left in folder.glob(f"{_WRITING}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)


def quarantined(folder: Path) -> dict[str, str]:
    """Frames that this encoder has no vector for, and why: asking it again would not help."""
    try:
        lines = (folder / _QUARANTINE).read_text().splitlines()
    except FileNotFoundError:
        return {}
    rows = [json.loads(line) for line in lines]
    return {row["frame"]: row["reason"] for row in rows}


def quarantine(folder: Path, reasons: Mapping[str, str]) -> None:
    """Add frames to the quarantine; what stands there stays."""
    rows = {**quarantined(folder), **reasons}
    text = "".join(
        json.dumps({"frame": frame, "reason": why}) + "\n" for frame, why in sorted(rows.items())
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / _QUARANTINE, text.encode())
    except OSError as error:
        raise _unwritten(folder / _QUARANTINE, error) from error


def _unwritten(where: Path, error: OSError) -> WorkbenchError:
    return WorkbenchError(
        f"embeddings cannot be written: {error.strerror or error}",
        where=where,
        hint="Free some space and run again; finished shards are kept",
    )
