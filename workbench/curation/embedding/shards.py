"""Embeddings on disk: one folder a model and preprocessing, in it shards of a few hundred frames.

    embeddings/<model>-<preprocessing>/<frames>/{frames.json, vectors.npy, …}

A shard is written to a temporary folder and renamed, so a killed pass loses at most one shard and
a reader never meets half of one. Arrays are float16: half the bytes, and far finer than the
differences that rank frames. They are plain ``.npy``, mapped into memory when read.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.errors import DataError, WorkbenchError
from workbench.workspace import Workspace

Arrays = Mapping[str, NDArray[Any]]

_NAMES = "frames.json"
_PER_FRAME = ("vectors", "entropy", "quality", "counts")
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


def folder_of(place: Workspace, model: str, preprocessing: str) -> Path:
    """Where the embeddings of one model behind one preprocessing lie (both digests)."""
    return place.root / "embeddings" / f"{digest.short(model)}-{digest.short(preprocessing)}"


def read_all(folder: Path) -> list[Shard]:
    """Every whole shard, in order of name."""
    found = []
    for names in sorted(folder.glob(f"[!.]*/{_NAMES}")):
        found.append(Shard(names.parent, tuple(json.loads(names.read_bytes()))))
    return found


def write(folder: Path, frames: Sequence[str], arrays: Arrays) -> Shard:
    """Write one shard; raises `WorkbenchError` when the disk is full, leaving nothing behind."""
    target = folder / digest.short(digest.of_json(list(frames)))
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
        for name in ARRAYS:
            with (temporary / f"{name}.npy").open("wb") as stream:
                np.save(stream, arrays[name], allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
        (temporary / _NAMES).write_text(json.dumps(list(frames)))
        temporary.chmod(0o755)
        try:
            temporary.rename(target)
        except OSError:
            # Another process embedded the same frames and was quicker.
            if not (target / _NAMES).exists():
                raise
    except OSError as error:
        raise WorkbenchError(
            f"embeddings cannot be written: {error.strerror or error}",
            where=target,
            hint="Free some space and run again; finished shards are kept",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return Shard(target, tuple(frames))
