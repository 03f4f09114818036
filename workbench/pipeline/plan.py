"""What a pipeline would run, and why, step by step."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Literal

from workbench.core.errors import ContractError
from workbench.core.text import short_repr
from workbench.core.workspace import Workspace
from workbench.data.incidents import active_suite
from workbench.pipeline import cache, environment
from workbench.pipeline.cache import KeyIndex, LatestKey, StepKey
from workbench.pipeline.graph import Pipeline, PipelineStep
from workbench.records.base import GateReport, Ref, kind_of, refs_in
from workbench.records.model_types import StepRun
from workbench.records.references import resolve_reference
from workbench.records.releases import registered_releases
from workbench.records.store import Store

__all__ = ["PlannedStep", "plan_pipeline"]

_StepOutputs = Mapping[str, Mapping[str, Ref]]
_StepInputs = dict[str, Ref | tuple[Ref, ...] | None]
_Action = Literal["run", "skip", "omit"]


@dataclass(frozen=True)
class StepSelection:
    """Which steps the user selected.

    Attributes:
        only: Run these and nothing else; what they read must exist. None: all steps.
        fresh: Run these even if nothing changed.
    """

    only: frozenset[str] | None = None
    fresh: frozenset[str] = frozenset()


ALL_STEPS = StepSelection()


@short_repr
@dataclass(frozen=True)
class PlannedStep:
    """What to do about one step, with everything resolved that can be.

    Attributes:
        action: ``omit`` if its condition is not met, a step that it needs was omitted, or it is
            not selected.
        reasons: Why, in words.
        key: None below a step that has still to run.
        cached: The run whose outputs are used, for ``skip``.
    """

    step: PipelineStep
    inputs: _StepInputs
    action: _Action
    reasons: tuple[str, ...]
    key: StepKey | None = None
    cached: StepRun | None = None

    @property
    def name(self) -> str:
        return self.step.name


def select_steps(
    pipeline: Pipeline,
    *,
    only: tuple[str, ...] = (),
    start: str | None = None,
    fresh: bool = False,
) -> StepSelection:
    """The steps that ``--only``, ``--from`` and ``--fresh`` select.

    Args:
        pipeline: The pipeline.
        only: Names of steps; none for all.
        start: Run this step and all steps below it even if nothing changed.
        fresh: Run all steps even if nothing changed.

    Raises:
        ContractError: A name is not a step.
    """
    selected = frozenset(name for given in only for name in pipeline.named(given))
    rerun = set(pipeline.steps) if fresh else set()
    if start is not None:
        rerun |= pipeline.below(pipeline.named(start))
    return StepSelection(selected or None, frozenset(rerun))


def plan_step(
    pipeline: Pipeline,
    step: PipelineStep,
    outputs: _StepOutputs,
    omitted: Container[str],
    workspace: Workspace,
    choice: StepSelection = ALL_STEPS,
) -> PlannedStep:
    """What to do about one step, given the outputs of the steps above it.

    Args:
        pipeline: The pipeline.
        step: The step.
        outputs: Outputs of the steps that are done.
        omitted: Steps that were omitted.
        workspace: Where records are read.
        choice: Which steps the user selected.
    """
    missing = [name for name in step.needs if name in omitted]
    if missing:
        reason = f"{missing[0]} was not reached" if _selected(step, choice) else "not selected"
        return PlannedStep(step, {}, "omit", (reason,))
    pending = [name for name in step.needs if name not in outputs]
    if pending:
        action: _Action = "run" if _selected(step, choice) else "omit"
        reason = f"after {', '.join(pending)}" if action == "run" else "not selected"
        return PlannedStep(step, {}, action, (reason,))
    unmet = _unmet_condition(step, outputs, workspace)
    if unmet:
        return PlannedStep(step, {}, "omit", (unmet,))
    inputs = _resolve_inputs(step, outputs, workspace)
    key = cache.compute_key(step.contract, step.parameters, inputs, threads=step.resources.threads)
    return _decide_action(pipeline, step, inputs, key, KeyIndex(workspace), choice)


def plan_pipeline(
    pipeline: Pipeline, workspace: Workspace, choice: StepSelection = ALL_STEPS
) -> list[PlannedStep]:
    """Every step in order, as far as outputs are known without running anything."""
    outputs: dict[str, Mapping[str, Ref]] = {}
    omitted: set[str] = set()
    steps = []
    with environment.cached_module_digests():
        for step in pipeline.steps.values():
            planned = plan_step(pipeline, step, outputs, omitted, workspace, choice)
            if planned.action == "skip" and planned.cached:
                outputs[step.name] = planned.cached.outputs
            elif planned.action == "omit":
                omitted.add(step.name)
            steps.append(planned)
    return steps


def _selected(step: PipelineStep, choice: StepSelection) -> bool:
    return choice.only is None or step.name in choice.only


def _decide_action(
    pipeline: Pipeline,
    step: PipelineStep,
    inputs: _StepInputs,
    key: StepKey,
    index: KeyIndex,
    choice: StepSelection,
) -> PlannedStep:
    def planned(action: _Action, *reasons: str, cached: StepRun | None = None) -> PlannedStep:
        return PlannedStep(step, inputs, action, reasons, key, cached)

    latest = index.latest(pipeline.name, step.name)
    side_effects = step.definition.cache == "never"
    if not _selected(step, choice):
        done = index.find(key) or (latest and index.finished(latest.run) if side_effects else None)
        if done:
            return planned("skip", "not selected; its last outputs are used", cached=done)
        return planned("omit", "not selected", *_output_damage(key, index))
    if step.name in choice.fresh:
        return planned("run", "rerun requested")
    if side_effects:
        return planned("run", "never cached")
    cached = index.find(key)
    if cached:
        return planned("skip", "nothing changed", cached=cached)
    return planned("run", *_run_reasons(key, index, latest))


def _run_reasons(key: StepKey, index: KeyIndex, latest: LatestKey | None) -> list[str]:
    """Why a step has to run although no rerun was requested."""
    damage = _output_damage(key, index)
    if damage:
        return damage
    if latest is None:
        return ["never run before"]
    return key.differs_from(latest) or ["it did not finish last time"]


def _output_damage(key: StepKey, index: KeyIndex) -> list[str]:
    """What is wrong with the outputs of the finished run with this key."""
    ref = index.run_ref(key)
    return index.output_damage(index.outputs(ref)) if ref else []


def _unmet_condition(step: PipelineStep, outputs: _StepOutputs, workspace: Workspace) -> str | None:
    """Why the step's condition is not met, or None."""
    if step.definition.when is None:
        return None
    store, wanted = Store(workspace), step.definition.when.verdict
    for name, output in step.when:
        verdict = store.get(outputs[name][output], GateReport).verdict.value
        if verdict not in wanted:
            return f"{name}.{output} is {verdict}; the step runs only on {' or '.join(wanted)}"
    return None


def _resolve_inputs(step: PipelineStep, outputs: _StepOutputs, workspace: Workspace) -> _StepInputs:
    found: _StepInputs = {}
    for name, source in step.sources.items():
        if source.record is not None:
            found[name] = _existing(workspace, name, source.record, source.kind)
        elif source.incidents:
            found[name] = active_suite(Store(workspace))
        elif source.champion is None:
            refs = tuple(outputs[above][output] for above, output in source.outputs)
            found[name] = refs if source.many else refs[0]
    known = set(refs_in(found))
    for name, source in step.sources.items():
        if source.champion is not None:
            found[name] = _champion_before(workspace, source.champion, known)
    return {name: found[name] for name in step.sources}


def _existing(workspace: Workspace, name: str, reference: str, kind: str) -> Ref | None:
    """The record that a pipeline begins from; None where none is named."""
    if not reference:
        return None
    ref = resolve_reference(workspace, reference, (kind,))
    if kind_of(ref) != kind:
        raise ContractError(f"input {name!r} takes a {kind}, not a {kind_of(ref)}", where=reference)
    return ref


def _champion_before(workspace: Workspace, model: str, candidates: set[Ref]) -> Ref | None:
    """The bundle that was champion before any of ``candidates`` was released under ``model``.

    It is read from the signed release records, which the registry only mirrors. So a rerun has the
    same champion as the run before it, even after that run's own candidate was promoted.
    """
    found = registered_releases(workspace, model)
    found.require_any()
    champions = found.champions_before(candidates)
    return champions[-1].record.bundle if champions else None
