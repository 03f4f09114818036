"""The model card of a release, in the form of the Hugging Face hub, with our intervals.

Form: https://huggingface.co/docs/hub/model-cards: Markdown with YAML metadata at its head, results
as ``model-index``. The hub's form has no interval, so the tables below have them.
"""

from __future__ import annotations

from typing import Any

import yaml

from workbench.core.types import Json
from workbench.records.base import GateResult, Ref, digest_of
from workbench.records.model_types import ExportBundle, Release
from workbench.records.types import DatasetVersion
from workbench.release.evidence import Evidence

__all__ = ()


def make_model_card(ref: Ref, release: Release, evidence: Evidence) -> str:
    """The model card as Markdown."""
    bundle = evidence.records[evidence.bundle]
    assert isinstance(bundle, ExportBundle)  # noqa: S101 - gather has read it as one
    report = evidence.report
    judged = evidence.records.get(report.dataset)
    dataset = judged.name if isinstance(judged, DatasetVersion) else report.dataset
    licences = sorted({part.licence for part in evidence.parts})
    head: Json = {
        "library_name": "onnx",
        "pipeline_tag": "object-detection",
        "license": "other",
        "license_name": "; ".join(licences) or "not stated",
        "tags": ["object-detection", "int8", *(["simulated"] if report.simulated else [])],
        "model-index": [
            {"name": release.model, "results": _results(report.gates, dataset, report.dataset)}
        ],
    }
    simulated = "**Simulated drives:** no figure says anything about real roads.\n\n"
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {release.model}, version {release.version}",
        "",
        f"{simulated if report.simulated else ''}Gates: **{report.verdict.value}**"
        + ("; may be champion." if release.promoted else "; may not be champion."),
        "",
        "| | |",
        "| --- | --- |",
        f"| release | `{ref}` |",
        f"| bundle | `{release.bundle}` |",
        f"| gate report | `{release.gates}` |",
        f"| judged on | {_text(dataset)}, `{report.dataset}` |",
        f"| classes | {_text(', '.join(bundle.classes))} |",
        *(
            [f"| acts at a score of | {point.threshold:.3g}, {_text(point.how)} |"]
            if (point := evidence.operating_point)
            else []
        ),
        "",
        "## Intended use",
        "",
        "2-D detection of road users on front cameras of cars and trucks, as one input of a driver",
        "assistance system. No other camera position, and no decision without other safeguards.",
        "",
        "## Results, with intervals",
        "",
        "| gate | slice | verdict | value | interval | bound | n | method |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_gate_row(gate) for gate in report.gates),
        "",
        "## Data and models of others",
        "",
        "| kind | name | licence | digest or revision |",
        "| --- | --- | --- | --- |",
        *(
            f"| {part.kind} | {_text(part.name)} | {_text(part.licence)} | "
            f"`{(part.sha256 or part.revision)[:64]}` |"
            for part in evidence.parts
        ),
        "",
        "## Limits",
        "",
        *(
            f"- {_text(gate.name)}: {gate.verdict.value}. {_text(gate.why)}"
            for gate in report.gates
            if gate.verdict.value != "PASS"
        ),
        *(f"- `{missing}` is not in the workspace any more." for missing in evidence.missing),
        "",
    ]
    return "\n".join(lines)


def _results(gates: tuple[GateResult, ...], dataset: str, ref: Ref) -> list[dict[str, Any]]:
    return [
        {
            "task": {"type": "object-detection"},
            "dataset": {
                "name": dataset,
                "type": "workbench",
                "split": gate.slice,
                "revision": digest_of(ref),
            },
            "metrics": [{"type": gate.name, "value": gate.value, "name": _named(gate)}],
        }
        for gate in gates
        if gate.value is not None
    ]


def _named(gate: GateResult) -> str:
    return f"{gate.name} ({_interval(gate)}, n={gate.n} {gate.unit})"


def _interval(gate: GateResult) -> str:
    ends = [f"{end:.4g}" if end is not None else "…" for end in (gate.low, gate.high)]
    return f"[{ends[0]}, {ends[1]}]"


def _gate_row(gate: GateResult) -> str:
    value = "-" if gate.value is None else f"{gate.value:.4g}"
    return (
        f"| {_text(gate.name)} | {_text(gate.slice)} | {gate.verdict.value} | {value} | "
        f"{_interval(gate)} | {gate.bound:.4g} | {gate.n} {_text(gate.unit)} | "
        f"{_text(gate.method)} |"
    )


def _text(text: str) -> str:
    """Text of others in one cell: no markup, no line break."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
