"""Play test cases: render them as sequences, and brake for what a detector finds in time.

The sequence shows the approach without braking. What the detector finds in it feeds a braking
model, so the result says what an ideal controller would have done with these detections. All of it
is simulated; no result is a rating of Euro NCAP.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.text import short_repr
from workbench.core.types import Json, Progress
from workbench.detection.boxes import CONFIDENCE_THRESHOLD, iou_matrix
from workbench.detection.predictor import Predictor
from workbench.records.evidence_types import ScenarioResult
from workbench.simulation.cases import Case
from workbench.simulation.scenario import Actor, Pose, Road, Scenario, Waypoint
from workbench.simulation.scenario import Path as ActorPath

__all__ = ["BrakingModel", "PlayedCase", "play_cases", "render_case"]

EGO_LENGTH_M, EGO_WIDTH_M = 4.4, 1.8
CAMERA_TO_FRONT_M = 1.7
"""The renderer's ego position is that of its camera, behind the windscreen."""
_HORIZON_S = 4.0
_AFTER_S = 0.1
_FRAME_RATE = 10.0
_LANE_M = 1.75
_TURN_RADIUS_M, _TURN_DEG = 12.0, 45.0
_STEP_S = 0.01
_SIZES = {  # length and width, m
    "adult": (0.6, 0.5),
    "child": (0.5, 0.4),
    "bicycle": (1.8, 0.5),
    "motorcycle": (2.1, 0.7),
    "car": (4.0, 1.7),
}
_SHAPES = {"adult": "adult", "child": "child", "bicycle": "bicycle", "motorcycle": "motorcycle"}
_CLASSES = {
    "adult": ("pedestrian", "person"),
    "child": ("pedestrian", "person"),
    "bicycle": ("cyclist", "rider", "bicycle"),
    "motorcycle": ("motorcycle", "rider"),
    "car": ("car",),
}
"""Names under which schemas know each target; a box of one of them counts."""
TARGET = "target"
_Xyxy = tuple[float, float, float, float]


@dataclass(frozen=True)
class BrakingModel:
    """What a car does with detections. Every number is this project's own assumption.

    Attributes:
        threshold: Score from which a box counts.
        iou: Overlap with the rendered target from which a box is the target's.
        confirm_frames: Frames in a row in which the target has to be found, at 10 per second.
        latency_s: From the last of them until brakes or warning act.
        brake_ttc_s: The car never brakes earlier than this before contact.
        warn_ttc_s: The same for a warning.
        ramp_s: Time in which the deceleration builds up.
        deceleration_mps2: Of automatic braking on a dry road.
        driver_reaction_s: From a warning until the driver brakes.
        driver_deceleration_mps2: Of a warned driver.
    """

    threshold: float = CONFIDENCE_THRESHOLD
    iou: float = 0.3
    confirm_frames: int = 3
    latency_s: float = 0.2
    brake_ttc_s: float = 1.5
    warn_ttc_s: float = 3.2
    ramp_s: float = 0.3
    deceleration_mps2: float = 8.0
    driver_reaction_s: float = 1.2
    driver_deceleration_mps2: float = 5.0

    def as_json(self) -> Json:
        """The assumptions, and those of the renderer."""
        return {
            "braking": asdict(self),
            "renderer": {
                "frames_per_second": _FRAME_RATE,
                "seconds_before_contact": _HORIZON_S,
                "ego_m": [EGO_LENGTH_M, EGO_WIDTH_M],
                "weather": "clear, dry",
                "not_rendered": "junctions, road markings of the test track, dummies' shapes",
            },
        }


@short_repr
@dataclass(frozen=True)
class PlayedCase:
    """A case, its scenario, and the result.

    Attributes:
        contact_s: Time of contact in the sequence, without braking.
        targets: Per frame, the target's rendered box xyxy, pixels; None where it is hidden.
        found: Per frame, score of the box that found the target; 0 without one.
    """

    case: Case
    scenario: Scenario
    contact_s: float
    targets: tuple[_Xyxy | None, ...]
    found: tuple[float, ...]
    result: ScenarioResult


@dataclass(frozen=True, eq=False)
class RenderedCase:
    """Images uint8 RGB of a case, and the target's box xyxy in each; None where it is hidden."""

    images: list[NDArray[np.uint8]]
    targets: list[_Xyxy | None]


def build_scenario(case: Case) -> tuple[Scenario, float]:
    """The scenario of a case, and the time of contact in it without braking."""
    ego_mps, target_mps = case.ego_kmh / 3.6, case.target_kmh / 3.6
    length, width = _SIZES[case.target]
    contact_s = _HORIZON_S
    if case.motion == "braking":
        contact_s = 1.0 + _closing_time(case, ego_mps)
    front = ego_mps * contact_s + CAMERA_TO_FRONT_M
    offset = EGO_WIDTH_M * (case.impact / 100 - 0.5)  # from the ego's middle, to the left
    ego_path: ActorPath = ()
    end = contact_s + 1.0
    match case.motion:
        case "crossing":
            path = _crossing(case, front + width / 2, offset, contact_s, end)
        case "along":
            at = front + length / 2
            path = _steady(at, -_LANE_M + offset, target_mps, contact_s, end)
        case "oncoming":
            at = front + length / 2
            path = _steady(at, -_LANE_M + offset, -target_mps, contact_s, end)
        case "braking":
            path = _braking(case, ego_mps, length, -_LANE_M + offset, end)
        case "turning":
            ego_path, pose = _turn(ego_mps, contact_s, end)
            reach_s = pose.s_m + CAMERA_TO_FRONT_M * math.cos(pose.heading_rad)
            reach_d = pose.d_m + CAMERA_TO_FRONT_M * math.sin(pose.heading_rad)
            path = _steady(reach_s + length / 2, reach_d, -target_mps, contact_s, end)
    seed = int(digest.of_bytes(case.id.encode())[:8], 16)
    cls = {"bicycle": "cyclist", "car": "car", "motorcycle": "motorcycle"}.get(
        case.target, "pedestrian"
    )
    shape = _SHAPES.get(case.target, "hatchback")
    actors = [Actor(TARGET, cls, shape, path, None, seed % (1 << 20))]
    if case.obstructed:
        actors += _parked_cars(front + width / 2, seed)
    scenario = Scenario(
        drive=case.id,
        seed=seed,
        light=case.light,
        road=Road(
            surroundings="avenue" if case.light == "day" or case.streetlights else "country",
            parking=case.obstructed,
        ),
        ego_speed_mps=ego_mps,
        ego_d_m=-_LANE_M,
        ego_path=ego_path,
        duration_s=contact_s + _AFTER_S,
        frame_rate=_FRAME_RATE,
        actors=tuple(actors),
    )
    return scenario, contact_s


def _steady(s_m: float, d_m: float, speed: float, contact_s: float, end: float) -> ActorPath:
    """A target in its lane that is at ``s_m`` at contact."""
    if speed == 0:
        return (Waypoint(0.0, s_m, d_m),)
    return (
        Waypoint(0.0, s_m - speed * contact_s, d_m),
        Waypoint(end, s_m + speed * (end - contact_s), d_m),
    )


def _crossing(case: Case, s_m: float, offset: float, contact_s: float, end: float) -> ActorPath:
    """A target from the side; people first stand 4 m (near side) or 6 m (far side) away."""
    speed = case.target_kmh / 3.6
    from_right = case.side != "farside"
    way = 1.0 if from_right else -1.0
    meets = -_LANE_M + way * offset
    start = meets - way * speed * contact_s
    if case.target in ("adult", "child"):
        stands = -_LANE_M - way * (4.0 if from_right else 6.0)
        starts_s = contact_s - abs(meets - stands) / speed
        if starts_s > 0:
            return (
                Waypoint(-1.0, s_m, stands - way * 1e-3),
                Waypoint(starts_s, s_m, stands),
                Waypoint(end, s_m, stands + way * speed * (end - starts_s)),
            )
    return (
        Waypoint(0.0, s_m, start),
        Waypoint(end, s_m, start + way * speed * end),
    )


def _closing_time(case: Case, speed: float) -> float:
    """Seconds from the target's braking until an ego that doesn't brake reaches it."""
    gap, a = case.headway_s * speed, -case.target_mps2
    while_moving = math.sqrt(2 * gap / a)
    if while_moving <= speed / a:
        return while_moving
    return (gap + speed**2 / (2 * a)) / speed


def _braking(case: Case, speed: float, length: float, d_m: float, end: float) -> ActorPath:
    """A target ahead at a headway that brakes to a stop after one second."""
    a = -case.target_mps2
    start = case.headway_s * speed + CAMERA_TO_FRONT_M + length / 2

    def position(time_s: float) -> float:
        braked = min(max(time_s - 1.0, 0.0), speed / a)
        return start + speed * min(time_s, 1.0) + speed * braked - a * braked**2 / 2

    times = np.arange(0.0, end + 0.05, 0.05).tolist()
    return tuple(Waypoint(t, position(t), d_m) for t in times)


def _turn(speed: float, contact_s: float, end: float) -> tuple[ActorPath, Pose]:
    """The ego drives straight, then turns left on an arc; its path, and its pose at contact."""
    arc_m = _TURN_RADIUS_M * math.radians(_TURN_DEG)
    straight_m = max(speed * contact_s - arc_m, 0.0)

    def pose(time_s: float) -> Pose:
        way = speed * time_s
        turned = max(way - straight_m, 0.0) / _TURN_RADIUS_M
        s = min(way, straight_m) + _TURN_RADIUS_M * math.sin(turned)
        d = -_LANE_M + _TURN_RADIUS_M * (1 - math.cos(turned))
        return Pose(s, d, turned, speed, way)

    times = np.arange(0.0, end + 0.05, 0.05).tolist()
    path = tuple(Waypoint(t, (p := pose(t)).s_m, p.d_m) for t in times)
    return path, pose(contact_s)


def _parked_cars(s_m: float, seed: int) -> Iterator[Actor]:
    """Two cars at the near side, the front one just before the target's line."""
    for number, (behind, shape) in enumerate(((2.9, "suv"), (8.9, "hatchback"))):
        spot = (Waypoint(0.0, s_m - behind, -_LANE_M - 2.9),)
        yield Actor(f"parked-{number}", "car", shape, spot, 0.0, seed % 1000 + number)


def render_case(case: Case) -> RenderedCase:
    """Render the sequence of a case, 10 frames a second until contact."""
    import cv2

    from workbench.simulation.rendering import render_frame

    cv2.setNumThreads(1)
    scenario, _ = build_scenario(case)
    images, targets = [], []
    for index in range(scenario.frames):
        frame = render_frame(scenario, index)
        box = next((one for one in frame.boxes if one.track == TARGET), None)
        images.append(frame.image)
        targets.append(None if box is None else (box.x, box.y, box.x + box.w, box.y + box.h))
    return RenderedCase(images, targets)


def play_cases(
    cases: Sequence[Case],
    predictor: Predictor,
    braking: BrakingModel | None = None,
    *,
    workers: int = 1,
    frames_to: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[PlayedCase]:
    """Render cases, let a detector find the target, and brake for it.

    Args:
        cases: Which.
        predictor: The detector.
        braking: What the car does.
        workers: Cases that are rendered at a time, while the detector looks at the one before.
        frames_to: Folder for the frames, with the target's box and what was found.
        progress: Called with the cases done and their total.
    """
    braking = braking or BrakingModel()
    for done, (case, rendered) in enumerate(_render_all(cases, workers), start=1):
        found = [
            _score_on_target(predictor, image, target, case, braking)
            for image, target in zip(rendered.images, rendered.targets, strict=True)
        ]
        if frames_to is not None:
            _write_frames(frames_to / case.id.replace("%", "pct"), rendered, found, braking)
        if progress:
            progress(done, len(cases))
        yield judge_case(case, rendered.targets, found, braking)


def _render_all(cases: Sequence[Case], workers: int) -> Iterator[tuple[Case, RenderedCase]]:
    """Each case with its images; only the next ones are rendered meanwhile, to keep memory low."""
    with ThreadPoolExecutor(workers, thread_name_prefix="render") as pool:
        ahead: deque[tuple[Case, Future[RenderedCase]]] = deque()
        for case in cases:
            ahead.append((case, pool.submit(render_case, case)))
            if len(ahead) > workers:
                first, rendered = ahead.popleft()
                yield first, rendered.result()
        for first, rendered in ahead:
            yield first, rendered.result()


def _score_on_target(
    predictor: Predictor,
    image: NDArray[np.uint8],
    target: _Xyxy | None,
    case: Case,
    braking: BrakingModel,
) -> float:
    """Best score of a box of the target's class on the target; 0 without one."""
    if target is None:
        return 0.0
    found = predictor.predict([image])[0].above(braking.threshold)
    if not len(found):
        return 0.0
    names = [predictor.classes[cls] for cls in found.classes.tolist()]
    overlaps = iou_matrix(np.array([target], np.float32), found.boxes)[0]
    scores = [
        score
        for name, overlap, score in zip(
            names, overlaps.tolist(), found.scores.tolist(), strict=True
        )
        if name in _CLASSES[case.target] and overlap >= braking.iou
    ]
    return max(scores, default=0.0)


def judge_case(
    case: Case, targets: Sequence[_Xyxy | None], found: Sequence[float], braking: BrakingModel
) -> PlayedCase:
    """The outcome of a case, from the frames in which the target is visible and found.

    Args:
        targets: Per frame, the target's box in the image; None where it is hidden.
        found: Per frame, score of the box that found it; 0 without one.
    """
    scenario, contact_s = build_scenario(case)
    times = [scenario.time_s(index) for index in range(len(found))]
    confirmed = None
    run = 0
    for time_s, score in zip(times, found, strict=True):
        run = run + 1 if score > 0 else 0
        if run >= braking.confirm_frames and time_s <= contact_s:
            confirmed = time_s
            break
    starts_s = math.inf
    if confirmed is not None and case.function == "AEB":
        starts_s = max(confirmed + braking.latency_s, contact_s - braking.brake_ttc_s)
    elif confirmed is not None:
        warned = max(confirmed + braking.latency_s, contact_s - braking.warn_ttc_s)
        starts_s = warned + braking.driver_reaction_s
    hardest = (
        braking.deceleration_mps2 if case.function == "AEB" else braking.driver_deceleration_mps2
    )
    unbraked = _impact_mps(case, scenario, math.inf, hardest, braking.ramp_s)
    impact = _impact_mps(case, scenario, starts_s, hardest, braking.ramp_s)
    visible = [one is not None for one in targets]
    first = next((t for t, seen in zip(times, visible, strict=True) if seen), None)
    result = ScenarioResult(
        case=case.id,
        frames=len(found),
        visible=sum(visible),
        found=sum(score > 0 for score in found),
        first_s=None if first is None else round(contact_s - first, 2),
        confirmed_s=None if confirmed is None else round(contact_s - confirmed, 2),
        outcome="avoided" if impact == 0 else "mitigated" if impact < unbraked else "hit",
        impact_kmh=round(impact * 3.6, 1),
        unbraked_kmh=round(unbraked * 3.6, 1),
    )
    return PlayedCase(case, scenario, contact_s, tuple(targets), tuple(found), result)


def _impact_mps(
    case: Case, scenario: Scenario, starts_s: float, hardest: float, ramp_s: float
) -> float:
    """Closing speed at the first contact of the two rectangles, in steps of 10 ms; 0 without one.

    The ego keeps its path and brakes along it; the target does what it does anyway.
    """
    target = scenario.actors[0]
    size = _SIZES[case.target]
    speed, way, time_s = scenario.ego_speed_mps, 0.0, 0.0
    end = target.path[-1].time_s if len(target.path) > 1 else scenario.duration_s + 20.0
    while time_s < end + 8.0 and speed > 0:
        ego = scenario.ego(way / scenario.ego_speed_mps)
        pose = target.pose(min(time_s, end)) or Pose(1e9, 0, 0, 0)
        if _touching(ego, pose, size):
            ahead = pose.speed_mps * math.cos(pose.heading_rad - ego.heading_rad)
            return max(speed - ahead, 0.0)
        share = min(max((time_s - starts_s) / ramp_s, 0.0), 1.0) if starts_s < time_s else 0.0
        speed = max(speed - hardest * share * _STEP_S, 0.0)
        way += speed * _STEP_S
        time_s += _STEP_S
        if case.motion in ("along", "braking") and share and speed <= pose.speed_mps:
            return 0.0  # as slow as the target ahead: no contact any more
    return 0.0


def _touching(ego: Pose, target: Pose, size: tuple[float, float]) -> bool:
    """Whether the rectangles of ego and target overlap (separating axes)."""
    middle = CAMERA_TO_FRONT_M - EGO_LENGTH_M / 2
    centre = (
        ego.s_m + middle * math.cos(ego.heading_rad),
        ego.d_m + middle * math.sin(ego.heading_rad),
    )
    apart = (target.s_m - centre[0], target.d_m - centre[1])
    ego_half = (EGO_LENGTH_M / 2, EGO_WIDTH_M / 2)
    half = (size[0] / 2, size[1] / 2)
    turn = target.heading_rad - ego.heading_rad
    c, s = abs(math.cos(turn)), abs(math.sin(turn))
    for heading, own, other in (
        (ego.heading_rad, ego_half, half),
        (target.heading_rad, half, ego_half),
    ):
        along = apart[0] * math.cos(heading) + apart[1] * math.sin(heading)
        across = -apart[0] * math.sin(heading) + apart[1] * math.cos(heading)
        if abs(along) > own[0] + c * other[0] + s * other[1] + 1e-9:
            return False
        if abs(across) > own[1] + s * other[0] + c * other[1] + 1e-9:
            return False
    return True


def _write_frames(
    folder: Path, rendered: RenderedCase, found: Sequence[float], braking: BrakingModel
) -> None:
    """JPEGs with the target's box: green where it was found, red where it was missed."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    for index, (image, target, score) in enumerate(
        zip(rendered.images, rendered.targets, found, strict=True)
    ):
        drawn = image[:, :, ::-1].copy()
        if target is not None:
            colour = (0, 200, 0) if score else (0, 0, 230)
            x0, y0, x1, y1 = (round(v) for v in target)
            cv2.rectangle(drawn, (x0, y0), (x1, y1), colour, 1)
            text = f"{score:.2f}" if score else "missed"
            cv2.putText(drawn, text, (x0, max(y0 - 3, 10)), 0, 0.4, colour, 1, cv2.LINE_AA)
        cv2.putText(drawn, "simulated", (6, 14), 0, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        cv2.imwrite(str(folder / f"{index:03d}.jpg"), drawn)
