"""Records at an fsspec URL, for machines that do not see one another's workspace.

The layout is the workspace's own: ``records/KIND/DIGEST/{record.json, payload/…, side/…,
COMPLETE}`` and ``media/frames/ab/DIGEST.jpg``. A record goes there after all that it names, and its
``COMPLETE`` after all of its files, so one that is there whole is there with everything below it.
What is there is never written again; what comes from there is checked against its digest.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from workbench import digest, workspace
from workbench.errors import ParameterError, RecordError, ServiceError, WorkbenchError
from workbench.records import dataset as datasets
from workbench.records.base import Ref, digest_of, kind_of, refs_in
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import DatasetVersion

VARIABLE = "WORKBENCH_ARTIFACTS"

_COMPLETE = "COMPLETE"
_RECORD = "record.json"
_STREAMS = 8  # an object store answers slowly and to many at once
_SIDE = re.compile(r"^[A-Za-z0-9_-]+\.json$")
_SECRET = re.compile(r"//[^/@]*@")
_HINT = "Look at the URL, the rights to it, and the FSSPEC_… settings of its protocol"


class Artifacts:
    """One folder of a file system or an object store. Safe to use from several threads.

    Raises:
        ParameterError: ``url`` is of no protocol that is installed and seen by two machines.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.shown = _SECRET.sub("//***@", url)
        try:
            # Listings are not kept: another machine writes there at the same time.
            self._files, self._root = fsspec.core.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True
            )
        except (ValueError, ImportError, OSError) as error:
            raise ParameterError(
                f"artifacts cannot be kept there: {_SECRET.sub('//***@', str(error))}",
                where=self.shown,
                hint="Give a URL such as file:///mnt/shared/artifacts or s3://bucket/folder, "
                "and install what fsspec needs for it (s3fs, gcsfs, adlfs)",
            ) from error
        names = self._files.protocol
        protocols = {names} if isinstance(names, str) else set(names)
        if "memory" in protocols:
            raise ParameterError(
                "artifacts in the memory of one process are seen by no other", where=self.shown
            )
        # A relative path would mean another folder on the worker.
        self.url = f"file://{self._root}" if "file" in protocols else url

    def push(self, store: Store, refs: Iterable[Ref]) -> int:
        """Send records there with all they name and the images of datasets' frames.

        What a record names but this store does not hold is left out; ``refs`` have to be held.

        Returns:
            How many records were sent; those that were there already do not count.

        Raises:
            RecordError: One of ``refs`` is missing here, or a record was changed.
            ServiceError: The URL cannot be written.
        """

        def below(ref: Ref) -> list[Ref]:
            store.load(ref)  # checks the record against its digest
            named = refs_in(json.loads((store.folder(ref) / _RECORD).read_bytes()))
            return [one for one in named if store.exists(one)]

        missing = _in_order(refs, self.holds, below)
        for ref in missing:
            self._push_images(store, ref)
            self._push_record(store, ref)
        return len(missing)

    def pull(self, store: Store, refs: Iterable[Ref]) -> int:
        """Fetch records from there with all they name and the images of datasets' frames.

        Returns:
            How many records were fetched; those that were here already do not count.

        Raises:
            RecordError: One of ``refs`` is not there whole, or was changed on the way.
            ServiceError: The URL cannot be read.
        """
        bodies: dict[Ref, bytes] = {}
        wanted = list(refs)

        def below(ref: Ref) -> list[Ref]:
            if not self.holds(ref):
                raise RecordError(
                    f"{ref} is not among the artifacts, or not whole",
                    where=self.shown,
                    hint="Another driver may have cleared them: run it again",
                )
            bodies[ref] = self.read(f"records/{ref}/{_RECORD}")
            if digest.of_bytes(bodies[ref]) != digest_of(ref):
                raise RecordError(f"{ref} was changed among the artifacts", where=self.shown)
            named = refs_in(json.loads(bodies[ref]))
            return [one for one in named if not store.exists(one) and self.holds(one)]

        missing = _in_order(wanted, store.exists, below)
        for ref in missing:
            self._pull_record(store, ref, bodies[ref])
        return len(missing)

    def holds(self, ref: Ref) -> bool:
        """Whether the record is there whole."""
        return self.exists(f"records/{ref}/{_COMPLETE}")

    def exists(self, name: str) -> bool:
        with self._translated("read", name):
            return bool(self._files.exists(self._at(name)))

    def read(self, name: str) -> bytes:
        with self._translated("read", name):
            return bytes(self._files.cat_file(self._at(name)))

    def fetch(self, name: str, target: Path) -> None:
        with self._translated("read", name):
            self._files.get_file(self._at(name), str(target))

    def send(self, source: Path, name: str) -> None:
        """Write a file; under its name it is whole from the first moment."""
        at = self._at(name)
        part = f"{at}.{secrets.token_hex(4)}.part"
        with self._translated("written", name):
            self._files.makedirs(at.rpartition("/")[0], exist_ok=True)
            try:
                self._files.put_file(str(source), part)
                self._files.mv(part, at)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(part)
                raise

    def send_once(self, source: Path, name: str) -> None:
        """As `send`, for a file that is named by its content and may be there already."""
        if not self.exists(name):
            self.send(source, name)

    def remove(self, name: str) -> None:
        with self._translated("removed", name):
            self._files.rm_file(self._at(name))

    def _push_record(self, store: Store, ref: Ref) -> None:
        for name in store.payload_names(ref):
            path = store.payload(ref, name)  # checks the file against its digest
            self.send_once(path, f"records/{ref}/payload/{name}")
        folder = store.folder(ref)
        for path in sorted((folder / "side").glob("*.json")):
            self.send_once(path, f"records/{ref}/side/{path.name}")
        for name in (_RECORD, _COMPLETE):
            self.send_once(folder / name, f"records/{ref}/{name}")

    def _pull_record(self, store: Store, ref: Ref, content: bytes) -> None:
        store.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store.root, prefix=".fetching-") as temporary:
            payload = {}
            for number, name in enumerate(json.loads(content)["payload"]):
                payload[name] = Path(temporary) / str(number)
                self.fetch(f"records/{ref}/payload/{name}", payload[name])
            _check(ref, content, payload)  # before any of it is read
            if kind_of(ref) == DatasetVersion.KIND:
                self._pull_images(store, payload["frames.jsonl"])
            store.restore(ref, content, payload, side=self._side(ref))

    def _side(self, ref: Ref) -> dict[str, Any]:
        at = f"records/{ref}/side"
        if not self.exists(at):
            return {}
        with self._translated("read", at):
            names = [str(path).rpartition("/")[2] for path in self._files.ls(self._at(at), False)]
            return {
                name.removesuffix(".json"): json.loads(self.read(f"{at}/{name}"))
                for name in sorted(names)
                if _SIDE.match(name)
            }

    def _push_images(self, store: Store, ref: Ref) -> None:
        if kind_of(ref) != DatasetVersion.KIND:
            return

        def one(frame: Frame) -> None:
            path = datasets.media_path(store.workspace, frame)
            name = _media_name(store, frame)
            if self.exists(name):
                return
            if not path.exists() or digest.of_file(path) != frame.id:
                raise RecordError(
                    "an image of the dataset is missing or was changed",
                    where=path,
                    hint="Ingest its drive again: frames are named by content",
                )
            self.send(path, name)

        _at_once(one, datasets.read_lines(store.payload(ref, "frames.jsonl"), Frame))

    def _pull_images(self, store: Store, frames: Path) -> None:
        def one(frame: Frame) -> None:
            path = datasets.media_path(store.workspace, frame)
            if path.exists():
                return
            with workspace.replacing(path) as temporary:
                self.fetch(_media_name(store, frame), temporary)
                if digest.of_file(temporary) != frame.id:
                    raise RecordError(
                        f"image {frame.id} was changed among the artifacts", where=self.shown
                    )

        _at_once(one, datasets.read_lines(frames, Frame))

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _translated(self, verb: str, name: str) -> Iterator[None]:
        """Every protocol has its own errors; of all we say what, where and what to do."""
        try:
            yield
        except WorkbenchError:
            raise
        except Exception as error:
            told = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ServiceError(
                f"artifacts cannot be {verb}: {_SECRET.sub('//***@', told)}",
                where=f"{self.shown.rstrip('/')}/{name}",
                hint=_HINT,
            ) from error


def _in_order(
    refs: Iterable[Ref], known: Callable[[Ref], bool], below: Callable[[Ref], list[Ref]]
) -> list[Ref]:
    """Records that are not ``known``, each after all that it names; no depth is too deep."""
    done: dict[Ref, None] = {}
    seen: set[Ref] = set()
    stack = [(ref, False) for ref in reversed(list(refs))]
    while stack:
        ref, ready = stack.pop()
        if ready:
            done[ref] = None
        elif ref not in seen:
            seen.add(ref)
            if not known(ref):
                stack.append((ref, True))
                stack.extend((one, False) for one in reversed(below(ref)))
    return list(done)


def _at_once(work: Callable[[Frame], None], frames: Iterable[Frame]) -> None:
    with ThreadPoolExecutor(_STREAMS) as pool:
        try:
            for done in [pool.submit(work, frame) for frame in frames]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check(ref: Ref, content: bytes, payload: dict[str, Path]) -> None:
    for name, listed in json.loads(content)["payload"].items():
        if digest.of_file(payload[name]) != listed["sha256"]:
            raise RecordError(f"payload file {name!r} was changed among the artifacts", where=ref)


def _media_name(store: Store, frame: Frame) -> str:
    path = datasets.media_path(store.workspace, frame)
    return path.relative_to(store.workspace.root).as_posix()
