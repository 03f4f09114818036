"""The grid of test cases, and what is made of each: scenario, outcome, documents."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from workbench.core.errors import DataError, ParameterError
from workbench.detection.families import Detections
from workbench.simulation import openscenario, track_plan
from workbench.simulation.cases import Case, all_cases, find_cases, load_cases
from workbench.simulation.openlabel import to_openlabel
from workbench.simulation.play import (
    CAMERA_TO_FRONT_M,
    EGO_WIDTH_M,
    BrakingModel,
    build_scenario,
    judge_case,
    play_cases,
    render_case,
)

MODEL = BrakingModel()
BOX = (10.0, 10.0, 30.0, 60.0)


def test_the_grid_has_the_cases_that_the_protocol_has():
    started = time.process_time()
    cases = load_cases(Path(track_plan.__file__).with_name("euro_ncap.yaml"))
    assert time.process_time() - started < 5  # 0.2 s; the limit is for a loaded machine
    assert Counter(case.range for case in cases) == {"standard": 428, "extended": 435}
    assert sum(case.light == "night" for case in cases) == 118
    assert len({case.id for case in cases}) == 863


def test_ids_name_what_varies():
    (case,) = find_cases(["CPNA-20kmh-50%-night"])
    assert (case.ego_kmh, case.target_kmh, case.streetlights) == (20, 5, True)
    (case,) = find_cases(["CCCscp-20kmh-target30kmh-nearside"])
    assert (case.target_kmh, case.side) == (30, "nearside")
    assert {case.code for case in find_cases(["C?LA*-night*"])} == {"CPLA"}
    assert len(find_cases(["CPFA"])) == 60
    with pytest.raises(ParameterError, match="no scenario 'CPNA-20kmh-50%-nihgt'") as error:
        find_cases(["CPNA-20kmh-50%-nihgt"])
    assert "CPNA-20kmh-50%-night" in str(error.value.hint)


def test_two_cases_with_one_id_are_refused(tmp_path: Path):
    grid = tmp_path / "grid.yaml"
    row = "{range: standard, ego_kmh: [10], target_kmh: 5}"
    head = "schema_version: 1\nversion: x\nfamilies:\n"
    body = f"  - {{code: A, title: a, target: car, motion: along, grids: [{row}, {row}]}}\n"
    grid.write_text(head + body)
    with pytest.raises(ParameterError, match="two cases are A-10kmh"):
        load_cases(grid)
    grid.write_text(head + body.replace("motion: along", "motion: flying"))
    with pytest.raises(ParameterError, match="cannot be read"):
        load_cases(grid)


def one_of_each() -> list[Case]:
    return list({case.code: case for case in all_cases()}.values())


@pytest.mark.parametrize("case", one_of_each(), ids=lambda case: case.code)
def test_without_braking_every_kind_of_case_ends_in_contact_at_its_time(case: Case):
    played = judge_case(case, *frames_of(case, []), MODEL)
    assert played.result.outcome == "hit"
    assert played.result.impact_kmh == played.result.unbraked_kmh > 0
    # The ego's front is at the target when the sequence says so.
    scenario, contact_s = build_scenario(case)
    ego, target = scenario.ego(contact_s), scenario.actors[0].pose(contact_s)
    front = (
        ego.s_m + CAMERA_TO_FRONT_M * math.cos(ego.heading_rad),
        ego.d_m + CAMERA_TO_FRONT_M * math.sin(ego.heading_rad),
    )
    assert math.dist(front, (target.s_m, target.d_m)) < 3.3


@pytest.mark.parametrize("impact", [10, 25, 50, 75, 90])
def test_a_crossing_target_meets_the_front_where_the_case_says(impact: int):
    for code, right in (("CPNA", True), ("CPFA", False)):
        case = find_cases([f"{code}-30kmh-{impact}%-day"])[0]
        scenario, contact_s = build_scenario(case)
        left = scenario.actors[0].pose(contact_s).d_m - scenario.ego_d_m
        covered = left + EGO_WIDTH_M / 2 if right else EGO_WIDTH_M / 2 - left
        assert covered / EGO_WIDTH_M * 100 == pytest.approx(impact, abs=1e-6)


def frames_of(case: Case, found: list[int]) -> tuple[list[tuple[float, ...]], list[float]]:
    """The target in view on every frame, and found in those numbered."""
    count = build_scenario(case)[0].frames
    return [BOX] * count, [0.9 if index in found else 0.0 for index in range(count)]


def closed_form_kmh(speed_kmh: float, starts_before_s: float) -> float:
    """Impact speed at a standing target: a ramp to the deceleration, then constant."""
    v, gap = speed_kmh / 3.6, speed_kmh / 3.6 * starts_before_s
    ramp, a = MODEL.ramp_s, MODEL.deceleration_mps2
    gap -= v * ramp - a * ramp**2 / 6
    v -= a * ramp / 2
    return 3.6 * math.sqrt(max(v**2 - 2 * a * gap, 0.0))


@pytest.mark.parametrize("ego", [20, 50])
def test_braking_for_a_standing_car_follows_the_closed_form(ego: int):
    case = find_cases([f"CCRs-{ego}kmh-50%"])[0]
    contact = round(build_scenario(case)[1] * 10)
    # Confirmed 0.8 s before contact: brakes act at 0.6 s.
    last = contact - 8
    played = judge_case(case, *frames_of(case, [last - 2, last - 1, last]), MODEL)
    assert played.result.confirmed_s == pytest.approx(0.8)
    expected = closed_form_kmh(ego, 0.6)
    assert played.result.impact_kmh == pytest.approx(expected, abs=0.6)
    assert played.result.outcome == ("avoided" if expected == 0 else "mitigated")


def test_a_target_must_be_found_in_frames_in_a_row_and_in_time():
    case = find_cases(["CPNA-40kmh-50%-night"])[0]
    count = build_scenario(case)[0].frames
    early = judge_case(case, *frames_of(case, list(range(count))), MODEL).result
    assert (early.outcome, early.impact_kmh) == ("avoided", 0)
    gaps = [index for index in range(count) if index % 3]
    assert judge_case(case, *frames_of(case, gaps), MODEL).result.confirmed_s is None
    late = judge_case(case, *frames_of(case, [36, 37, 38, 39]), MODEL).result
    assert late.outcome in ("mitigated", "hit") and late.impact_kmh > 30
    assert early.first_s == 4.0


def test_a_warned_driver_brakes_later_than_the_car():
    warned = find_cases(["CPLA-60kmh-25%-day-fcw"])[0]
    count = build_scenario(warned)[0].frames
    result = judge_case(warned, *frames_of(warned, list(range(count))), MODEL).result
    assert result.outcome == "avoided"
    late = judge_case(warned, *frames_of(warned, list(range(25, count))), MODEL).result
    braked = find_cases(["CPLA-60kmh-25%-day"])[0]
    by_car = judge_case(braked, *frames_of(braked, list(range(25, count))), MODEL).result
    assert late.impact_kmh > by_car.impact_kmh


class Finder:
    """Returns the boxes it was given, whatever the image shows."""

    classes = ("car", "pedestrian")

    def __init__(self, boxes: list[tuple[float, ...] | None], cls: int = 1) -> None:
        self.boxes, self.cls = list(boxes), cls

    def predict(self, images: list[np.ndarray]) -> list[Detections]:
        box = self.boxes.pop(0)
        rows = np.array([box or (0, 0, 1, 1)], np.float32)
        return [Detections(rows, np.array([0.8], np.float32), np.array([self.cls]))]


@pytest.fixture(scope="module")
def child() -> tuple[Case, object]:
    """A child behind parked cars, rendered once."""
    case = find_cases(["CPNCO-60kmh-50%-night"])[0]
    return case, render_case(case)


def test_a_child_behind_parked_cars_is_seen_late_and_at_night(child):
    _, rendered = child
    seen = [target is not None for target in rendered.targets]
    assert not any(seen[:10]) and all(seen[-8:])
    assert np.mean([image.mean() for image in rendered.images]) < 60  # a dark scene
    assert len(rendered.images) == len(seen)


def check_openlabel(document):
    """Check the structure of an OpenLABEL document as far as it is written here."""

    def require(condition, what):
        if not condition:
            raise DataError(f"not valid OpenLABEL: {what}")

    require(set(document) == {"openlabel"}, "the root is not `openlabel`")
    body = document["openlabel"]
    require(body.get("metadata", {}).get("schema_version") == "1.0.0", "schema_version")
    objects, frames = body.get("objects", {}), body.get("frames", {})
    for identity, one in objects.items():
        require({"name", "type"} <= set(one), f"object {identity} lacks a name or type")
    for tag in body.get("tags", {}).values():
        require(tag.get("ontology_uid") in body.get("ontologies", {}), "a tag without ontology")
    numbers = [int(key) for key in frames]
    require(numbers == sorted(set(numbers)), "frames are not in order")
    for interval in body.get("frame_intervals", []):
        first, last = interval["frame_start"], interval["frame_end"]
        require(not numbers or (first, last) == (numbers[0], numbers[-1]), "frame_intervals")
    for number, frame in frames.items():
        for identity, held in frame.get("objects", {}).items():
            require(identity in objects, f"frame {number} has an unknown object {identity}")
            for box in held["object_data"].get("bbox", []):
                value = box.get("val", [])
                fine = len(value) == 4 and value[2] > 0 and value[3] > 0
                require(fine and "name" in box, f"frame {number} has an invalid bbox")


def test_played_cases_find_boxes_of_the_right_class_on_the_target(child, monkeypatch, tmp_path):
    case, rendered = child
    monkeypatch.setattr("workbench.simulation.play.render_case", lambda _: rendered)
    visible = [target for target in rendered.targets if target]
    (right,) = play_cases([case], Finder(visible), workers=1, frames_to=tmp_path)
    assert right.result.found == right.result.visible == len(visible)
    assert len(list((tmp_path / "CPNCO-60kmh-50pct-night").iterdir())) == len(rendered.images)
    (other,) = play_cases([case], Finder(visible, cls=0), workers=1)
    (aside,) = play_cases([case], Finder([None] * len(visible)), workers=1)
    assert other.result.found == aside.result.found == 0
    document = to_openlabel([right, other])
    check_openlabel(document)
    frames = document["openlabel"]["frames"]
    assert len(frames) == 2 * len(rendered.images)
    last = frames[str(len(rendered.images) - 1)]["objects"]["0"]["object_data"]["bbox"][0]
    x0, y0, x1, y1 = rendered.targets[-1]
    assert last["val"] == pytest.approx([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], abs=0.01)
    del document["openlabel"]["objects"]["1"]
    with pytest.raises(DataError, match="unknown object 1"):
        check_openlabel(document)


def test_cases_are_rendered_only_a_little_ahead(child, monkeypatch):
    """All images of the grid at once would take gigabytes."""
    case, rendered = child
    started = []
    monkeypatch.setattr(
        "workbench.simulation.play.render_case", lambda one: started.append(one) or rendered
    )
    boxes = [target for target in rendered.targets if target]
    played = play_cases([case] * 9, Finder(boxes * 9), workers=2)
    counts = []
    for _ in played:
        counts.append(len(started))
    assert counts[0] <= 3 and counts[-1] == len(started) == 9


def test_a_turning_ego_sees_the_road_turn():
    case = find_cases(["CCFtap-20kmh-target45kmh"])[0]
    scenario, contact_s = build_scenario(case)
    headings = [math.degrees(scenario.ego(t).heading_rad) for t in (0.0, contact_s - 0.01)]
    assert headings[0] == 0 and headings[1] > 40


def test_the_track_plan_names_criteria_and_what_is_known():
    cases = find_cases(["CPNA-20kmh-50%-night", "CCRs-40kmh-0%"])
    text = track_plan.track_plan(cases, {"CCRs-40kmh-0%": "simulated"})
    assert "2 cases, 1 at night, 3 valid runs each: 6 runs" in text
    assert "| CCRs-40kmh-0% | 40 | soft car target | 0 | 0 % | day | simulated |" in text
    assert "night, streetlights" in text and "A case passes if" in text


VARIATION = """<OpenSCENARIO><FileHeader revMajor="1" revMinor="3"/>
<ParameterValueDistribution><Deterministic>
 <DeterministicSingleParameterDistribution parameterName="Scenario_ID"><DistributionSet>
  <Element value="{code}"/></DistributionSet></DeterministicSingleParameterDistribution>
 <DeterministicSingleParameterDistribution parameterName="Ego_speed_kph">
  <DistributionRange stepWidth="10"><Range lowerLimit="10" upperLimit="30"/></DistributionRange>
 </DeterministicSingleParameterDistribution>
 <DeterministicMultiParameterDistribution><ValueSetDistribution>
  <ParameterValueSet><ParameterAssignment parameterRef="LightingConditions" value="Night"/>
   <ParameterAssignment parameterRef="{more}" value="50"/></ParameterValueSet>
  <ParameterValueSet><ParameterAssignment parameterRef="LightingConditions" value="Sunny"/>
   <ParameterAssignment parameterRef="{more}" value="33"/></ParameterValueSet>
 </ValueSetDistribution></DeterministicMultiParameterDistribution>
</Deterministic></ParameterValueDistribution></OpenSCENARIO>"""

STORY = """<OpenSCENARIO><FileHeader revMajor="1" revMinor="2"/><Entities>
<ScenarioObject name="Ego"><Vehicle vehicleCategory="car"/></ScenarioObject>
<ScenarioObject name="P"><Pedestrian/></ScenarioObject></Entities>
<Storyboard><Init><Actions>
<Private entityRef="Ego"><PrivateAction><TeleportAction><Position>
 <WorldPosition x="0" y="0" h="0"/></Position></TeleportAction></PrivateAction>
 <PrivateAction><LongitudinalAction><SpeedAction><SpeedActionTarget>
 <AbsoluteTargetSpeed value="10"/></SpeedActionTarget></SpeedAction></LongitudinalAction>
 </PrivateAction></Private>
<Private entityRef="P"><PrivateAction><TeleportAction><Position>
 <WorldPosition x="40" y="{y}" h="1.5708"/></Position></TeleportAction></PrivateAction>
 <PrivateAction><LongitudinalAction><SpeedAction><SpeedActionTarget>
 <AbsoluteTargetSpeed value="1.5"/></SpeedActionTarget></SpeedAction></LongitudinalAction>
 </PrivateAction></Private>
</Actions></Init>{story}</Storyboard></OpenSCENARIO>"""


def read(tmp_path: Path, text: str) -> openscenario.ReadScenarios:
    path = tmp_path / "case.xosc"
    path.write_text(text)
    return openscenario.read_cases(path)


def test_openscenario_variations_become_cases(tmp_path: Path):
    found = read(tmp_path, VARIATION.format(code="CPNA", more="ImpactLocation"))
    assert not found.refused
    ids = [case.id for case in found.cases]
    assert ids[0] == "CPNA-10kmh-50%-night" and "CPNA-20kmh-33%-day-other" in ids
    assert len(ids) == 6


def test_an_openscenario_storyboard_with_straight_motion_is_played(tmp_path: Path):
    (case,) = read(tmp_path, STORY.format(y="-6", story="")).cases
    assert (case.motion, case.side, case.target) == ("crossing", "nearside", "adult")
    assert case.impact == pytest.approx(50, abs=0.1)  # 6 m at 1.5 m/s take 4 s, as 40 m do
    assert judge_case(case, *frames_of(case, []), MODEL).result.outcome == "hit"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (VARIATION.format(code="CPXX", more="ImpactLocation"), "'CPXX' is not in the grid"),
        (VARIATION.format(code="CPNA", more="Mood"), "parameter Mood: not known"),
        (STORY.format(y="-20", story=""), "do not meet"),
        (STORY.format(y="-6", story="<Story><Event/></Story>"), "only motion from Init"),
        (STORY.format(y="$y", story=""), "expressions are not evaluated"),
    ],
)
def test_what_is_not_played_is_refused_with_the_reason(tmp_path: Path, text: str, words: str):
    found = read(tmp_path, text)
    assert not found.cases
    assert any(words in reason for reason in found.refused), found.refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><OpenSCENARIO/>', "document type"),
        ("<OpenDRIVE/>", "its root is OpenDRIVE"),
        ("<OpenSCENARIO", "not XML"),
        ('<OpenSCENARIO><FileHeader revMajor="2"/></OpenSCENARIO>', "only OpenSCENARIO XML 1.x"),
    ],
)
def test_other_files_are_errors(tmp_path: Path, text: str, words: str):
    with pytest.raises(DataError, match=words):
        read(tmp_path, text)
