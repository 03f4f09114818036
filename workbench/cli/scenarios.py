"""`workbench scenarios`: test cases as data, rendered, braked for, and planned for the track."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from workbench.cli.common import info, json_option, print_result, progress_bar, resolve_ref
from workbench.core.errors import ParameterError
from workbench.core.text import counted
from workbench.core.types import Json
from workbench.core.workspace import find_workspace

if TYPE_CHECKING:
    from workbench.simulation.cases import Case

__all__ = ()

_range_option = click.option(
    "--range", "range_", type=click.Choice(["standard", "extended"]), help="Only this range."
)
_night_option = click.option("--night", is_flag=True, help="Only cases at night.")


@click.group()
def scenarios() -> None:
    """List, plan and play test cases of crash avoidance. What is rendered is simulated."""


def _chosen(patterns: tuple[str, ...], range_: str | None, night: bool) -> tuple[Case, ...]:
    from workbench.simulation.cases import find_cases

    cases = find_cases(patterns)
    return tuple(
        case
        for case in cases
        if range_ in (None, case.range) and (not night or case.light == "night")
    )


def _evidence() -> dict[str, str]:
    """Evidence of each case that has some; a real replay counts before a rendered one."""
    from workbench.data.incidents import list_incidents
    from workbench.records.evidence_types import ScenarioReport
    from workbench.records.store import Store

    store = Store(find_workspace())
    found: dict[str, str] = {}
    for _, report in store.readable(ScenarioReport):
        found.update(dict.fromkeys((one.case for one in report.results), "simulated"))
    for state in list_incidents(store):
        record = state.record
        if record is not None and record.scenario and state.active and not record.simulated:
            found[record.scenario] = "real replay"
    return found


@scenarios.command("list")
@click.argument("cases", nargs=-1)
@_range_option
@_night_option
@json_option
def list_cases(cases: tuple[str, ...], range_: str | None, night: bool, as_json: bool) -> None:
    """List CASES by id, code or pattern (CP*-night) with their evidence; all without one."""
    found = _evidence()
    chosen = _chosen(cases, range_, night)
    body = {
        "scenarios": [
            {**case.model_dump(mode="json"), "evidence": found.get(case.id, "none")}
            for case in chosen
        ]
    }
    lines = [
        f"{case.id:<38} {case.range:<9} {found.get(case.id, 'none'):<12} {case.title}"
        for case in chosen
    ]
    print_result(body, as_json=as_json, text="\n".join([*lines, f"{len(chosen)} cases"]))


@scenarios.command("show")
@click.argument("case")
@json_option
def show_case(case: str, as_json: bool) -> None:
    """Show what moves how in a case."""
    from workbench.simulation.cases import find_cases
    from workbench.simulation.play import build_scenario

    one = find_cases([case])[0]
    scenario, contact_s = build_scenario(one)
    evidence = _evidence().get(one.id, "none")
    body = {**one.model_dump(mode="json"), "evidence": evidence, "contact_s": round(contact_s, 2)}
    lights = {True: "night with streetlights", False: "night without streetlights"}
    lines = [
        f"{one.id}: {one.title}",
        f"  ego {one.ego_kmh:g} km/h, target {one.target} {one.target_kmh:g} km/h, "
        f"impact at {one.impact:g} % of the ego's width",
        f"  {'day' if one.light == 'day' else lights[one.streetlights]}, {one.function}, "
        f"{one.range} range, evidence: {evidence}",
        f"  rendered: {counted(scenario.frames, 'frame')}, contact after {contact_s:.1f} s",
    ]
    print_result(body, as_json=as_json, text="\n".join(lines))


@scenarios.command("plan")
@click.argument("cases", nargs=-1)
@_range_option
@_night_option
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a plan for the test track to this Markdown file.",
)
@json_option
def plan_cases(
    cases: tuple[str, ...],
    range_: str | None,
    night: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Count the cases and their evidence by code; with -o write an on-track test plan."""
    from workbench.simulation.track_plan import track_plan

    chosen = _chosen(cases, range_, night)
    found = _evidence()
    states = Counter((case.code, found.get(case.id, "none")) for case in chosen)
    rows = [
        {
            "code": code,
            "cases": sum(case.code == code for case in chosen),
            "night": sum(case.code == code and case.light == "night" for case in chosen),
            **{word.replace(" ", "_"): states[code, word] for word in _STATES},
        }
        for code in dict.fromkeys(case.code for case in chosen)
    ]
    if output is not None:
        output.write_text(track_plan(chosen, found))
    total = Counter(found.get(case.id, "none") for case in chosen)
    lines = [f"{'code':<8} {'cases':>5} {'night':>5} {'simulated':>9} {'real':>5} {'none':>5}"]
    lines += [
        f"{row['code']:<8} {row['cases']:>5} {row['night']:>5} {row['simulated']:>9} "
        f"{row['real_replay']:>5} {row['none']:>5}"
        for row in rows
    ]
    lines.append(f"{len(chosen)} cases: " + ", ".join(f"{total[w]} {w}" for w in _STATES))
    lines += [f"wrote {output}"] if output else []
    body = {
        "cases": len(chosen),
        "codes": rows,
        "plan": None if output is None else str(output),
    }
    print_result(body, as_json=as_json, text="\n".join(lines))


_STATES = ("simulated", "real replay", "none")


_threshold_option = click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Score from which a box counts.  [default: the model's]",
)


@scenarios.command("play")
@click.argument("model")
@click.argument("cases", nargs=-1)
@_range_option
@_night_option
@click.option("--limit", type=click.IntRange(1), help="At most this many, spread over the chosen.")
@_threshold_option
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Threads that render."
)
@click.option("--frames", type=click.Path(file_okay=False, path_type=Path), help="Write frames.")
@click.option(
    "--openlabel",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write ASAM OpenLABEL JSON of the rendered targets to this file.",
)
@click.option(
    "--xosc",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Play this OpenSCENARIO XML file instead of the grid.",
)
@json_option
def play(  # noqa: PLR0913, PLR0917 - one an option
    model: str,
    cases: tuple[str, ...],
    range_: str | None,
    night: bool,
    limit: int | None,
    threshold: float | None,
    workers: int,
    frames: Path | None,
    openlabel: Path | None,
    xosc: Path | None,
    as_json: bool,
) -> None:
    """Render CASES, let MODEL find the target, brake for it, and keep the result.

    The result says at what time to collision the target was found and at what speed it is hit.
    It is simulated: no rating, and no evidence of what happens on a road.
    """
    import json

    from workbench.detection.model import Model
    from workbench.records.evidence_types import ScenarioReport
    from workbench.records.store import Store
    from workbench.simulation import openlabel as labels
    from workbench.simulation import openscenario
    from workbench.simulation.play import BrakingModel, play_cases

    workspace = find_workspace()
    if xosc is not None:
        read = openscenario.read_cases(xosc)
        for refusal in read.refused:
            info(f"left out: {refusal}")
        chosen, grid = read.cases, f"OpenSCENARIO {xosc.name}"
    else:
        chosen, grid = _chosen(cases, range_, night), "Euro NCAP 2026"
    if not chosen:
        raise ParameterError("no case can be played", hint="`workbench scenarios list` lists all")
    if limit and len(chosen) > limit:
        chosen = tuple(chosen[round(i * len(chosen) / limit)] for i in range(limit))
    ref = resolve_ref(workspace, model, ("checkpoint", "bundle", "release"))
    opened = Model(workspace, ref)
    braking = BrakingModel(threshold=opened.threshold if threshold is None else threshold)
    with progress_bar("scenarios") as progress:
        played = list(
            play_cases(
                chosen,
                opened.predictor,
                braking,
                workers=workers,
                frames_to=frames,
                progress=progress,
            )
        )
    results = tuple(one.result for one in played)
    report = Store(workspace).put(
        ScenarioReport(model=ref, grid=grid, assumptions=braking.as_json(), results=results)
    )
    if openlabel is not None:
        openlabel.write_text(json.dumps(labels.to_openlabel(played), indent=1))
    outcomes = Counter(one.outcome for one in results)
    lines = [
        f"{one.outcome:<9} {one.case:<38} found {one.found}/{one.visible}"
        + ("" if one.confirmed_s is None else f", confirmed {one.confirmed_s:.1f} s before contact")
        + f", impact {one.impact_kmh:g} of {one.unbraked_kmh:g} km/h"
        for one in results
    ]
    lines.append(
        f"{counted(len(results), 'case')}, simulated: "
        + ", ".join(f"{outcomes[word]} {word}" for word in ("avoided", "mitigated", "hit"))
    )
    body = {
        "report": report,
        "model": ref,
        "evidence": "simulated",
        "outcomes": dict(outcomes),
        "results": [one.model_dump(mode="json") for one in results],
        "assumptions": braking.as_json(),
    }
    print_result(body, as_json=as_json, text="\n".join(lines))


@scenarios.command("perturb")
@click.argument("model")
@click.argument("dataset")
@click.option("--role", default="safety", show_default=True, help="Frames of this role.")
@click.option("--limit", type=click.IntRange(1), help="At most this many frames, spread evenly.")
@click.option("--only", multiple=True, metavar="NAME", help="Only this perturbation; repeat.")
@_threshold_option
@click.option(
    "--deadline",
    type=click.FloatRange(0, min_open=True),
    help="Also measure latency on degraded input, and how often it is above so many ms.",
)
@json_option
def perturb(
    model: str,
    dataset: str,
    role: str,
    limit: int | None,
    only: tuple[str, ...],
    threshold: float | None,
    deadline: float | None,
    as_json: bool,
) -> None:
    """Measure MODEL's miss rate on frames of DATASET with rain, fog, blur, glare and faults.

    Also with the frame before (time_shift) and, for a bundle, INT8 beside its float file.
    """
    from workbench.detection.model import Model
    from workbench.evaluation.perturbations import (
        PERTURBATIONS,
        measure_latency,
        measure_perturbations,
    )
    from workbench.records.dataset import load_dataset
    from workbench.records.store import Store

    workspace = find_workspace()
    ref = resolve_ref(workspace, model, ("checkpoint", "bundle", "release"))
    whole = load_dataset(Store(workspace), resolve_ref(workspace, dataset, ("dataset",)))
    part = whole.role(role)
    if limit and len(part) > limit:
        chosen = {part.frames[round(i * len(part) / limit)].id for i in range(limit)}
        part = part.where(lambda frame: frame.id in chosen)
    names = only or tuple(PERTURBATIONS)
    if ref.startswith("checkpoint/"):
        names = tuple(name for name in names if name != "int8")
    opened = Model(workspace, ref)
    with progress_bar("perturbations") as progress:
        rates = measure_perturbations(
            opened,
            part,
            names,
            history=whole.role(role),
            threshold=threshold,
            progress=progress,
        )
    lines = [
        f"{'':<12} {'part':<4} {'frames':>6} {'drives':>6} {'labels':>6} {'clean':>6} "
        f"{'with':>6}  difference"
    ]
    lines += [
        f"{one.name:<12} {one.part:<4} {one.frames:>6} {one.drives:>6} {one.labels:>6} "
        f"{one.clean:>6.3f} {one.perturbed:>6.3f}  {one.perturbed - one.clean:+.3f} "
        f"({one.low:+.3f} to {one.high:+.3f})"
        for one in rates
    ]
    for name in sorted(set(names) - {one.name for one in rates}):
        lines.append(f"{name:<12} no frame has one before it within 0.5 s")
    lines.append("miss rate at IoU 0.5; intervals 95 %, over drives; perturbations are simulated")
    body: Json = {"model": ref, "frames": len(part), "rates": [vars(one) for one in rates]}
    if deadline is not None:
        latency = measure_latency(opened, part, deadline_ms=deadline)
        lines += [f"latency here, late from {deadline:g} ms:", *(one.line() for one in latency)]
        body["latency"] = [vars(one) for one in latency]
    print_result(body, as_json=as_json, text="\n".join(lines))
