"""Records and step folders at an fsspec URL, for machines without a shared workspace.

The layout is that of a workspace:
``records/KIND/DIGEST/{record.json, payload/…, side/…, COMPLETE}`` and
``media/frames/ab/DIGEST.jpg``. A record is written after all records that it refers to, and
``COMPLETE`` after all of its files, so everything below a complete record is complete too. Nothing
is written twice; what is fetched is checked against its digest.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import ParameterError, RecordError, ServiceError, WorkbenchError
from workbench.core.types import Json
from workbench.core.workspace import atomic_replace
from workbench.records import dataset
from workbench.records.base import Ref, digest_of, kind_of, refs_in
from workbench.records.frames import Frame
from workbench.records.store import Store
from workbench.records.types import DatasetVersion

__all__ = ()

ARTIFACTS_VARIABLE = "WORKBENCH_ARTIFACTS"

_COMPLETE_FILE = "COMPLETE"
_RECORD_FILE = "record.json"
_MAX_STREAMS = 8  # object stores have a high latency and serve many requests at once
_SIDE_FILE = re.compile(r"^[A-Za-z0-9_-]+\.json\Z")
_CREDENTIALS = re.compile(r"//[^/@]*@")
_ACCESS_HINT = "Check the URL, your access rights and the FSSPEC_… settings of its protocol"
_OMITTED_FILES = "left-out.txt"

_MAX_FOLDER_BYTES = 256 * 2**20
_SPEC_NAME = "spec.json"  # may contain keys of servers; the driver has its own


class ArtifactStore:
    """A folder of a file system or an object store. Thread-safe.

    Args:
        url: Of any protocol that fsspec knows and two machines can share.

    Raises:
        ParameterError: The protocol is unknown, not installed, or local to one process.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.display_url = _CREDENTIALS.sub("//***@", url)
        try:
            # No cache of listings: another machine writes there at the same time.
            self._files, self._root = fsspec.core.url_to_fs(
                url, use_listings_cache=False, skip_instance_cache=True
            )
        except (ValueError, ImportError, OSError) as error:
            raise ParameterError(
                f"invalid artifacts URL: {_CREDENTIALS.sub('//***@', str(error))}",
                where=self.display_url,
                hint="Pass a URL such as file:///mnt/shared/artifacts or s3://bucket/folder, "
                "and install what fsspec needs for it (s3fs, gcsfs, adlfs)",
            ) from error
        names = self._files.protocol
        protocols = {names} if isinstance(names, str) else set(names)
        if "memory" in protocols:
            raise ParameterError(
                "artifacts cannot be in memory: other machines do not see them",
                where=self.display_url,
            )
        # A relative path would be another folder on the worker.
        self.url = f"file://{self._root}" if "file" in protocols else url

    def push(self, store: Store, refs: Iterable[Ref]) -> int:
        """Send records with all that they refer to, and the images of datasets.

        Records that others refer to but that are not in the store are skipped.

        Args:
            store: Where the records are.
            refs: Records to send; these must be in the store.

        Returns:
            Number of records sent, without those already present.

        Raises:
            RecordError: One of ``refs`` is missing, or a record was modified.
            ServiceError: The URL cannot be written.
        """

        def below(ref: Ref) -> list[Ref]:
            store.load(ref)  # verifies the digest
            referenced = refs_in(json.loads((store.folder(ref) / _RECORD_FILE).read_bytes()))
            return [one for one in referenced if store.exists(one)]

        missing = _dependency_order(refs, self.holds, below)
        for ref in missing:
            self._push_images(store, ref)
            self._push_record(store, ref)
        return len(missing)

    def pull(self, store: Store, refs: Iterable[Ref]) -> int:
        """Fetch records with all that they refer to, and the images of datasets.

        Args:
            store: Where to write them.
            refs: Records to fetch.

        Returns:
            Number of records fetched, without those already in the store.

        Raises:
            RecordError: One of ``refs`` is missing or incomplete, or was modified.
            ServiceError: The URL cannot be read.
        """
        bodies: dict[Ref, bytes] = {}
        wanted = list(refs)

        def below(ref: Ref) -> list[Ref]:
            if not self.holds(ref):
                raise RecordError(
                    f"{ref} is missing or incomplete among the artifacts",
                    where=self.display_url,
                    hint="Another driver may have deleted it: run the pipeline again",
                )
            bodies[ref] = self.read(f"records/{ref}/{_RECORD_FILE}")
            if digest.of_bytes(bodies[ref]) != digest_of(ref):
                raise RecordError(f"{ref} was modified among the artifacts", where=self.display_url)
            referenced = refs_in(json.loads(bodies[ref]))
            return [one for one in referenced if not store.exists(one) and self.holds(one)]

        missing = _dependency_order(wanted, store.exists, below)
        for ref in missing:
            self._pull_record(store, ref, bodies[ref])
        return len(missing)

    def holds(self, ref: Ref) -> bool:
        """Whether the record is complete there."""
        return self.exists(f"records/{ref}/{_COMPLETE_FILE}")

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        with self._translated("read", name):
            return bool(self._files.exists(self._at(name)))

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self._translated("read", name):
            return bytes(self._files.cat_file(self._at(name)))

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to ``target``."""
        with self._translated("read", name):
            self._files.get_file(self._at(name), str(target))

    def send(self, source: Path, name: str) -> None:
        """Write a file, complete as soon as it has its name."""
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
        """As `send`, for a file named by its content; does nothing if it exists."""
        if not self.exists(name):
            self.send(source, name)

    def remove(self, name: str) -> None:
        """Delete a file."""
        with self._translated("removed", name):
            self._files.rm_file(self._at(name))

    def _push_record(self, store: Store, ref: Ref) -> None:
        for name in store.payload_names(ref):
            path = store.payload(ref, name)  # verifies the digest
            self.send_once(path, f"records/{ref}/payload/{name}")
        folder = store.folder(ref)
        for path in sorted((folder / "side").glob("*.json")):
            self.send_once(path, f"records/{ref}/side/{path.name}")
        for name in (_RECORD_FILE, _COMPLETE_FILE):
            self.send_once(folder / name, f"records/{ref}/{name}")

    def _pull_record(self, store: Store, ref: Ref, content: bytes) -> None:
        store.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store.root, prefix=".fetching-") as temporary:
            payload = {}
            for number, name in enumerate(json.loads(content)["payload"]):
                payload[name] = Path(temporary) / str(number)
                self.fetch(f"records/{ref}/payload/{name}", payload[name])
            _check_payload(ref, content, payload)  # before any of it is read
            if kind_of(ref) == DatasetVersion.KIND:
                self._pull_images(store, payload["frames.jsonl"])
            store.restore(ref, content, payload, side=self._side(ref))

    def _side(self, ref: Ref) -> Json:
        at = f"records/{ref}/side"
        if not self.exists(at):
            return {}
        with self._translated("read", at):
            names = [str(path).rpartition("/")[2] for path in self._files.ls(self._at(at), False)]
            return {
                name.removesuffix(".json"): json.loads(self.read(f"{at}/{name}"))
                for name in sorted(names)
                if _SIDE_FILE.match(name)
            }

    def _push_images(self, store: Store, ref: Ref) -> None:
        if kind_of(ref) != DatasetVersion.KIND:
            return

        def send_image(frame: Frame) -> None:
            path = dataset.media_path(store.workspace, frame)
            name = _media_name(store, frame)
            if self.exists(name):
                return
            if not path.exists() or digest.of_file(path) != frame.id:
                raise RecordError(
                    "an image of the dataset is missing or was modified",
                    where=path,
                    hint="Ingest its drive again",
                )
            self.send(path, name)

        _for_each_frame(
            send_image, dataset.read_json_lines(store.payload(ref, "frames.jsonl"), Frame)
        )

    def _pull_images(self, store: Store, frames: Path) -> None:
        def fetch_image(frame: Frame) -> None:
            path = dataset.media_path(store.workspace, frame)
            if path.is_file() and digest.of_file(path) == frame.id:
                return
            with atomic_replace(path) as temporary:
                self.fetch(_media_name(store, frame), temporary)
                if digest.of_file(temporary) != frame.id:
                    raise RecordError(
                        f"image {frame.id} was modified among the artifacts", where=self.display_url
                    )

        _for_each_frame(fetch_image, dataset.read_json_lines(frames, Frame))

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextlib.contextmanager
    def _translated(self, verb: str, name: str) -> Iterator[None]:
        """Translate the errors of any protocol."""
        try:
            yield
        except WorkbenchError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ServiceError(
                f"artifacts cannot be {verb}: {_CREDENTIALS.sub('//***@', reason)}",
                where=f"{self.display_url.rstrip('/')}/{name}",
                hint=_ACCESS_HINT,
            ) from error


def _dependency_order(
    refs: Iterable[Ref], known: Callable[[Ref], bool], below: Callable[[Ref], list[Ref]]
) -> list[Ref]:
    """Records that are not ``known``, each after all that it refers to. Not recursive."""
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


def _for_each_frame(work: Callable[[Frame], None], frames: Iterable[Frame]) -> None:
    with ThreadPoolExecutor(_MAX_STREAMS) as pool:
        try:
            for done in [pool.submit(work, frame) for frame in frames]:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _check_payload(ref: Ref, content: bytes, payload: dict[str, Path]) -> None:
    for name, listed in json.loads(content)["payload"].items():
        if digest.of_file(payload[name]) != listed["sha256"]:
            raise RecordError(f"payload file {name!r} was modified among the artifacts", where=ref)


def _media_name(store: Store, frame: Frame) -> str:
    path = dataset.media_path(store.workspace, frame)
    return path.relative_to(store.workspace.root).as_posix()


def pack_folder(folder: Path, archive: Path, *, max_bytes: int = _MAX_FOLDER_BYTES) -> None:
    """Write the regular files below a step's folder into a tar archive.

    A notebook may write any amount of data there. The largest files are left out first, and
    ``left-out.txt`` lists them.

    Args:
        folder: The step's folder.
        archive: The file to write.
        max_bytes: Limit of all files together, before compression.
    """
    (folder / _OMITTED_FILES).unlink(missing_ok=True)
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path != folder / _SPEC_NAME
    ]
    included, omitted, room = [], [], max_bytes
    for path in sorted(files, key=lambda path: (path.stat().st_size, path)):
        size = path.stat().st_size
        room -= size
        if room < 0:
            omitted.append(f"{path.relative_to(folder)} ({size} bytes)\n")
        else:
            included.append(path)
    if omitted:
        (folder / _OMITTED_FILES).write_text("".join(omitted), encoding="utf-8")
        included.append(folder / _OMITTED_FILES)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path in included:
            tar.add(path, str(path.relative_to(folder)), recursive=False)


def unpack_folder(archive: Path, folder: Path, *, max_bytes: int = _MAX_FOLDER_BYTES) -> None:
    """Extract an archive of `pack_folder`; nothing is written outside ``folder``.

    Args:
        archive: The file to read.
        folder: Where to write.
        max_bytes: Limit of all files together.

    Raises:
        RecordError: The archive is invalid, too large, or contains links or devices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = tar.getmembers()
            irregular = next((one.name for one in members if not one.isfile()), None)
            if irregular:
                raise RecordError(f"{irregular} is not a regular file")
            # The list of omitted files is not part of the limit.
            if sum(one.size for one in members) > max_bytes + 2**20:
                raise RecordError(f"more than {max_bytes} bytes")
            tar.extractall(folder, filter="data")
    except (RecordError, tarfile.TarError, OSError, EOFError) as error:
        raise RecordError(f"a worker's step folder cannot be unpacked: {error}") from error
