"""What a batch holds, read frame by frame.

Of each frame only its name and where its rows begin are in memory: some 70 bytes, whatever is
predicted on it and however many reasons it was chosen for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from itertools import islice, takewhile
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from workbench import digest as digests
from workbench.errors import RecordError
from workbench.labeling.answers import region_id
from workbench.labeling.streams import objects
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import Choice, DatasetVersion, LabelBatch, Prediction

_ROWS_AT_ONCE = 4096


class Contents:
    """A batch with its frames and the boxes that labelers start from."""

    def __init__(self, store: Store, ref: Ref) -> None:
        self.store = store
        self.ref = ref
        batch = store.get(ref, LabelBatch)
        self.batch = batch.model_copy(update={"frames": _Digests(batch.frames)})
        self.dataset_name = store.get(self.batch.dataset, DatasetVersion).name
        self._names = np.sort(_names(self.batch.frames))
        frames = store.payload(self.batch.dataset, "frames.jsonl").open("rb")
        self._frames = _Rows(frames, b"id", self._names)
        self._boxes = _Rows(
            store.payload(ref, "predictions.jsonl").open("rb"), b"frame", self._names
        )
        self._choices: _Rows | None = None

    def frame(self, digest: Digest) -> Frame:
        """A frame of the batch.

        Raises:
            RecordError: The batch's dataset has no such frame.
        """
        rows = self._frames.of(digest)
        if not rows:
            raise RecordError(f"no frame {digest[:12]} in the batch's dataset", where=self.ref)
        return Frame.model_validate_json(rows[0])

    def choice(self, frame: Digest) -> Choice | None:
        """Why a frame was chosen; None for one that only measures labelers."""
        if self._choices is None:
            self._choices = _Rows(self._chosen(), b"frame", self._names)
        rows = self._choices.of(frame)
        return Choice.model_validate_json(rows[0]) if rows else None

    def _chosen(self) -> IO[bytes]:
        """The choices of the selection, a row each: a selection as a whole is large in memory."""
        path = self.store.folder(self.batch.selection) / "record.json"
        if digests.of_file(path) != digest_of(self.batch.selection):
            raise RecordError("record does not match its digest: it was changed", where=path)
        rows = tempfile.TemporaryFile()  # noqa: SIM115 - `_Rows` closes it
        for choice in objects(path, "chosen"):
            rows.write(digests.canonical_json(choice) + b"\n")
        rows.seek(0)
        return rows

    def started(self, frame: Digest) -> list[Prediction]:
        """The boxes that labelers of a frame start from."""
        return [Prediction.model_validate_json(row) for row in self._boxes.of(frame)]

    def started_by_name(self, frame: Digest) -> dict[str, Prediction]:
        """The same by the names they are sent under."""
        return {region_id(one): one for one in self.started(frame)}


class _Digests(Sequence[Digest]):
    """Digests in 32 bytes each; as text they take 121."""

    def __init__(self, digests: Sequence[Digest]) -> None:
        self._bytes = bytes.fromhex("".join(digests))

    def __len__(self) -> int:
        return len(self._bytes) // 32

    @overload
    def __getitem__(self, place: int) -> Digest: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Digest, ...]: ...
    def __getitem__(self, place: int | slice) -> Digest | tuple[Digest, ...]:
        if isinstance(place, slice):
            return tuple(self[number] for number in range(len(self))[place])
        start = 32 * range(len(self))[place]
        return self._bytes[start : start + 32].hex()


def _names(digests: Sequence[Digest]) -> NDArray[Any]:
    """The first half of each digest, 128 bits, as numpy's byte strings: half the memory."""
    return np.frombuffer(bytes.fromhex("".join(digests)), dtype="S32").astype("S16")


class _Rows:
    """A file of JSON rows, those of one frame together; only where they begin is in memory.

    ``names`` are the sorted frames, by `_names`, whose rows may be asked for.
    """

    _NOWHERE = np.iinfo(np.int64).max

    def __init__(self, file: IO[bytes], key: bytes, names: NDArray[Any]) -> None:
        self._file, self._names = file, names
        self._starts = np.full(len(names), self._NOWHERE, np.int64)
        self._named = re.compile(b'"' + key + b'":"([0-9a-f]{64})"')
        position = 0
        while rows := list(islice(file, _ROWS_AT_ONCE)):
            lengths = np.array([len(row) for row in rows])
            starts = position + np.cumsum(lengths) - lengths
            position += int(lengths.sum())
            named = [(at, name) for at, row in enumerate(rows) if (name := self._frame(row))]
            at = np.array([number for number, _ in named], int)
            self._add(_names([name for _, name in named]), starts[at])

    def _frame(self, row: bytes) -> Digest | None:
        match = self._named.search(row)
        return match[1].decode() if match else None

    def _add(self, names: NDArray[Any], starts: NDArray[Any]) -> None:
        if not len(self._names):
            return
        places = np.minimum(np.searchsorted(self._names, names), len(self._names) - 1)
        wanted = self._names[places] == names
        np.minimum.at(self._starts, places[wanted], starts[wanted])

    def __del__(self) -> None:
        self._file.close()

    def of(self, frame: Digest) -> list[bytes]:
        [name] = _names([frame])
        place = int(np.searchsorted(self._names, name))
        if place == len(self._names) or self._names[place] != name:
            return []
        if self._starts[place] == self._NOWHERE:
            return []
        self._file.seek(int(self._starts[place]))
        mine = takewhile(lambda row: self._frame(row) == frame, self._file)
        return [row.rstrip(b"\n") for row in mine]
