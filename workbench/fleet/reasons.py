"""Stable codes of why something was refused; docs/how-to/fleet.md explains each."""

from __future__ import annotations

from enum import StrEnum

from workbench.core.errors import VerificationError

__all__ = ()


class Reason(StrEnum):
    """Code of a refusal. A code is never renamed: fleets count them."""

    # A vehicle refuses what it was sent.
    BAD_SIGNATURE = "bad-signature"
    METADATA_EXPIRED = "metadata-expired"
    METADATA_ROLLED_BACK = "metadata-rolled-back"
    METADATA_MISMATCH = "metadata-mismatch"
    ENDLESS_DATA = "endless-data"
    SLOW_RETRIEVAL = "slow-retrieval"
    DOWNLOAD_FAILED = "download-failed"
    TIME_INVALID = "time-invalid"
    TIME_ROLLED_BACK = "time-rolled-back"
    NOT_IN_IMAGE_REPOSITORY = "not-in-image-repository"
    REPOSITORIES_DISAGREE = "repositories-disagree"
    UNKNOWN_ECU = "unknown-ecu"
    ECU_TWICE = "ecu-twice"
    WRONG_HARDWARE = "wrong-hardware"
    WRONG_CONTENT = "wrong-content"
    COUNTER_ROLLED_BACK = "counter-rolled-back"
    COUNTER_REUSED = "counter-reused"
    FELL_BACK_BEFORE = "fell-back-before"
    DISK_FULL = "disk-full"
    SELF_CHECK_FAILED = "self-check-failed"
    # Several components that do not go together; found by the director and again by the vehicle.
    DEPENDENCY_MISSING = "dependency-missing"
    DEPENDENCY_CYCLE = "dependency-cycle"
    CONFLICT = "conflict"
    # The director does not offer a version to a vehicle.
    INCOMPATIBLE_HARDWARE = "incompatible-hardware"
    INCOMPATIBLE_RUNTIME = "incompatible-runtime"
    INCOMPATIBLE_CALIBRATION = "incompatible-calibration"
    INCOMPATIBLE_MODEL_YEAR = "incompatible-model-year"
    UNTESTED_TARGET = "untested-target"
    # The director refuses what a vehicle sent.
    UNKNOWN_VEHICLE = "unknown-vehicle"
    MESSAGE_REPLAYED = "message-replayed"
    MESSAGE_STALE = "message-stale"
    MESSAGE_INVALID = "message-invalid"
    SCHEMA_UNSUPPORTED = "schema-unsupported"


class UpdateRefused(VerificationError):
    """An update or a message was refused; ``reason`` is its stable code."""

    kind = "refused"
    reason: Reason

    def __init__(self, reason: Reason, what: str, *, where: object = None) -> None:
        super().__init__(what, where=where, reason=reason)

    def __str__(self) -> str:
        return f"{self.reason}: {super().__str__()}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.reason, self.what, self.where)


def _rebuild(reason: Reason, what: str, where: str | None) -> UpdateRefused:
    return UpdateRefused(reason, what, where=where)
