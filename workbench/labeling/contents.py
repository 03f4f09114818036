"""What a batch holds, read frame by frame: memory grows with its index, not with its boxes."""

from __future__ import annotations

import re
from pathlib import Path

from workbench.errors import RecordError
from workbench.labeling.answers import region_id
from workbench.records.base import Digest, Ref
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, LabelBatch, Prediction

Span = tuple[int, int]
"""Where a frame's rows lie in a file: first byte and length."""


class Contents:
    """A batch with its frames and the boxes that labelers start from."""

    def __init__(self, store: Store, ref: Ref) -> None:
        self.store = store
        self.ref = ref
        self.batch = store.get(ref, LabelBatch)
        self.dataset_name = store.get(self.batch.dataset, DatasetVersion).name
        wanted = set(self.batch.frames)
        self._frames = _Rows(store.payload(self.batch.dataset, "frames.jsonl"), b"id", wanted)
        self._boxes = _Rows(store.payload(ref, "predictions.jsonl"), b"frame", wanted)

    def frame(self, digest: Digest) -> Frame:
        """A frame of the batch.

        Raises:
            RecordError: The batch's dataset has no such frame.
        """
        rows = self._frames.of(digest)
        if not rows:
            raise RecordError(f"no frame {digest[:12]} in the batch's dataset", where=self.ref)
        return Frame.model_validate_json(rows[0])

    def started(self, frame: Digest) -> list[Prediction]:
        """The boxes that labelers of a frame start from."""
        return [Prediction.model_validate_json(row) for row in self._boxes.of(frame)]

    def started_by_name(self, frame: Digest) -> dict[str, Prediction]:
        """The same by the names they are sent under."""
        return {region_id(one): one for one in self.started(frame)}


class _Rows:
    """A file of JSON rows, those of one frame together; only where they lie is kept in memory."""

    def __init__(self, path: Path, key: bytes, wanted: set[Digest]) -> None:
        self._file = path.open("rb")
        self._spans: dict[Digest, Span] = {}
        named = re.compile(b'"' + key + b'":"([0-9a-f]{64})"')
        position = 0
        for row in self._file:
            match = named.search(row)
            digest = match[1].decode() if match else ""
            if digest in wanted:
                start, length = self._spans.get(digest, (position, 0))
                self._spans[digest] = (start, length + len(row))
            position += len(row)

    def __del__(self) -> None:
        self._file.close()

    def of(self, frame: Digest) -> list[bytes]:
        if frame not in self._spans:
            return []
        start, length = self._spans[frame]
        self._file.seek(start)
        return self._file.read(length).splitlines()
