"""Coverage: frames, boxes and drives by condition and class, against a target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from workbench.core.errors import ParameterError
from workbench.curation.hygiene.leakage import split_side
from workbench.data.slices import describe_conditions
from workbench.records.base import FrozenModel
from workbench.records.dataset import Dataset
from workbench.records.frames import Frame

ANY = "all"

CoverageSide = Literal["learned", "judged"]


class MinimumCounts(FrozenModel):
    """What a cell should at least hold; 0 asks for nothing."""

    frames: int = Field(default=0, ge=0)
    boxes: int = Field(default=0, ge=0)
    drives: int = Field(default=0, ge=0)


class TargetEntry(FrozenModel):
    """What is asked of the cells of a condition and a class; ``all`` stands for any."""

    condition: str = ANY
    cls: str = ANY
    side: CoverageSide | Literal["all"] = "all"
    least: MinimumCounts


class CoverageTarget(FrozenModel):
    """A target table: of the entries that fit a cell the last one counts.

    The default asks for ten drives where frames are judged, below which no gate decides anything,
    and for a hundred boxes everywhere. It comes from no standard: set your own.
    """

    wanted: tuple[TargetEntry, ...] = (
        TargetEntry(side="learned", least=MinimumCounts(boxes=100)),
        TargetEntry(side="judged", least=MinimumCounts(boxes=100, drives=10)),
    )

    def least(self, condition: str, cls: str, side: CoverageSide) -> MinimumCounts:
        found = MinimumCounts()
        for entry in self.wanted:
            if all(
                asked in (ANY, given)
                for asked, given in (
                    (entry.condition, condition),
                    (entry.cls, cls),
                    (entry.side, side),
                )
            ):
                found = entry.least
        return found


class CoverageCell(FrozenModel):
    """One condition and class on one side: what is there, what is asked for, what it lacks."""

    side: CoverageSide
    condition: str
    cls: str
    frames: int
    boxes: int
    drives: int
    least: MinimumCounts

    @property
    def lacks(self) -> dict[str, int]:
        """How many frames, boxes and drives are missing; empty when it has enough."""
        have = {"frames": self.frames, "boxes": self.boxes, "drives": self.drives}
        short = {name: getattr(self.least, name) - count for name, count in have.items()}
        return {name: count for name, count in short.items() if count > 0}

    @property
    def filled(self) -> float:
        """The smallest share of what is asked for that is there, at most 1."""
        shares = [
            have / asked
            for have, asked in (
                (self.frames, self.least.frames),
                (self.boxes, self.least.boxes),
                (self.drives, self.least.drives),
            )
            if asked
        ]
        return min([1.0, *shares])


def dataset_coverage(
    dataset: Dataset, target: CoverageTarget | None = None
) -> tuple[CoverageCell, ...]:
    """Every condition that occurs against every class, learned from and judged by.

    Ignore regions and a model's own boxes do not count. A condition is in words, as
    `describe_conditions` gives it.

    Returns:
        Cells by side, condition and class, thinnest first within a side.
    """
    target = target or CoverageTarget()
    sides: tuple[CoverageSide, ...] = ("learned", "judged")
    cells = []
    for side in sides:
        theirs = [frame for frame in dataset.frames if _is_counted(frame, side)]
        by_condition: dict[str, list[Frame]] = {}
        for frame in theirs:
            by_condition.setdefault(describe_conditions(frame), []).append(frame)
        for condition, frames in by_condition.items():
            for cls in dataset.label_schema.classes:
                cells.append(_make_cell(dataset, frames, target, (side, condition, cls)))
    order = {side: number for number, side in enumerate(sides)}
    return tuple(sorted(cells, key=lambda c: (order[c.side], c.filled, c.condition, c.cls)))


def thin_cells(cells: Iterable[CoverageCell]) -> tuple[CoverageCell, ...]:
    """Cells that hold less than is asked for."""
    return tuple(cell for cell in cells if cell.lacks)


def read_coverage_target(path: Path) -> CoverageTarget:
    """A target table from YAML, with entries as in `Wanted`.

    Raises:
        ParameterError: It cannot be read, or an entry says something unknown.
    """
    try:
        content = yaml.safe_load(path.read_text())
        return CoverageTarget.model_validate(content)
    except OSError as error:
        raise ParameterError(
            f"the target table cannot be read: {error.strerror}", where=path
        ) from error
    except yaml.YAMLError as error:
        raise ParameterError("the target table is no YAML", where=f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the table"
        raise ParameterError(
            f"{place}: {first['msg']}",
            where=path,
            hint="Write wanted: [{condition: night, cls: pedestrian, least: {boxes: 200}}]",
        ) from error


def _is_counted(frame: Frame, side: CoverageSide) -> bool:
    # A pool is learned from one day, but nobody has labelled it yet.
    return split_side(frame) == side and frame.role != "pool"


def _make_cell(
    dataset: Dataset,
    frames: Sequence[Frame],
    target: CoverageTarget,
    key: tuple[CoverageSide, str, str],
) -> CoverageCell:
    side, condition, cls = key
    boxes = 0
    holding = []
    for frame in frames:
        count = sum(
            label.cls == cls and not label.ignore and label.origin.is_ground_truth
            for label in dataset.labels_by_frame[frame.id]
        )
        boxes += count
        if count:
            holding.append(frame)
    drives = len({frame.drive for frame in holding})
    return CoverageCell(
        side=side,
        condition=condition,
        cls=cls,
        frames=len(holding),
        boxes=boxes,
        drives=drives,
        least=target.least(condition, cls, side),
    )
