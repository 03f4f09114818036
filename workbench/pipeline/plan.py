"""What a pipeline would run and why, step by step."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.core.workspace import Workspace
from workbench.pipeline import cache, environment
from workbench.pipeline.cache import KeyIndex, LatestKey, StepKey
from workbench.pipeline.graph import Pipeline, PipelineStep
from workbench.records.base import GateReport, Ref, refs_in
from workbench.records.model_types import Release, StepRun
from workbench.records.store import Store

Json = dict[str, Any]
StepOutputs = Mapping[str, Mapping[str, Ref]]
StepInputs = dict[str, Ref | tuple[Ref, ...] | None]
Action = Literal["run", "skip", "omit"]


@dataclass(frozen=True)
class StepSelection:
    """Which steps a person asked for.

    Attributes:
        only: Run these and nothing else; what they read must be there. None: all.
        fresh: Run these even if nothing changed.
    """

    only: frozenset[str] | None = None
    fresh: frozenset[str] = frozenset()


ALL_STEPS = StepSelection()


@dataclass(frozen=True)
class PlannedStep:
    """One step with everything resolved that can be.

    ``key`` is None below a step still to run. To omit a step is not to reach it: its condition
    does not hold, something it needs was omitted, or nobody asked for it.
    """

    step: PipelineStep
    inputs: StepInputs
    action: Action
    reasons: tuple[str, ...]
    key: StepKey | None = None
    cached: StepRun | None = None
    pending: tuple[str, ...] = field(default=())

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
    """What ``--only``, ``--from`` and ``--fresh`` ask for; raises on a name that is no step."""
    chosen = frozenset(name for given in only for name in pipeline.named(given))
    anew = set(pipeline.steps) if fresh else set()
    if start is not None:
        anew |= pipeline.below(pipeline.named(start))
    return StepSelection(chosen or None, frozenset(anew))


def plan_step(
    pipeline: Pipeline,
    step: PipelineStep,
    outputs: StepOutputs,
    omitted: Container[str],
    place: Workspace,
    choice: StepSelection = ALL_STEPS,
) -> PlannedStep:
    """What to do about one step, given what is known of the steps above it.

    Args:
        outputs: Outputs of the steps that are done.
        omitted: Steps that were omitted.
    """
    without = [name for name in step.needs if name in omitted]
    if without:
        words = f"{without[0]} was not reached" if _selected(step, choice) else "not asked for"
        return PlannedStep(step, {}, "omit", (words,))
    pending = tuple(name for name in step.needs if name not in outputs)
    if pending:
        action: Action = "run" if _selected(step, choice) else "omit"
        words = f"after {', '.join(pending)}" if action == "run" else "not asked for"
        return PlannedStep(step, {}, action, (words,), pending=pending)
    against = _unmet_condition(step, outputs, place)
    if against:
        return PlannedStep(step, {}, "omit", (against,))
    inputs = _resolve_inputs(step, outputs, place)
    key = cache.compute_key(step.contract, step.parameters, inputs, threads=step.resources.threads)
    return _decide_action(pipeline, step, inputs, key, KeyIndex(place), choice)


def plan_pipeline(
    pipeline: Pipeline, place: Workspace, choice: StepSelection = ALL_STEPS
) -> list[PlannedStep]:
    """Every step in order, as far as outputs are known without running anything."""
    outputs: dict[str, Mapping[str, Ref]] = {}
    omitted: set[str] = set()
    steps = []
    with environment.cached_module_digests():
        for step in pipeline.steps.values():
            planned = plan_step(pipeline, step, outputs, omitted, place, choice)
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
    inputs: StepInputs,
    key: StepKey,
    index: KeyIndex,
    choice: StepSelection,
) -> PlannedStep:
    def planned(action: Action, *reasons: str, cached: StepRun | None = None) -> PlannedStep:
        return PlannedStep(step, inputs, action, reasons, key, cached)

    latest = index.latest(pipeline.name, step.name)
    side_effects = step.definition.cache == "never"
    if not _selected(step, choice):
        done = index.find(key) or (latest and index.finished(latest.run) if side_effects else None)
        if done:
            return planned("skip", "not asked for; its last outputs are used", cached=done)
        return planned("omit", "not asked for")
    if step.name in choice.fresh:
        return planned("run", "asked to run again")
    if side_effects:
        return planned("run", "it is never cached")
    cached = index.find(key)
    if cached:
        return planned("skip", "nothing changed", cached=cached)
    return planned("run", *_run_reasons(key, index, latest))


def _run_reasons(key: StepKey, index: KeyIndex, latest: LatestKey | None) -> list[str]:
    """Why a step has to run that nobody asked to run again."""
    if index.run_ref(key):
        return ["an output is missing from the store"]
    if latest is None:
        return ["never run before"]
    return key.differs_from(latest) or ["it did not finish last time"]


def _unmet_condition(step: PipelineStep, outputs: StepOutputs, place: Workspace) -> str | None:
    """Why the step's condition does not hold, or None."""
    if step.condition is None:
        return None
    store, wanted = Store(place), step.condition.verdict
    for name, output in step.when:
        verdict = store.get(outputs[name][output], GateReport).verdict.value
        if verdict not in wanted:
            return f"{name}.{output} is {verdict}; it is run on {' or '.join(wanted)}"
    return None


def _resolve_inputs(step: PipelineStep, outputs: StepOutputs, place: Workspace) -> StepInputs:
    found: StepInputs = {}
    for name, source in step.sources.items():
        if source.champion is None:
            refs = tuple(outputs[above][output] for above, output in source.outputs)
            found[name] = refs if source.many else refs[0]
    known = set(refs_in(found))
    for name, source in step.sources.items():
        if source.champion is not None:
            found[name] = _champion_before(place, source.champion, known)
    return {name: found[name] for name in step.sources}


def _champion_before(place: Workspace, model: str, candidates: set[Ref]) -> Ref | None:
    """The bundle that was champion before any of ``candidates`` was released under ``model``.

    Read from the release records, which the registry only mirrors; so a rerun meets the same
    champion as the run before it, also after that run's own candidate was promoted.
    """
    store, champion = Store(place), None
    for ref in store.refs(Release.KIND):
        release = store.get(ref, Release)
        if release.model != model:
            continue
        if release.bundle in candidates:
            break
        if release.promoted:
            champion = release.bundle
    return champion
