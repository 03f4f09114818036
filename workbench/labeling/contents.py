"""What a batch holds, read frame by frame.

Of each frame only its name and where its rows lie are in memory: some 300 bytes, whatever is
predicted on it and however many reasons it was chosen for.
"""

from __future__ import annotations

import re
import tempfile
from array import array
from typing import IO

import numpy as np

from workbench import digest as digests
from workbench.errors import RecordError
from workbench.labeling.answers import region_id
from workbench.labeling.streams import objects
from workbench.records.base import Digest, Ref, digest_of
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import Choice, DatasetVersion, LabelBatch, Prediction


class Contents:
    """A batch with its frames and the boxes that labelers start from."""

    def __init__(self, store: Store, ref: Ref) -> None:
        self.store = store
        self.ref = ref
        self.batch = store.get(ref, LabelBatch)
        self.dataset_name = store.get(self.batch.dataset, DatasetVersion).name
        wanted = set(self.batch.frames)
        frames = store.payload(self.batch.dataset, "frames.jsonl").open("rb")
        self._frames = _Rows(frames, b"id", wanted)
        self._boxes = _Rows(store.payload(ref, "predictions.jsonl").open("rb"), b"frame", wanted)
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
            self._choices = _Rows(self._chosen(), b"frame", set(self.batch.frames))
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


class _Rows:
    """A file of JSON rows, those of one frame together; only where they lie is kept in memory."""

    def __init__(self, file: IO[bytes], key: bytes, wanted: set[Digest]) -> None:
        self._file = file
        names, starts, lengths = bytearray(), array("q"), array("q")
        named = re.compile(b'"' + key + b'":"([0-9a-f]{64})"')
        position, latest = 0, ""
        for row in file:
            match = named.search(row)
            digest = match[1].decode() if match else ""
            if digest in wanted:
                if digest != latest:
                    names += bytes.fromhex(digest)
                    starts.append(position)
                    lengths.append(0)
                lengths[-1] += len(row)
            position, latest = position + len(row), digest
        found = np.frombuffer(bytes(names), dtype="S32")
        order = np.argsort(found)
        self._names = found[order]
        self._spans = np.array([starts, lengths], dtype=np.int64)[:, order]

    def __del__(self) -> None:
        self._file.close()

    def of(self, frame: Digest) -> list[bytes]:
        name = bytes.fromhex(frame).rstrip(b"\0")  # as numpy gives such names back
        place = int(np.searchsorted(self._names, name))
        if place == len(self._names) or self._names[place] != name:
            return []
        start, length = self._spans[:, place].tolist()
        self._file.seek(start)
        return self._file.read(length).splitlines()
