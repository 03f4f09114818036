"""How a run ended, as the one object that ``--json`` prints."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from workbench.records.base import Ref, digest_of, kind_of
from workbench.records.store import Store
from workbench.records.types import GateReport, Release, Verdict
from workbench.workspace import Workspace

RunStatus = Literal["succeeded", "refused", "waiting", "failed", "cancelled"]


class RunExit(IntEnum):
    """Exit status of ``workbench run``."""

    SUCCEEDED = 0
    FAILED = 1
    REFUSED = 3
    WAITING = 4
    CANCELLED = 130


class _Shown(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StepReport(_Shown):
    name: str
    status: Literal["ran", "skipped", "waiting", "failed", "not-reached"]
    seconds: float = 0.0
    reason: str = ""


class ModelReport(_Shown):
    name: str
    version: int | None
    digest: str


class GateLine(_Shown):
    name: str
    verdict: Verdict
    n: int
    value: float | None
    bound: float


class RunReport(_Shown):
    """``outputs`` maps ``step.output`` to a reference; ``bundle`` is the signed folder."""

    pipeline: str
    run_id: str
    status: RunStatus
    steps: tuple[StepReport, ...]
    outputs: dict[str, Ref]
    model: ModelReport | None = None
    bundle: str | None = None
    gates: tuple[GateLine, ...] = ()

    @property
    def exit_status(self) -> RunExit:
        return RunExit[self.status.upper()]

    @property
    def reason(self) -> str:
        """Why the run stopped where it did, in one line."""
        stopped = [s for s in self.steps if s.status in ("waiting", "failed")]
        return f"{stopped[0].name}: {stopped[0].reason}" if stopped else ""


def make(
    place: Workspace,
    pipeline: str,
    run_id: str,
    steps: list[StepReport],
    outputs: dict[str, Ref],
    *,
    cancelled: bool = False,
) -> RunReport:
    """Read from the records what a run came to; a skipped run reads the same as the first."""
    store = Store(place)
    gates = _last(store, outputs, GateReport)
    release_ref = _last_ref(outputs, Release.KIND)
    release = store.get(release_ref, Release) if release_ref else None
    model, bundle = None, None
    if release and release_ref:
        registry = store.side(release_ref, "registry") or {}
        version = registry.get("version")
        model = ModelReport(name=release.model, version=version, digest=digest_of(release.bundle))
        bundle = str(place.release_folder(release.model, digest_of(release.bundle)))
    return RunReport(
        pipeline=pipeline,
        run_id=run_id,
        status=_status(steps, gates, cancelled=cancelled),
        steps=tuple(steps),
        outputs=outputs,
        model=model,
        bundle=bundle,
        gates=_gate_lines(gates),
    )


def _status(steps: list[StepReport], gates: GateReport | None, *, cancelled: bool) -> RunStatus:
    if cancelled:
        return "cancelled"
    for status in ("failed", "waiting"):
        if any(step.status == status for step in steps):
            return status  # type: ignore[return-value]
    refused = gates is not None and gates.verdict is not Verdict.PASS
    return "refused" if refused else "succeeded"


def _gate_lines(gates: GateReport | None) -> tuple[GateLine, ...]:
    if gates is None:
        return ()
    return tuple(
        GateLine(name=g.name, verdict=g.verdict, n=g.n, value=g.value, bound=g.bound)
        for g in gates.gates
    )


def _last(store: Store, outputs: dict[str, Ref], kind: type[GateReport]) -> GateReport | None:
    ref = _last_ref(outputs, kind.KIND)
    return store.get(ref, kind) if ref else None


def _last_ref(outputs: dict[str, Ref], kind: str) -> Ref | None:
    found = [ref for ref in outputs.values() if kind_of(ref) == kind]
    return found[-1] if found else None


def as_json(report: RunReport) -> dict[str, Any]:
    return report.model_dump(mode="json")
