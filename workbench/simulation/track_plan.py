"""On-track test plans: what to drive, measure and record for the same cases that are rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from workbench.simulation.cases import Case
from workbench.simulation.play import BrakingModel

__all__ = ()

_TEMPLATE = Path(__file__).with_suffix(".md")
_TARGETS = {
    "adult": "articulated adult dummy on a platform",
    "child": "articulated child dummy on a platform",
    "bicycle": "bicyclist dummy on a platform",
    "motorcycle": "motorcycle target",
    "car": "soft car target",
}
_REPEATS = 3
_WARNED_KMH = 60


def track_plan(cases: Sequence[Case], evidence: Mapping[str, str]) -> str:
    """A Markdown document: set-up, instruments, telemetry, criteria, and a table of runs.

    Args:
        cases: What to drive.
        evidence: What is known of each case so far, by id; missing ones have none.
    """
    text = _TEMPLATE.read_text().format(
        cases=len(cases),
        night=sum(case.light == "night" for case in cases),
        repeats=_REPEATS,
        runs=_REPEATS * len(cases),
        warning=_latest_warning_s(BrakingModel()),
    )
    return text + "".join(f"{_row(case, evidence.get(case.id, 'none'))}\n" for case in cases)


def _row(case: Case, known: str) -> str:
    light = case.light
    lamps = "streetlights" if case.streetlights else "low beam only"
    cells = (
        case.id,
        f"{case.ego_kmh:g}",
        _TARGETS[case.target] + (" behind parked cars" if case.obstructed else ""),
        f"{case.target_kmh:g}",
        f"{case.impact:g} %",
        f"{light}, {lamps}" if light == "night" else light,
        known,
        *[" "] * _REPEATS,
    )
    return f"| {' | '.join(cells)} |"


def _latest_warning_s(braking: BrakingModel) -> float:
    """Seconds before contact that a driver at 60 km/h needs to react and to stop."""
    speed = _WARNED_KMH / 3.6
    return braking.driver_reaction_s + speed / (2 * braking.driver_deceleration_mps2)
