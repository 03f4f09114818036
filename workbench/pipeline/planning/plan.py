"""What a pipeline would run and why, step by step."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.pipeline.definition.graph import Pipeline, Step
from workbench.pipeline.planning import keys, modules
from workbench.pipeline.planning.keys import KeyIndex, Latest, StepKey
from workbench.records.base import Ref, refs_in
from workbench.records.store import Store
from workbench.records.types import GateReport, Release, StepRun
from workbench.workspace import Workspace

Json = dict[str, Any]
Outputs = Mapping[str, Mapping[str, Ref]]
Inputs = dict[str, Ref | tuple[Ref, ...] | None]
Action = Literal["run", "skip", "omit"]


@dataclass(frozen=True)
class Choice:
    """Which steps a person asked for.

    Attributes:
        only: Run these and nothing else; what they read must be there. None: all.
        fresh: Run these even if nothing changed.
    """

    only: frozenset[str] | None = None
    fresh: frozenset[str] = frozenset()


ALL = Choice()


@dataclass(frozen=True)
class PlannedStep:
    """One step with everything resolved that can be.

    ``key`` is None below a step still to run. To omit a step is not to reach it: its condition
    does not hold, something it needs was omitted, or nobody asked for it.
    """

    step: Step
    inputs: Inputs
    action: Action
    reasons: tuple[str, ...]
    key: StepKey | None = None
    cached: StepRun | None = None
    pending: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.step.name


def choose(
    pipeline: Pipeline,
    *,
    only: tuple[str, ...] = (),
    start: str | None = None,
    fresh: bool = False,
) -> Choice:
    """What ``--only``, ``--from`` and ``--fresh`` ask for; raises on a name that is no step."""
    chosen = frozenset(name for given in only for name in pipeline.named(given))
    anew = set(pipeline.steps) if fresh else set()
    if start is not None:
        anew |= pipeline.below(pipeline.named(start))
    return Choice(chosen or None, frozenset(anew))


def resolve(
    pipeline: Pipeline,
    step: Step,
    outputs: Outputs,
    omitted: Container[str],
    place: Workspace,
    choice: Choice = ALL,
) -> PlannedStep:
    """What to do about one step, given what is known of the steps above it.

    Args:
        outputs: Outputs of the steps that are done.
        omitted: Steps that were omitted.
    """
    without = [name for name in step.needs if name in omitted]
    if without:
        words = f"{without[0]} was not reached" if _asked(step, choice) else "not asked for"
        return PlannedStep(step, {}, "omit", (words,))
    pending = tuple(name for name in step.needs if name not in outputs)
    if pending:
        action: Action = "run" if _asked(step, choice) else "omit"
        words = f"after {', '.join(pending)}" if action == "run" else "not asked for"
        return PlannedStep(step, {}, action, (words,), pending=pending)
    against = _condition(step, outputs, place)
    if against:
        return PlannedStep(step, {}, "omit", (against,))
    inputs = _inputs(step, outputs, place)
    key = keys.compute(step.contract, step.parameters, inputs, threads=step.resources.threads)
    return _decide(pipeline, step, inputs, key, KeyIndex(place), choice)


def plan(pipeline: Pipeline, place: Workspace, choice: Choice = ALL) -> list[PlannedStep]:
    """Every step in order, as far as outputs are known without running anything."""
    outputs: dict[str, Mapping[str, Ref]] = {}
    omitted: set[str] = set()
    steps = []
    with modules.looked_at_once():
        for step in pipeline.steps.values():
            planned = resolve(pipeline, step, outputs, omitted, place, choice)
            if planned.action == "skip" and planned.cached:
                outputs[step.name] = planned.cached.outputs
            elif planned.action == "omit":
                omitted.add(step.name)
            steps.append(planned)
    return steps


def _asked(step: Step, choice: Choice) -> bool:
    return choice.only is None or step.name in choice.only


def _decide(
    pipeline: Pipeline, step: Step, inputs: Inputs, key: StepKey, index: KeyIndex, choice: Choice
) -> PlannedStep:
    def planned(action: Action, *reasons: str, cached: StepRun | None = None) -> PlannedStep:
        return PlannedStep(step, inputs, action, reasons, key, cached)

    latest = index.latest(pipeline.name, step.name)
    side_effects = step.definition.cache == "never"
    if not _asked(step, choice):
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
    return planned("run", *_why(key, index, latest))


def _why(key: StepKey, index: KeyIndex, latest: Latest | None) -> list[str]:
    """Why a step has to run that nobody asked to run again."""
    if index.run_ref(key):
        return ["an output is missing from the store"]
    if latest is None:
        return ["never run before"]
    return key.differs_from(latest) or ["it did not finish last time"]


def _condition(step: Step, outputs: Outputs, place: Workspace) -> str | None:
    """Why the step's condition does not hold, or None."""
    if step.condition is None:
        return None
    store, wanted = Store(place), step.condition.verdict
    for name, output in step.when:
        verdict = store.get(outputs[name][output], GateReport).verdict.value
        if verdict not in wanted:
            return f"{name}.{output} is {verdict}; it is run on {' or '.join(wanted)}"
    return None


def _inputs(step: Step, outputs: Outputs, place: Workspace) -> Inputs:
    found: Inputs = {}
    for name, source in step.sources.items():
        if source.champion is None:
            refs = tuple(outputs[above][output] for above, output in source.outputs)
            found[name] = refs if source.many else refs[0]
    known = set(refs_in(found))
    for name, source in step.sources.items():
        if source.champion is not None:
            found[name] = _champion(place, source.champion, known)
    return {name: found[name] for name in step.sources}


def _champion(place: Workspace, model: str, candidates: set[Ref]) -> Ref | None:
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
