"""Full verification on the vehicle, in the shape of Uptane: nothing is trusted but two roots.

The director's and the image repository's metadata are each verified by python-tuf, at the attested
time and not at that of the vehicle's own clock. Then both are compared, and what python-tuf hands
through unchecked (hardware, ECU, release counter) is enforced here.
"""

from __future__ import annotations

import http.client
import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from securesystemslib.signer import Key
from tuf.api import exceptions
from tuf.api.metadata import TargetFile, Targets
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from workbench.core.parsing import parse_json
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.fleet.components import Component, Target, VehicleProfile
from workbench.fleet.metadata import open_message
from workbench.fleet.reasons import Reason, UpdateRefused

__all__ = ()

# A vehicle may sleep through many rotations: python-tuf's 256 would leave it behind for good.
_MAX_ROOT_ROTATIONS = 4096
_MAX_ANSWER_BYTES = 65_536
_CHUNK = 65_536


@short_repr
@dataclass(frozen=True)
class Trust:
    """What the factory puts into a vehicle: root metadata of both repositories, the time's key."""

    director_root: bytes
    image_root: bytes
    time_key: Key


@dataclass(frozen=True)
class AttestedTime:
    """A time, the nonce that it was signed with, and the signed message."""

    now: datetime
    nonce: str
    token: bytes


def read_time(token: bytes, key: Key, nonce: str) -> datetime:
    """The time in a message of the time server.

    Raises:
        UpdateRefused: It is not signed with this key, or is for another nonce.
    """
    body = open_message(token, key)
    if body.get("nonce") != nonce:
        raise UpdateRefused(Reason.TIME_INVALID, "time is for another nonce: replayed")
    try:
        now = datetime.fromisoformat(str(body["time"]))
        if now.tzinfo is None:
            raise ValueError("no time zone")
    except (KeyError, ValueError) as error:
        raise UpdateRefused(Reason.TIME_INVALID, f"no time in the answer: {error}") from error
    return now


class HttpFetcher(FetcherInterface):
    """Downloads over HTTP that give up on servers which hardly send anything.

    Args:
        timeout_s: Longest silence.
        min_rate: Bytes a second that a download has to reach on average, after ``grace_s``.
    """

    def __init__(
        self, *, timeout_s: float = 10.0, min_rate: float = 1000.0, grace_s: float = 5.0
    ) -> None:
        self._timeout, self._min_rate, self._grace = timeout_s, min_rate, grace_s

    def post(self, url: str, body: bytes) -> bytes:
        """Send a message; the answer has a bounded size.

        Raises:
            DownloadError: The server cannot be reached, or its answer is too long or too slow.
            DownloadHTTPError: It answered with an error.
        """
        chunks, size = [], 0
        for chunk in self._request("POST", url, body):
            size += len(chunk)
            if size > _MAX_ANSWER_BYTES:
                raise exceptions.DownloadLengthMismatchError(f"more than {_MAX_ANSWER_BYTES} bytes")
            chunks.append(chunk)
        return b"".join(chunks)

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._request("GET", url, None)

    def _request(self, method: str, url: str, body: bytes | None) -> Iterator[bytes]:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=self._timeout
        )
        try:
            start = time.monotonic()
            connection.request(method, parts.path, body)
            response = connection.getresponse()
            if response.status >= 400:
                text = response.read(1000).decode(errors="replace")
                raise exceptions.DownloadHTTPError(text, response.status)
            received = 0
            while chunk := response.read1(_CHUNK):
                received += len(chunk)
                spent = time.monotonic() - start
                if spent > self._grace and received < self._min_rate * spent:
                    raise exceptions.SlowRetrievalError(f"{received} bytes in {spent:.0f} s")
                yield chunk
        except TimeoutError as error:
            raise exceptions.SlowRetrievalError(f"nothing for {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise exceptions.DownloadError(f"{url}: {error}") from error
        finally:
            connection.close()


class UpdateClient:
    """Asks the director what to install and verifies the answer against the image repository.

    Args:
        folder: Where verified metadata is kept.
        url: Address of the server.
        vehicle: What this vehicle is.
        trust: From the factory.
    """

    def __init__(
        self,
        folder: Path,
        url: str,
        vehicle: VehicleProfile,
        trust: Trust,
        fetcher: HttpFetcher | None = None,
    ) -> None:
        self._folder, self._url, self._vehicle, self._trust = folder, url, vehicle, trust
        self.fetcher = fetcher or HttpFetcher()
        for name in ("director", "image"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def attest_time(self, last: datetime | None) -> AttestedTime:
        """The time from the time server, which signs our nonce with it.

        Args:
            last: The newest attested time so far.

        Raises:
            UpdateRefused: The answer is not for our nonce, not signed with the time server's key,
                or earlier than ``last``.
        """
        nonce = secrets.token_hex(16)
        token = self.post("time", json.dumps({"nonce": nonce}).encode())
        now = read_time(token, self._trust.time_key, nonce)
        if last is not None and now < last:
            what = f"attested time {now.isoformat()} is before {last.isoformat()}"
            raise UpdateRefused(Reason.TIME_ROLLED_BACK, what)
        return AttestedTime(now, nonce, token)

    def post(self, path: str, body: bytes) -> bytes:
        """Send a message to the server.

        Raises:
            UpdateRefused: The server refused it or cannot be reached.
        """
        try:
            return self.fetcher.post(f"{self._url}/{path}", body)
        except exceptions.DownloadError as error:
            raise _translate(error, path) from error

    def check(self, now: datetime, installed: Mapping[str, Target]) -> tuple[Target, ...]:
        """The targets that this vehicle shall have, verified; one for each ECU at most.

        Args:
            now: Attested time: decides what is expired.
            installed: Target on each kind of ECU.

        Raises:
            UpdateRefused: With the reason.
        """
        director = self._updater("director", self._trust.director_root)
        image = self._updater("image", self._trust.image_root)
        try:
            for updater in (director, image):
                # python-tuf asks the operating system; a clock that was set back must not help.
                updater._trusted_set.reference_time = now
                updater.refresh()
            self._image = image
            assigned = director._trusted_set.targets
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise _translate(error, self._vehicle.id) from error
        return self._compare(assigned, image, installed)

    def download(self, target: Target, file: Path) -> None:
        """Download a target of the last `check` and verify its hash.

        Raises:
            UpdateRefused: The file is not the one that was signed, or the download failed.
            OSError: It cannot be written.
        """
        entry = TargetFile(target.length, {"sha256": target.sha256}, target.path)
        try:
            self._image.download_target(entry, str(file), f"{self._url}/image/targets")
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise _translate(error, target.path) from error

    def _updater(self, name: str, root: bytes) -> Updater:
        path = "image/metadata" if name == "image" else f"director/{self._vehicle.id}"
        return Updater(
            metadata_dir=str(self._folder / name),
            metadata_base_url=f"{self._url}/{path}",
            fetcher=self.fetcher,
            config=UpdaterConfig(max_root_rotations=_MAX_ROOT_ROTATIONS),
            bootstrap=root,
        )

    def _compare(
        self, assigned: Targets, image: Updater, installed: Mapping[str, Target]
    ) -> tuple[Target, ...]:
        found: dict[str, Target] = {}
        for path, entry in assigned.targets.items():
            ecu = self._ecu(entry, path)
            if ecu in found:
                raise UpdateRefused(Reason.ECU_TWICE, f"two files for {ecu}", where=path)
            signed = image.get_targetinfo(path)
            if signed is None:
                what = "the director names a file that the image repository does not have"
                raise UpdateRefused(Reason.NOT_IN_IMAGE_REPOSITORY, what, where=path)
            target = self._target(entry, signed)
            self._check_counter(target, installed.get(ecu))
            found[ecu] = target
        return tuple(found.values())

    def _ecu(self, entry: TargetFile, path: str) -> str:
        """The kind of ECU that an entry of the director is for."""
        custom: Json = entry.custom or {}
        for ecu, profile in self._vehicle.ecus.items():
            if custom.get("ecu_identifier") == self._vehicle.ecu_id(ecu):
                if custom.get("hardware_id") != profile.hardware:
                    what = f"director takes {ecu} for {custom.get('hardware_id')}"
                    raise UpdateRefused(Reason.WRONG_HARDWARE, what, where=path)
                return ecu
        what = f"no ECU {custom.get('ecu_identifier')!r} in {self._vehicle.id}"
        raise UpdateRefused(Reason.UNKNOWN_ECU, what, where=path)

    def _target(self, assigned: TargetFile, signed: TargetFile) -> Target:
        """The target if both repositories mean the same file, and our hardware may run it."""
        path, custom = signed.path, assigned.custom
        try:
            component = Component.model_validate(signed.custom)
        except ValueError as error:
            what = "what the image repository signed about this file is not understood"
            raise UpdateRefused(Reason.SCHEMA_UNSUPPORTED, what, where=path) from error
        if (
            assigned.hashes != signed.hashes
            or assigned.length != signed.length
            or custom.get("counter") != component.counter
            or custom["ecu_identifier"] != self._vehicle.ecu_id(component.ecu)
        ):
            what = "director and image repository sign different things about this file"
            raise UpdateRefused(Reason.REPOSITORIES_DISAGREE, what, where=path)
        hardware = self._vehicle.ecus[component.ecu].hardware
        if hardware not in component.hardware_ids:
            what = f"signed for {', '.join(component.hardware_ids)}, this is {hardware}"
            raise UpdateRefused(Reason.WRONG_HARDWARE, what, where=path)
        sha256 = signed.hashes.get("sha256")
        if sha256 is None:
            raise UpdateRefused(Reason.METADATA_MISMATCH, "file without a SHA-256", where=path)
        return Target(path=path, sha256=sha256, length=signed.length, component=component)

    @staticmethod
    def _check_counter(target: Target, installed: Target | None) -> None:
        if installed is None:
            return
        new, old = target.component.counter, installed.component.counter
        if new < old:
            what = f"release counter {new} is below {old}, which is installed"
            raise UpdateRefused(Reason.COUNTER_ROLLED_BACK, what, where=target.path)
        if new == old and target.sha256 != installed.sha256:
            what = f"release counter {new} names another file than the installed one"
            raise UpdateRefused(Reason.COUNTER_REUSED, what, where=target.path)


_REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (exceptions.UnsignedMetadataError, Reason.BAD_SIGNATURE),
    (exceptions.ExpiredMetadataError, Reason.METADATA_EXPIRED),
    (exceptions.LengthOrHashMismatchError, Reason.METADATA_MISMATCH),
    (exceptions.BadVersionNumberError, Reason.METADATA_ROLLED_BACK),
    (exceptions.RepositoryError, Reason.METADATA_MISMATCH),
    (exceptions.DownloadLengthMismatchError, Reason.ENDLESS_DATA),
    (exceptions.SlowRetrievalError, Reason.SLOW_RETRIEVAL),
)
"""The first that fits; python-tuf's subclasses stand before their bases."""


def _translate(error: Exception, where: str) -> UpdateRefused:
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return UpdateRefused(reason, str(error) or reason.value, where=where)
    if isinstance(error, exceptions.DownloadHTTPError):
        try:
            answer = parse_json(str(error))
            return UpdateRefused(Reason(answer["reason"]), answer["message"], where=where)
        except (ValueError, KeyError, TypeError):
            pass
    return UpdateRefused(Reason.DOWNLOAD_FAILED, str(error), where=where)
