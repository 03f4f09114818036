"""What a release was made from, and whether it may be released: lineage, licences, gate report."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from workbench import __version__
from workbench.core import digest
from workbench.core.errors import RecordError, Refusal, VerificationError
from workbench.core.parsing import UNREADABLE, parse_json
from workbench.core.text import short_repr
from workbench.core.types import Json
from workbench.data.incidents import require_replayed
from workbench.detection.bundles import OperatingPoint
from workbench.detection.model import Model
from workbench.records.base import (
    GateReport,
    Record,
    Ref,
    Verdict,
    digest_of,
    kind_of,
    refs_in,
    short_ref,
)
from workbench.records.model_types import Checkpoint, Environment, ExportBundle, StepRun, Supplier
from workbench.records.releases import ModelReleases, may_promote
from workbench.records.store import Store
from workbench.records.types import DatasetVersion

__all__ = ["Evidence"]

Use = Literal["commercial", "research"]

SIMULATED_LICENCE = "rendered by workbench, no data of others"
_NOT_STATED = "not stated"
_NON_COMMERCIAL = re.compile(
    r"\bNC\b|non.?commercial|(research|academic|educational)[a-z ]*(use )?only|-NC-", re.IGNORECASE
)


@dataclass(frozen=True)
class Part:
    """Something of others, or data, that went into a model.

    Attributes:
        kind: ``dataset`` or ``supplier``.
        name: Dataset and version digest, or origin of the supplier's model.
        licence: As stated; `_NOT_STATED` without.
    """

    kind: Literal["dataset", "supplier"]
    name: str
    licence: str
    sha256: str | None = None
    revision: str = ""

    @property
    def origin_name(self) -> str:
        """Who made it, without the kind of source."""
        return self.name.partition(":")[2] or self.name


@short_repr
@dataclass(frozen=True)
class Evidence:
    """Everything that a bundle and its gate report refer to, directly or not.

    Attributes:
        records: By reference; the steps that made them included.
        missing: References of records that are not in the workspace.
        operating_point: Threshold that the bundle acts at, where it has one.
    """

    bundle: Ref
    gates: Ref
    records: Mapping[Ref, Record]
    missing: tuple[Ref, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    operating_point: OperatingPoint | None = None

    @cached_property
    def runs(self) -> dict[Ref, StepRun]:
        """Steps that made something of it."""
        return {ref: one for ref, one in self.records.items() if isinstance(one, StepRun)}

    @cached_property
    def report(self) -> GateReport:
        """The gate report."""
        record = self.records[self.gates]
        assert isinstance(record, GateReport)  # noqa: S101 - gather has read it as one
        return record

    @cached_property
    def checkpoints(self) -> dict[Ref, Checkpoint]:
        """The checkpoint that was exported, then those it was trained from."""
        found: dict[Ref, Checkpoint] = {}
        bundle = self.records[self.bundle]
        ref = bundle.checkpoint if isinstance(bundle, ExportBundle) else None
        while ref is not None and isinstance(record := self.records.get(ref), Checkpoint):
            found[ref] = record
            ref = record.parent
        return found

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Data and models of others, with their licences."""
        parts: dict[Part, None] = {}
        for ref, record in self.records.items():
            if isinstance(record, DatasetVersion) and record.made_by == "ingest":
                if record.parents:
                    continue
                stated = SIMULATED_LICENCE if record.simulated else _NOT_STATED
                licence = record.licence or stated
                parts[Part("dataset", record.name, licence, digest_of(ref))] = None
        for checkpoint in self.checkpoints.values():
            if isinstance(checkpoint.supplier, Supplier):
                one = checkpoint.supplier
                parts[Part("supplier", one.origin, one.licence, one.weights, one.revision)] = None
        return tuple(parts)

    @cached_property
    def packages(self) -> dict[str, str]:
        """Versions of the Python packages that made it, by name."""
        found: dict[str, str] = {}
        for record in self.records.values():
            if isinstance(record, Environment):
                for text in record.distributions:
                    name, _, version = text.partition("==")
                    found.setdefault(name, version.partition("#")[0])
        return dict(sorted(found.items()))

    def provenance(self) -> Json:
        """How it was made: a SLSA v1 provenance predicate."""
        steps = [
            {
                "step": run.step,
                "run": ref,
                "notebook": run.notebook,
                "parameters": run.parameters,
                "inputs": run.inputs,
                "outputs": run.outputs,
            }
            for ref, run in self.runs.items()
        ]
        used = [
            ref for ref in self.records if kind_of(ref) in {"dataset", "notebook", "environment"}
        ]
        return {
            "buildDefinition": {
                "buildType": "urn:workbench:pipeline:1",
                "externalParameters": {"steps": json.loads(digest.canonical_json(steps))},
                "internalParameters": {"missing": list(self.missing)},
                "resolvedDependencies": [
                    {"uri": ref, "digest": {"sha256": digest_of(ref)}} for ref in sorted(used)
                ],
            },
            "runDetails": {
                "builder": {"id": "urn:workbench", "version": {"workbench": __version__}},
                "byproducts": [
                    {"name": name, "digest": {"sha256": sha256}}
                    for name, sha256 in sorted(self.files.items())
                ],
            },
        }

    def gate_report(self) -> Json:
        """The gate report: an in-toto test-result predicate, with every gate beside it."""
        report = self.report
        words = {"PASS": "PASSED", "FAIL": "FAILED"}
        by_verdict: dict[str, list[str]] = {"PASS": [], "FAIL": [], "INSUFFICIENT EVIDENCE": []}
        for gate in report.gates:
            by_verdict[gate.verdict.value].append(gate.name)
        return {
            "result": words.get(report.verdict.value, "WARNED"),
            "configuration": [{"name": "gate rules", "digest": {"sha256": report.rules}}],
            "passedTests": by_verdict["PASS"],
            "warnedTests": by_verdict["INSUFFICIENT EVIDENCE"],
            "failedTests": by_verdict["FAIL"],
            "report": self.gates,
            "verdict": report.verdict.value,
            "dataset": report.dataset,
            "reference": report.reference,
            "simulated": report.simulated,
            "gates": [gate.model_dump(mode="json") for gate in report.gates],
        }


def gather(store: Store, bundle: Ref, gates: Ref) -> Evidence:
    """Read everything that a bundle and its gate report refer to.

    Raises:
        RecordError: The bundle or the gate report cannot be read.
    """
    store.get(bundle, ExportBundle), store.get(gates, GateReport)
    makers: dict[Ref, list[Ref]] = {}
    for ref in store.refs(StepRun.KIND):
        with contextlib.suppress(RecordError):
            for made in store.get(ref, StepRun).outputs.values():
                makers.setdefault(made, []).append(ref)
    records: dict[Ref, Record] = {}
    missing: dict[Ref, None] = {}
    waiting = [bundle, gates]
    while waiting:
        ref = waiting.pop()
        if ref in records or ref in missing:
            continue
        try:
            records[ref] = store.load(ref)
        except RecordError:
            missing[ref] = None
            continue
        record = records[ref]
        found = refs_in(record.model_dump(mode="json"))
        # What else a step made is no evidence of this model.
        outputs = record.outputs.values() if isinstance(record, StepRun) else ()
        waiting += [one for one in found if one not in outputs] + makers.get(ref, [])
    files = store.payload_digests(bundle)
    ordered = dict(sorted(records.items()))
    point = Model(store.workspace, bundle).operating_point
    return Evidence(bundle, gates, ordered, tuple(sorted(missing)), files, point)


def check_licences(evidence: Evidence, use: Use) -> None:
    """Refuse what a licence forbids: non-commercial data or models in a commercial release.

    Raises:
        VerificationError: A licence forbids the use; the message lists each.
    """
    if use == "research":
        return
    against = [one for one in evidence.parts if _NON_COMMERCIAL.search(one.licence)]
    if against:
        listed = "; ".join(f"{one.kind} {one.name}: {one.licence}" for one in against)
        raise VerificationError(
            f"licence forbids a commercial release: {listed}",
            where=evidence.bundle,
            hint="Train without it, or release for research (use='research')",
            reason=Refusal.LICENCE_FORBIDS,
        )


def check_gate_report(store: Store, evidence: Evidence, known: ModelReleases) -> None:
    """Refuse a gate report that is not the one of the run that judged this bundle.

    Rules and thresholds of the report have to be those in its payload; a report of somebody's own
    step may have none, but then a run has to have made it. A run that made the report has to have
    judged this bundle on the dataset that the report names. A report that would promote
    has to compare with the present champion, if it compares with a bundle at all.

    Args:
        known: The releases of the model.

    Raises:
        VerificationError: It is edited, about another dataset, or older than the champion.
    """
    report, where = evidence.report, short_ref(evidence.gates)
    has_rules = _check_rules(store, evidence)
    _check_incidents(store, evidence)
    makers = [run for run in evidence.runs.values() if evidence.gates in run.outputs.values()]
    if not makers and (not has_rules or _was_judged(store, report.candidate)):
        also = "a run has judged this bundle" if has_rules else "it does not hold its rules"
        raise VerificationError(
            f"no run made this gate report, and {also}",
            where=where,
            hint="Release with the report of the run, or run validate again",
            reason=Refusal.GATES_EDITED,
        )
    for run in makers:
        judged = run.inputs.get("dataset", report.dataset)
        if judged != report.dataset:
            raise VerificationError(
                f"gate report names {short_ref(report.dataset)}, its run judged on "
                f"{short_ref(str(judged))}",
                where=where,
                hint="Run validate again",
                reason=Refusal.GATES_OTHER_DATASET,
            )
    champion = known.aliases.get("champion")
    if (
        may_promote(report)
        and champion is not None
        and champion.record.bundle != report.candidate
        and report.reference is not None
        and report.reference != champion.record.bundle
    ):
        raise VerificationError(
            f"gate report compares with {short_ref(report.reference)}, but the champion is "
            f"{champion}",
            where=where,
            hint="Run validate again: another model became champion meanwhile",
            reason=Refusal.GATES_STALE,
        )


def _was_judged(store: Store, bundle: Ref) -> bool:
    """Whether a run made a gate report on this bundle."""
    for ref in store.refs(StepRun.KIND):
        with contextlib.suppress(RecordError):
            run = store.get(ref, StepRun)
            reports = any(kind_of(made) == GateReport.KIND for made in run.outputs.values())
            if reports and bundle in refs_in(run.inputs):
                return True
    return False


def _check_incidents(store: Store, evidence: Evidence) -> None:
    """Every active incident of this label schema was replayed, and its frames are untouched."""
    report, where = evidence.report, short_ref(evidence.gates)
    try:
        schema = store.get(report.dataset, DatasetVersion).label_schema.name
    except RecordError:
        return  # a report on a dataset that is not here, such as one from another workspace
    require_replayed(store, report.incidents, schema, where)
    gates = {gate.name: gate for gate in report.gates}
    if report.incidents and (
        (gate := gates.get("incidents")) is None
        or not gate.required
        or (gate.verdict is not Verdict.PASS and report.verdict is Verdict.PASS)
    ):
        raise VerificationError(
            "gate report lacks the verdict on incidents, or passes in spite of it",
            where=where,
            hint="It was edited after the run: run validate again",
            reason=Refusal.GATES_EDITED,
        )


def _check_rules(store: Store, evidence: Evidence) -> bool:
    """Compare a report with its rules; False if it has none, as one of somebody's own step."""
    report = evidence.report
    try:
        content = parse_json(store.read_payload(evidence.gates, "metrics.json"))
        rules = content["rules"]
        named = {one["name"]: one for one in rules["gates"]}
        judged_at = (content.get("operating_point") or {}).get("threshold")
    except (RecordError, *UNREADABLE):
        return False
    # Incidents add a gate that no rule states, see `workbench.evaluation.incidents`.
    judged = [gate for gate in report.gates if not (report.incidents and gate.name == "incidents")]
    changed = [
        gate.name
        for gate in judged
        if gate.name not in named
        or gate.required != named[gate.name].get("required", True)
        or gate.bound != named[gate.name].get("bound", gate.bound)
    ]
    lost = named.keys() - {gate.name for gate in judged}
    if digest.of_json(rules) != report.rules or changed or lost:
        listed = ", ".join([*changed, *sorted(lost)]) or "the rules"
        raise VerificationError(
            f"gate report does not say what its rules say: {listed}",
            where=short_ref(evidence.gates),
            hint="It was edited after the run: run validate again",
            reason=Refusal.GATES_EDITED,
        )
    point = evidence.operating_point
    if point is not None and judged_at != point.threshold:
        raise VerificationError(
            f"gate report judges at a score of {judged_at}, the bundle acts at {point.threshold}",
            where=short_ref(evidence.gates),
            hint="Run validate again",
            reason=Refusal.GATES_EDITED,
        )
    return True
