"""Search that a person steers: a linear probe over a pool's regions, refitted with every answer.

The probe is a logistic regression in the whitened space of `similarity.Regions`. Its positives are
the regions that fit the exemplars' boxes, its negatives what the person rejected, and regions drawn
evenly from the pool, nearly all of which show something else. In the whitened space the directions
in which all regions vary have been taken out beforehand, which is what makes five boxes enough
(Hariharan, Malik and Ramanan 2012, "Discriminative decorrelation for clustering and
classification"). A frame scores as its best region does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.core.text import short_repr
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals.similarity import (
    Exemplar,
    Regions,
    SimilarityScores,
    check_exemplars,
    nothing_under,
    search_by_example,
)
from workbench.detection.boxes import box_area, intersection_matrix, iou_matrix

__all__ = ["Answers", "SteeredSearch"]

_REGULARISATION = 0.01
"""Half the squared length of the weights counts so much; classes weigh one each."""

_NEGATIVES = 6000
"""Regions drawn from the pool as presumed negatives."""

_REJECTED_WEIGHT = 1.0
"""Weight of everything a person rejected, beside one for the presumed negatives."""

_FIT = 0.7
"""Share of the best IoU with an exemplar's box from which on a region stands for it."""

_ITERATIONS = 60
_Floats = NDArray[np.float32]


@short_repr
@dataclass(frozen=True)
class Answers:
    """One round of a person's answers: frames that show what is sought, and frames that do not."""

    yes: tuple[str, ...] = ()
    no: tuple[str, ...] = ()


class SteeredSearch:
    """Frames of a pool by likeness to several exemplars, refined by yes and no.

    One boxed exemplar alone is compared by cosine, as `search_by_example` does; from the second
    exemplar or the first answer on a probe is fitted. Equal inputs give equal scores.

    Args:
        pool: The frames to search.
        like: Frames, or boxes on frames, to find more of; not both kinds at once.
        unlike: What results should not show: a box rejects its content, a frame all its regions.

    Attributes:
        scores: The present answer. Its ``score`` is a cosine to the probe in [-1, 1].
        rounds: The answers so far.

    Raises:
        ParameterError: As `search_by_example`, of which this is the general form.
        DataError: As `search_by_example`.
    """

    def __init__(
        self, pool: Embeddings, like: Sequence[Exemplar], unlike: Sequence[Exemplar] = ()
    ) -> None:
        self.pool, self.like, self.unlike = pool, tuple(like), tuple(unlike)
        self.rounds: tuple[Answers, ...] = ()
        # A frame that results should not show rejects all its regions, so it may go with boxes.
        self._rows = check_exemplars(pool, self.like, [o for o in self.unlike if not o.is_whole])
        if whole := [one for one in self.unlike if one.is_whole]:
            check_exemplars(pool, whole)
        self._regions = Regions(pool, whole=self.like[0].is_whole)
        self._accepted: list[int] = []
        if len(self.like) > 1 or self.unlike:
            self._fit()
        else:
            self.scores = search_by_example(pool, self.like)

    def refit(self, yes: Iterable[str] = (), no: Iterable[str] = ()) -> SimilarityScores:
        """Take one round of answers and search again.

        Args:
            yes: Frames that show what is sought; the region that was found in each is a positive.
            no: Frames that do not; all their regions are negatives.

        Returns:
            The new `scores`; `SimilarityScores.order` leaves out all frames that were answered.

        Raises:
            ParameterError: An unknown frame, or one with both answers.
        """
        answers = Answers(tuple(dict.fromkeys(yes)), tuple(dict.fromkeys(no)))
        for frame in (*answers.yes, *answers.no):
            if frame not in self._rows:
                raise ParameterError(
                    "unknown frame id", where=frame, hint="Answer for frames of the pool"
                )
        if both := set(self.accepted + answers.yes) & set(self.rejected + answers.no):
            raise ParameterError(
                "a frame has both answers, yes and no",
                where=sorted(both)[0],
                hint="Start the search again to change an answer",
            )
        self.rounds = (*self.rounds, answers)
        self._accepted += [self._found(self._rows[frame]) for frame in answers.yes]
        self._fit()
        return self.scores

    @property
    def accepted(self) -> tuple[str, ...]:
        """Frames answered with yes."""
        return tuple(frame for one in self.rounds for frame in one.yes)

    @property
    def rejected(self) -> tuple[str, ...]:
        """Frames answered with no."""
        return tuple(frame for one in self.rounds for frame in one.no)

    def _found(self, row: int) -> int:
        """Number of the region that a frame was found by."""
        part = [kind for kind, _, _ in self._regions.parts].index(self.scores.kind[row])
        return int(self._regions.starts[part] + self.scores.row[row])

    def _fit(self) -> None:
        regions = self._regions
        fitting = [self._vectors_of(one) for one in self.like]
        positives = [vectors for vectors, _ in fitting]
        fits = [fit for _, fit in fitting]
        positives += [regions.take(np.array([number])) for number in self._accepted]
        fits += [float(np.mean(fits))] * len(self._accepted)
        rejected = [self._vectors_of(one)[0] for one in self.unlike]
        rejected += [self._all_of(self._rows[frame]) for frame in self.rejected]
        answered = {self._rows[one.frame] for one in self.like if one.frame in self._rows}
        answered |= {self._rows[frame] for frame in (*self.accepted, *self.rejected)}
        presumed = regions.sample(_NEGATIVES, without=answered)
        weights = _logistic(positives, fits, presumed, rejected)
        score, region, _ = regions.nearest_to(weights / max(float(np.linalg.norm(weights)), 1e-12))
        kinds, rows = regions.kinds_and_rows(region)
        none = np.zeros(len(score), np.int64)
        self.scores = SimilarityScores(
            score, kinds, rows, none, tuple(sorted(answered)), query="the exemplars"
        )

    def _vectors_of(self, one: Exemplar) -> tuple[_Floats, float]:
        """Unit vectors ``[k, c]`` of the regions that stand for an exemplar, and how well they do:
        the share of them that the box covers. Of a region around a tiny box, most is something
        else.
        """
        regions = self._regions
        if one.vector is not None:
            return regions.unit(np.asarray(one.vector, np.float32)[None]), 1.0
        row = self._rows[one.frame]
        if one.box is None:
            return self._all_of(row), 1.0
        numbers, boxes = regions.of_frame(row)
        overlap = iou_matrix(one.xyxy, boxes)[0]
        if not overlap.max(initial=0) > 0:
            raise nothing_under(one)
        chosen = overlap >= _FIT * overlap.max()
        covered = intersection_matrix(one.xyxy, boxes[chosen])[0] / box_area(boxes[chosen])
        return regions.take(numbers[chosen]), float(covered.mean())

    def _all_of(self, row: int) -> _Floats:
        return self._regions.take(self._regions.of_frame(row)[0])


def _logistic(
    positives: Sequence[_Floats],
    fits: Sequence[float],
    presumed: _Floats,
    rejected: Sequence[_Floats],
) -> _Floats:
    """Weights ``[c]`` of a regularised logistic regression.

    Args:
        positives: Vectors ``[k, c]`` of each exemplar; exemplars weigh one in all.
        fits: How much each of them weighs, beside the others.
        presumed: Vectors ``[k, c]`` that are taken for negatives, weighing one in all.
        rejected: Vectors of what a person rejected, weighing `_REJECTED_WEIGHT` in all.
    """
    from scipy import optimize

    groups = [*positives, presumed, *rejected]
    x = np.concatenate(groups).astype(np.float64)
    sign = np.ones(len(x))
    sign[sum(map(len, positives)) :] = -1
    shares = [
        *(fit / sum(fits) for fit in fits),
        1.0,
        *[_REJECTED_WEIGHT / max(1, len(rejected))] * len(rejected),
    ]
    each = [np.full(len(g), s / max(1, len(g))) for g, s in zip(groups, shares, strict=True)]
    weight = np.concatenate(each)

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (x @ values[:-1] + values[-1])
        pull = -weight * sign / (1 + np.exp(np.clip(margin, -50, 50)))
        gradient = np.append(x.T @ pull + _REGULARISATION * values[:-1], pull.sum())
        penalty = _REGULARISATION / 2 * float(values[:-1] @ values[:-1])
        return float(weight @ np.logaddexp(0, -margin)) + penalty, gradient

    start = np.zeros(x.shape[1] + 1)
    fitted = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
    )
    weights: _Floats = fitted.x[:-1].astype(np.float32)
    return weights
