"""Whether the files of a workspace still have the bytes that records name them by.

Whoever decodes a frame reads its bytes with `read_media`, which digests what it returns: pixels and
check cannot differ. The digest costs about a hundredth of decoding. Whoever only hands paths on
(a skipped step, FiftyOne, Label Studio) calls `damaged_files` or `damaged_media`. They digest a
file once and note its size, times and inode; the file is digested again when one of them differs.
The time of the last status change is among them, which, unlike a modification time, no program
can set.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import DataError, RecordError
from workbench.core.parsing import read_regular
from workbench.core.text import counted
from workbench.core.workspace import Workspace, write_atomic
from workbench.records.base import Digest, Ref, digest_of, kind_of
from workbench.records.dataset import media_path, read_json_lines
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import DatasetVersion, Withdrawal

__all__ = ["check_media", "damaged_files", "damaged_media", "read_media"]

REPAIR_HINT = (
    "Run `workbench doctor --records`: it restores what it can from the source, and names the rest"
)
_MAX_NAMED = 8
_NOTES_FILE = "verified.jsonl"
_MIN_LINES_TO_COMPACT = 1000
_CLOCK_RESOLUTION_NS = 20_000_000

_Note = tuple[str, int, int, int, int]  # digest, size, modified ns, status changed ns, inode


def read_media(path: Path, frame: Digest) -> bytes:
    """The bytes of a frame's image, which are those that were ingested.

    Args:
        path: The image in the media folder.
        frame: Id of the frame.

    Raises:
        DataError: The image is missing or has other bytes.
    """
    name = f"the image of frame {digest.shorten(frame)}"
    try:
        data = read_regular(path)
    except ValueError as error:
        raise DataError(f"{name} cannot be read: {error}", where=path, hint=REPAIR_HINT) from error
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        problem = "is missing" if gone else f"cannot be read: {error.strerror or error}"
        raise DataError(f"{name} {problem}", where=path, hint=REPAIR_HINT) from error
    if digest.of_bytes(data) != frame:
        problem = f"{name} is not the one that was ingested"
        raise DataError(problem, where=path, hint=REPAIR_HINT)
    return data


def check_media(workspace: Workspace, frames: Sequence[Frame]) -> None:
    """Check the images of ``frames``, see `damaged_media`.

    Raises:
        DataError: Images are missing or have other bytes than were ingested; it names the frames.
    """
    damaged = damaged_media(workspace, frames)
    if damaged:
        raise DataError(
            f"{counted(len(damaged), 'image')} of {len(frames):,} missing or not as ingested: "
            f"{_name_frames(damaged)}",
            where=workspace.media,
            hint=REPAIR_HINT,
        )


def damaged_media(
    workspace: Workspace, frames: Iterable[Frame], *, full: bool = False
) -> list[Frame]:
    """The frames whose image is missing or has other bytes than were ingested.

    Args:
        workspace: Holds the images.
        frames: Frames to check.
        full: Digest every file, also those that were found right before and have not changed.
    """
    notes = _notes_of(workspace.root)
    damaged = [
        frame
        for frame in frames
        if not notes.has_digest(media_path(workspace, frame), frame.id, full=full)
    ]
    notes.save()
    return damaged


def damaged_files(store: Store, ref: Ref, *, full: bool = False) -> list[str]:
    """What is wrong with the files of a record, and with the images of a dataset version.

    Args:
        store: With the record.
        ref: The record.
        full: As for `damaged_media`.

    Returns:
        A sentence for each problem; empty for a whole record.
    """
    try:
        names = store.payload_digests(ref)
    except RecordError as error:
        return [error.what]
    notes = _notes_of(store.workspace.root)
    folder = store.folder(ref) / "payload"
    damaged = [
        f"payload file {name!r} is missing or was changed"
        for name, expected in sorted(names.items())
        if not notes.has_digest(folder / name, expected, full=full)
    ]
    notes.save()
    if not damaged and kind_of(ref) == DatasetVersion.KIND:
        frames = damaged_media(store.workspace, dataset_frames(store, ref), full=full)
        erased = erased_frames(store, frames)
        frames = [frame for frame in frames if frame.id not in erased]
        if frames:
            images = counted(len(frames), "image")
            damaged.append(f"{images} missing or not as ingested: {_name_frames(frames)}")
    return damaged


def is_unchanged(workspace: Workspace, path: Path, expected: str) -> bool:
    """Whether a file of the workspace has this digest; digested again when its status differs."""
    notes = _notes_of(workspace.root)
    unchanged = notes.has_digest(path, expected, full=False)
    notes.save()
    return unchanged


def erased_frames(store: Store, damaged: Iterable[Frame]) -> set[Digest]:
    """Frames that were withdrawn and whose images are gone: they were erased on purpose."""
    gone = {frame.id for frame in damaged if not media_path(store.workspace, frame).exists()}
    if not gone:
        return set()
    withdrawals = (store.get(ref, Withdrawal) for ref in store.refs(Withdrawal.KIND))
    return gone & {frame for one in withdrawals for frame in one.frames}


def dataset_frames(store: Store, ref: Ref) -> tuple[Frame, ...]:
    """All frames of a dataset version; its payload is read once per process."""
    return _frames_of(str(store.folder(ref) / "payload" / "frames.jsonl"), digest_of(ref))


@functools.lru_cache(maxsize=8)
def _frames_of(path: str, _ref: str) -> tuple[Frame, ...]:
    return read_json_lines(Path(path), Frame)


def _name_frames(frames: Sequence[Frame]) -> str:
    named = [f"{frame.id[:12]} ({frame.drive} #{frame.index})" for frame in frames[:_MAX_NAMED]]
    more = f" and {len(frames) - _MAX_NAMED} more" if len(frames) > _MAX_NAMED else ""
    return ", ".join(named) + more


class _VerifiedFiles:
    """What files looked like when their digest was last found right.

    A line of JSON a file, later ones win. A lost or damaged line only costs a digest. Whoever can
    write this file can write the records, too: what decides about a release never relies on it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file = Workspace(root).index / _NOTES_FILE
        self._lock = threading.Lock()
        self._new: list[str] = []
        self._notes: dict[str, _Note] = {}
        self._read()

    def has_digest(self, path: Path, expected: str, *, full: bool) -> bool:
        """Whether the file has this digest; read only if its status differs from the note's."""
        try:
            name = os.path.relpath(path, self._root)
            status = path.stat()
        except OSError:
            return False
        note = _note(expected, status)
        if not full and self._notes.get(name) == note:
            return True
        if not digest.file_matches(path, expected):
            return False
        # Written to while it was read, or so recently that a next change could have the same time:
        # not noted.
        recent = time.time_ns() - status.st_ctime_ns < _CLOCK_RESOLUTION_NS
        try:
            if recent or _note(expected, path.stat()) != note:
                return True
        except OSError:
            return False
        with self._lock:
            self._notes[name] = note
            self._new.append(json.dumps([name, *note]) + "\n")
        return True

    def save(self) -> None:
        """Append what is new. Where nothing can be written, files are digested again next time."""
        with self._lock:
            lines, self._new = self._new, []
        if not lines:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write("".join(lines))
        except OSError:
            return

    def _read(self) -> None:
        try:
            lines = self._file.read_bytes().splitlines()
        except OSError:
            return
        for line in lines:
            try:
                name, known, size, modified, changed, inode = json.loads(line)
                self._notes[name] = (known, size, modified, changed, inode)
            except (ValueError, TypeError, RecursionError):
                continue
        if len(lines) > max(_MIN_LINES_TO_COMPACT, 2 * len(self._notes)):
            rows = (json.dumps([name, *note]) + "\n" for name, note in self._notes.items())
            try:
                write_atomic(self._file, "".join(rows).encode())
            except OSError:
                return


def _note(known: str, status: os.stat_result) -> _Note:
    return (known, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@functools.lru_cache(maxsize=8)
def _notes_of(root: Path) -> _VerifiedFiles:
    return _VerifiedFiles(root)
