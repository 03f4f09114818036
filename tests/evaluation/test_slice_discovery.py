"""A planted weak slice is found, a null set gives nothing, and findings become slices and gates."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from benchmarks.slice_discovery import made
from workbench.core.errors import ParameterError
from workbench.data.slice_file import parse_slice
from workbench.data.slices import ALL_FRAMES
from workbench.detection.model import Predictions
from workbench.evaluation.gate_rules import GateRules
from workbench.evaluation.metrics import evaluate
from workbench.evaluation.slice_discovery import discover_slices


def evaluated(dataset, found, quick):
    return evaluate(Predictions(dataset, found), [ALL_FRAMES], settings=quick)


def test_a_planted_slice_is_found_and_proposed_as_a_gate(quick):
    dataset, found, where = made(1, planted=True, drives=120)
    result = discover_slices(evaluated(dataset, found, quick))
    terms = {term for one in result.found[:1] for term in one.name.split("+")}
    assert terms == {f"{key}={value}" for key, value in where.items()}
    best = result.found[0]
    assert best.miss_rate > best.elsewhere
    assert best.p <= 0.05
    part = parse_slice("best", best.where)
    inside = sum(part.frame(frame) for frame in dataset.frames)
    assert inside == best.frames
    slices, gates = result.proposals().split("# for pipelines/gates.yaml")
    names = yaml.safe_load(slices)["slices"]
    rules = {"schema_version": 1, **yaml.safe_load(gates)}
    rules["gates"][0]["required"] = True
    parsed = GateRules.model_validate(rules, context={"slices": tuple(names)})
    assert parsed.gates[0].bound == pytest.approx(1 - best.elsewhere, abs=0.01)


def test_nothing_is_found_where_no_slice_is_worse(quick):
    dataset, found, _ = made(10_000, planted=False, drives=120)
    result = discover_slices(evaluated(dataset, found, quick))
    assert result.candidates > 100
    assert result.found == ()


def test_a_cluster_is_found_but_cannot_be_written_as_a_predicate(quick):
    dataset, found, _ = made(10_001, planted=False, drives=120)
    random = np.random.default_rng(0)
    groups = {frame.id: f"cluster={random.integers(5)}" for frame in dataset.frames}
    kept = [each for each in found if groups[each.frame] != "cluster=2" or random.uniform() < 0.5]
    result = discover_slices(evaluated(dataset, kept, quick), groups)
    assert result.found[0].name == "cluster=2"
    assert result.found[0].where is None
    assert "cluster" not in result.proposals()


def test_small_sets_have_no_candidates(build, quick):
    case = build.random(0)
    assert discover_slices(evaluated(case.dataset, case.predictions, quick)).candidates == 0
    with pytest.raises(ParameterError, match="min_drives 5"):
        discover_slices(evaluated(case.dataset, case.predictions, quick), min_drives=5)
