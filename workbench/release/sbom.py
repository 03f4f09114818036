"""The bill of materials of a release: CycloneDX 1.6 with the model, its data sets and licences.

Fields: https://cyclonedx.org/docs/1.6/json (ML-BOM: a component ``machine-learning-model`` with a
``modelCard``, components ``data``). The library for CycloneDX has no model card, so this is JSON.
"""

from __future__ import annotations

import re
import uuid
from importlib import metadata
from typing import Any

from workbench import __version__
from workbench.core.types import Json
from workbench.records.base import GateResult, Ref, digest_of
from workbench.records.model_types import ExportBundle, Release
from workbench.release.evidence import Evidence, Part

__all__ = ()

SPEC_VERSION = "1.6"
_NAMESPACE = uuid.UUID("c1c1b9d4-3d2c-4f0e-9f0e-6f1b7d1f2a55")
# Of the SPDX list, those that data and detectors commonly have; other texts are given as names.
_SPDX = frozenset(
    (
        *("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "GPL-3.0-only", "AGPL-3.0-only"),
        *("CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-4.0", "ODbL-1.0"),
        *("CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0"),
    )
)


def make_sbom(ref: Ref, release: Release, evidence: Evidence, *, at: str) -> Json:
    """The bill of materials of a release as CycloneDX 1.6 JSON.

    Args:
        ref: The release.
        at: Time in UTC.
    """
    parts = [_part(one) for one in evidence.parts]
    packages = [_package(name, version) for name, version in evidence.packages.items()]
    model = _model(ref, release, evidence)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, ref)}",
        "version": 1,
        "metadata": {
            "timestamp": at,
            "tools": {
                "components": [{"type": "application", "name": "workbench", "version": __version__}]
            },
            "component": model,
        },
        "components": [*parts, *packages],
        "dependencies": [
            {"ref": ref, "dependsOn": [one["bom-ref"] for one in [*parts, *packages]]},
            *({"ref": one["bom-ref"]} for one in [*parts, *packages]),
        ],
    }


def _model(ref: Ref, release: Release, evidence: Evidence) -> Json:
    bundle = evidence.records[evidence.bundle]
    assert isinstance(bundle, ExportBundle)  # noqa: S101 - gather has read it as one
    checkpoint = next(iter(evidence.checkpoints.values()), None)
    parameters: Json = {
        "approach": {"type": "supervised"},
        "task": "object-detection",
        "datasets": [{"ref": _ref_of(one)} for one in evidence.parts if one.kind == "dataset"],
        "inputs": [{"format": "image: float32 NCHW, see preprocessing.json"}],
        "outputs": [{"format": f"boxes of {', '.join(bundle.classes)}"}],
    }
    if checkpoint is not None:
        parameters["architectureFamily"] = checkpoint.family
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": release.model,
        "version": str(release.version),
        "hashes": [{"alg": "SHA-256", "content": digest_of(release.bundle)}],
        "components": [
            {
                "type": "file",
                "bom-ref": f"{ref}#{name}",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": sha256}],
            }
            for name, sha256 in sorted(evidence.files.items())
        ],
        "modelCard": {
            "bom-ref": f"{ref}#model-card",
            "modelParameters": parameters,
            "quantitativeAnalysis": {
                "performanceMetrics": [
                    _metric(gate) for gate in evidence.report.gates if gate.value is not None
                ]
            },
            "considerations": {
                "useCases": ["2-D detection of road users on a front camera"],
                "technicalLimitations": _limitations(release, evidence),
            },
        },
    }


def _limitations(release: Release, evidence: Evidence) -> list[str]:
    limits = [
        f"{gate.name}: {gate.verdict.value}"
        for gate in evidence.report.gates
        if gate.verdict.value != "PASS"
    ]
    if evidence.report.simulated:
        limits.append("judged on simulated drives: says nothing about real roads")
    if not release.promoted:
        limits.append(f"not promoted: gates say {release.verdict.value}")
    return limits


def _metric(gate: GateResult) -> Json:
    metric: Json = {"type": gate.name, "value": f"{gate.value:.6g}", "slice": gate.slice}
    if gate.low is not None or gate.high is not None:
        ends = {"lowerBound": gate.low, "upperBound": gate.high}
        metric["confidenceInterval"] = {
            name: f"{value:.6g}" for name, value in ends.items() if value is not None
        }
    return metric


def _ref_of(part: Part) -> str:
    return f"{part.kind}:{part.name}@{part.sha256 or part.revision}"


def _part(part: Part) -> Json:
    kind = "data" if part.kind == "dataset" else "machine-learning-model"
    component: Json = {
        "type": kind,
        "bom-ref": _ref_of(part),
        "name": part.name,
        "version": part.revision or (part.sha256 or "")[:12],
        "licenses": [{"license": _licence(part.licence)}],
    }
    if part.sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": part.sha256}]
    if part.kind == "dataset":
        component["data"] = [{"type": "dataset", "name": part.name}]
    else:
        component["supplier"] = {"name": part.origin_name}
    return component


def _package(name: str, version: str) -> Json:
    component: Json = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{_normal(name)}@{version}",
        "purl": f"pkg:pypi/{_normal(name)}@{version}",
        "name": name,
        "version": version,
    }
    licence = _installed_licence(name, version)
    if licence:
        component["licenses"] = [{"license": _licence(licence)}]
    return component


def _installed_licence(name: str, version: str) -> str:
    """Licence of a package, where the same version is installed; empty otherwise."""
    try:
        found: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return ""
    if found.get("Version") != version:
        return ""
    text = str(found.get("License-Expression") or found.get("License") or "").strip()
    return text if len(text) < 100 and "\n" not in text else ""  # else the whole licence text


def _licence(text: str) -> Json:
    return {"id": text} if text in _SPDX else {"name": text}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
