"""How long until an object is detected, and how far away in time it then is.

Only drives with video can tell: frames in order, with times, at most 1 s apart, whose labels carry
track ids. An object counts as detected when its label is matched on three frames of the video in a
row (stable: one lucky frame is not enough), at the time of the third, so that the shortest delay
is two frame intervals.

Time to collision comes from growth alone and needs no camera: an object that comes nearer at
constant speed grows in the image with ``dh/dt = h / TTC``, so TTC is the inverse slope of the
logarithm of its height (Lee, "A theory of visual control of braking based on information about
time-to-collision", Perception 5, 1976). The heights are those of labels within 0.5 s, fitted by
least squares; boxes that touch the image border are left out, because they do not grow with the
object.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from workbench.core.text import counted
from workbench.data import resampling
from workbench.data.slices import ALL_FRAMES
from workbench.evaluation.matching import Floats, match_slice
from workbench.evaluation.metrics import Evaluation, estimate, ratio_samples
from workbench.evaluation.results import ALL_CLASSES, Estimate
from workbench.records.base import FrozenModel
from workbench.records.frames import Frame, Label

__all__ = ()

_STABLE_FRAMES = 3
_MAX_GAP_S = 1.0
_WINDOW_S = 0.5
_MAX_TTC_S = 30.0
"""Slower growth is not an approach that a box a few pixels high can show."""


class DelayRow(FrozenModel):
    """Objects of one class, or of ``all``.

    Attributes:
        tracks: Objects that could be judged.
        never: Share of them without a stable detection; they have no delay.
        delay_s: Median time from the first label to the stable detection, of those detected.
        ttc_s: Median time to collision at the stable detection, of ``approaching`` objects.
    """

    cls: str
    tracks: int
    drives: int
    detected: int
    never: Estimate
    delay_s: Estimate
    approaching: int
    ttc_s: Estimate


class DetectionDelay(FrozenModel):
    """Time to detection over sequences.

    Attributes:
        drives: Drives of the evaluation set; ``video`` of them are video with tracks.
        excluded: Drives and objects left out, by reason.
        usable: Whether the intervals also speak for other drives.
    """

    drives: int
    video: int
    excluded: dict[str, int]
    rows: tuple[DelayRow, ...]
    usable: bool

    def lines(self) -> list[str]:
        """The figures in words."""
        lines = [f"time to detection: {self.video} of {counted(self.drives, 'drive')} are video"]
        lines += [
            f"  {row.cls}: {row.detected} of {counted(row.tracks, 'object')} detected;"
            f" median delay {row.delay_s} s; time to collision then {row.ttc_s} s"
            f" ({row.approaching} approaching)"
            for row in self.rows
        ]
        return lines + [f"  excluded: {n:,} {why}" for why, n in self.excluded.items()]


@dataclass(frozen=True)
class _Track:
    """One object of one drive: its labels in order of time."""

    drive: str
    cls: str
    delay_s: float | None
    ttc_s: float | None


def detection_delay(evaluation: Evaluation) -> DetectionDelay:
    """Time to the first stable detection of each object, and time to collision then.

    Args:
        evaluation: Of the model, on all frames of its drives.
    """
    data = evaluation.data
    excluded: Counter[str] = Counter()
    drives: dict[str, list[int]] = defaultdict(list)
    for number, frame in enumerate(data.frames):
        drives[frame.drive].append(number)
    labels = _tracked_labels(evaluation)
    tracks: list[_Track] = []
    video = 0
    for drive, numbers in drives.items():
        why = _no_video([data.frames[number] for number in numbers])
        own = {track: rows for (name, track), rows in labels.items() if name == drive}
        if why or not own:
            excluded[why or "drives of video without track ids"] += 1
            continue
        video += 1
        for seen in own.values():
            track = _judge_track(evaluation, drive, numbers, seen)
            if isinstance(track, str):
                excluded[track] += 1
            else:
                tracks.append(track)
    classes = [ALL_CLASSES, *(name for name in data.classes if any(t.cls == name for t in tracks))]
    rows = tuple(_row(evaluation, tracks, cls) for cls in classes if tracks)
    return DetectionDelay(
        drives=len(drives),
        video=video,
        excluded=dict(sorted(excluded.items())),
        rows=rows,
        usable=len({track.drive for track in tracks}) >= resampling.MIN_DRIVES,
    )


_Row = tuple[int, Label, bool]
"""Frame, label, and whether it was detected."""


def _tracked_labels(evaluation: Evaluation) -> dict[tuple[str, str], list[_Row]]:
    data = evaluation.data
    table = evaluation.tables.get(ALL_FRAMES.name) or match_slice(data, ALL_FRAMES)
    above = table.score >= evaluation.metrics.settings.threshold
    tracks: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for frame, label, row in zip(
        table.truth_frame.tolist(), table.truth_label.tolist(), table.matched_by, strict=True
    ):
        one = data.labels[label]
        if one.track is not None:
            found = bool(row >= 0 and above[row])
            tracks[data.frames[frame].drive, one.track].append((frame, one, found))
    return {key: sorted(rows, key=lambda row: row[0]) for key, rows in tracks.items()}


def _no_video(frames: list[Frame]) -> str:
    """Why a drive is no video; empty if it is."""
    times = [frame.timestamp_us for frame in frames]
    if len(frames) < _STABLE_FRAMES:
        return f"drives of fewer than {_STABLE_FRAMES} frames"
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return "drives without times"
    gaps = np.diff(np.array(known)) / 1e6
    if (gaps <= 0).any() or np.median(gaps) > _MAX_GAP_S:
        return f"drives whose frames are more than {_MAX_GAP_S:g} s apart or out of order"
    return ""


def _judge_track(
    evaluation: Evaluation, drive: str, numbers: list[int], rows: list[_Row]
) -> _Track | str:
    """The object's delay, or why it cannot be judged."""
    frames = evaluation.data.frames
    order = {number: place for place, number in enumerate(numbers)}
    if rows[0][0] == numbers[0]:
        return "objects in view when the drive begins"
    if len(rows) < _STABLE_FRAMES:
        return f"objects labelled on fewer than {_STABLE_FRAMES} frames"
    time = [(frames[frame].timestamp_us or 0) / 1e6 for frame, *_ in rows]
    run = 0
    for place, (frame, _, found) in enumerate(rows):
        follows = place > 0 and order[frame] == order[rows[place - 1][0]] + 1
        run = (run + 1 if follows else 1) if found else 0
        if run == _STABLE_FRAMES:
            ttc = _time_to_collision(evaluation, rows, np.array(time), time[place])
            return _Track(drive, rows[0][1].cls, time[place] - time[0], ttc)
    return _Track(drive, rows[0][1].cls, None, None)


def _time_to_collision(
    evaluation: Evaluation, rows: list[_Row], time: Floats, now: float
) -> float | None:
    """Seconds by growth of the labels within 0.5 s of ``now``; None if not approaching."""
    points = []
    for (number, label, _), when in zip(rows, time, strict=True):
        frame, (x0, y0, x1, y1) = evaluation.data.frames[number], label.box.xyxy
        inside = x0 > 1 and y0 > 1 and x1 < frame.width - 1 and y1 < frame.height - 1
        if abs(when - now) <= _WINDOW_S + 1e-9 and inside and label.box.h > 0:
            points.append((when - now, np.log(label.box.h)))
    if len(points) < _STABLE_FRAMES:
        return None
    when_s, log_height = np.array(points).T
    slope = float(np.polyfit(when_s, log_height, 1)[0])
    return 1 / slope if slope > 1 / _MAX_TTC_S else None


def _row(evaluation: Evaluation, tracks: list[_Track], cls: str) -> DelayRow:
    chosen = [track for track in tracks if cls in (ALL_CLASSES, track.cls)]
    settings = evaluation.metrics.settings
    names = sorted({track.drive for track in chosen})
    of = np.array([names.index(track.drive) for track in chosen])
    weights = resampling.draw_resamples(len(names), settings.resamples, settings.seed)
    never = np.array([track.delay_s is None for track in chosen])
    share = ratio_samples(
        np.bincount(of[never], minlength=len(names)),
        np.bincount(of, minlength=len(names)),
        weights,
    )
    ttc = [track.ttc_s for track in chosen]

    def median(values: list[float | None]) -> Estimate:
        known = np.array([value is not None for value in values])
        if not known.any():
            return Estimate(value=None)
        found = np.array([value for value in values if value is not None])
        samples = _weighted_medians(found, weights[:, of[known]])
        return estimate(samples, len(names), settings.confidence)

    return DelayRow(
        cls=cls,
        tracks=len(chosen),
        drives=len(names),
        detected=int((~never).sum()),
        never=estimate(share, len(names), settings.confidence),
        delay_s=median([track.delay_s for track in chosen]),
        approaching=sum(value is not None for value in ttc),
        ttc_s=median(ttc),
    )


def _weighted_medians(values: Floats, weights: Floats) -> Floats:
    """``[r]`` weighted medians of ``[n]`` values, one for each row of ``weights``; NaN for none."""
    order = np.argsort(values)
    total = np.cumsum(weights[:, order], axis=1)
    at_half = (total >= total[:, -1:] / 2).argmax(axis=1)
    return np.where(total[:, -1] > 0, values[order][at_half], np.nan)
