"""Rare: what counts as rare when labels have come back, said before anybody looks at them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import ParameterError
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame, Label, LabelSchema, Light, Role, Weather

RARE_SHARE = 0.05
"""A class on fewer of the frames labelled before is rare where nothing else is said."""

_FORMS = "class=NAME, light=…, weather=…, construction=yes, event=NAME, or NAME=ANSWER of a frame"


@dataclass(frozen=True)
class Rare:
    """All of some conditions at once, such as ``class=pedestrian+light=night``."""

    written: str
    terms: tuple[tuple[str, str], ...]

    def objects(self, frame: Frame, labels: Sequence[Label]) -> int:
        """How many rare objects a frame holds; one where frames are rare as such."""
        if not all(_holds(frame, key, value) for key, value in self.terms if key != "class"):
            return 0
        classes = {value for key, value in self.terms if key == "class"}
        if not classes:
            return 1
        return sum(label.cls in classes and not label.ignore for label in labels)


def parse(written: str, schema: LabelSchema) -> Rare:
    """Read ``KEY=VALUE``, several of them joined by ``+``.

    Raises:
        ParameterError: A class, light or weather that there is not, or no condition at all.
    """
    terms = []
    for part in written.split("+"):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise ParameterError("nothing rare is meant", where=written, hint=f"Write {_FORMS}")
        known: dict[str, Any] = {
            "class": schema.classes,
            "light": [str(one) for one in Light],
            "weather": [str(one) for one in Weather],
            "construction": ["yes", "no"],
        }
        if key in known and value not in known[key]:
            near = difflib.get_close_matches(value, known[key], n=1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise ParameterError(
                f"there is no {key} {value!r}",
                where=written,
                hint=f"{meant}There are: {', '.join(known[key])}",
            )
        terms.append((key, value))
    return Rare(written, tuple(terms))


def rare_classes(dataset: Dataset) -> tuple[Rare, ...]:
    """Classes on fewer than 5 % of the frames that were labelled before anything was mined.

    What is rare must not be read from the labels that are to be judged by it.

    Raises:
        ParameterError: Nothing was labelled before, or every class is common.
    """
    known = dataset.with_roles(Role.SEED, Role.TRAIN, Role.VAL, Role.SAFETY)
    holding: dict[str, set[str]] = {cls: set() for cls in dataset.label_schema.classes}
    for label in known.labels:
        if label.cls in holding and label.origin.is_ground_truth and not label.ignore:
            holding[label.cls].add(label.frame)
    few = [cls for cls, frames in holding.items() if len(frames) < RARE_SHARE * len(known.frames)]
    if not few:
        counts = ", ".join(f"{cls} {len(frames)}" for cls, frames in holding.items())
        raise ParameterError(
            f"no class is on fewer than {RARE_SHARE:.0%} of the {len(known.frames)} frames"
            " that were labelled before",
            where=f"frames by class: {counts}",
            hint=f"Say what is rare with --rare: {_FORMS}",
        )
    return tuple(Rare(f"class={cls}", (("class", cls),)) for cls in few)


def _holds(frame: Frame, key: str, value: str) -> bool:
    conditions = frame.conditions
    if key in ("light", "weather"):
        return str(getattr(conditions, key)) == value
    if key == "construction":
        return conditions.construction == (value == "yes")
    if key == "event":
        return value in frame.events
    return frame.attributes.get(key) == value
