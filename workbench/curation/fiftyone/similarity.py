"""A similarity index for FiftyOne, backed by the workbench's own vectors.

FiftyOne keeps vectors in its database and answers from scikit-learn, whose index centres itself but
not the first query. Here vectors are in a mapped file beside the database, the query is a row of
the same matrix, and results are exact: one query against a million vectors is one pass over the
file.

FiftyOne loads these classes by name, in the App's server and in any process that opens the dataset;
``IndexName``, ``IndexNameConfig`` and ``…Index`` follow its naming rule.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fiftyone.brain.similarity import Similarity, SimilarityConfig, SimilarityIndex
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import atomic_replace, write_atomic

__all__ = ()

_REPUBLISH_HINT = "Publish the dataset again"
_VECTORS, _OWNERS = "vectors.npy", "owners.json"
_ROWS = 65_536

_AGGREGATIONS: dict[str, Callable[..., NDArray[np.float32]]] = {
    "mean": np.mean,
    "post-mean": np.mean,
    "post-min": np.min,
    "post-max": np.max,
}


class WorkbenchSimilarityConfig(SimilarityConfig):  # type: ignore[misc]
    """Location of the vectors, and their expected digest.

    Args:
        folder: Holds vectors and owners.
        content: SHA-256 of both files.
    """

    def __init__(self, folder: str = "", content: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = folder
        self.content = content

    @property
    def method(self) -> str:
        return "workbench"

    @property
    def max_k(self) -> None:
        return None

    @property
    def supports_least_similarity(self) -> bool:
        return True

    @property
    def supported_aggregations(self) -> tuple[str, ...]:
        return tuple(_AGGREGATIONS)


class WorkbenchSimilarity(Similarity):  # type: ignore[misc]
    """Creates the index for FiftyOne."""

    def initialize(self, samples: Any, brain_key: str) -> WorkbenchSimilarityIndex:
        return WorkbenchSimilarityIndex(samples, self.config, brain_key, backend=self)

    def cleanup(self, samples: Any, key: str) -> None:
        """Keep the vectors: they are named by content, and a later run may use the same."""


class WorkbenchSimilarityIndex(SimilarityIndex):  # type: ignore[misc]
    """Exact cosine similarity over unit vectors float32 ``[n, d]`` of samples or of labels.

    Raises:
        DataError: The vectors are missing, or are not those that were published.
    """

    def __init__(self, samples: Any, config: Any, brain_key: str, backend: Any = None) -> None:
        self._unit, self._owners = read_vectors(Path(config.folder), config.content)
        self._ids, self._label_ids = _current_ids(samples, config, self._owners)
        known = self._ids != ""
        if not known.all():
            self._unit, self._ids = self._unit[known], self._ids[known]
            self._label_ids = None if self._label_ids is None else self._label_ids[known]
        super().__init__(samples, config, brain_key, backend=backend)

    @property
    def sample_ids(self) -> NDArray[Any]:
        return self._ids

    @property
    def label_ids(self) -> NDArray[Any] | None:
        return self._label_ids

    @property
    def total_index_size(self) -> int:
        return len(self._ids)

    @property
    def _names(self) -> NDArray[Any]:
        return self._ids if self._label_ids is None else self._label_ids

    def get_embeddings(
        self,
        sample_ids: Sequence[str] | None = None,
        label_ids: Sequence[str] | None = None,
        allow_missing: bool = True,
        warn_missing: bool = False,
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any] | None]:
        del warn_missing  # FiftyOne infers missing ids from the length
        ids = label_ids if label_ids is not None else sample_ids
        names = self._names if label_ids is not None else self._ids
        rows = np.arange(len(names))
        if ids is not None:
            rows = np.flatnonzero(np.isin(names, np.asarray(ids)))
            if not allow_missing and len(rows) < len(set(ids)):
                raise ValueError(f"{len(set(ids)) - len(rows)} of the ids are not in the index")
        labels = None if self._label_ids is None else self._label_ids[rows]
        return np.asarray(self._unit[rows]), self._ids[rows], labels

    def add_to_index(self, *_: Any, **__: Any) -> None:
        raise ParameterError("this index is written by publishing only", hint=_REPUBLISH_HINT)

    def remove_from_index(self, *_: Any, **__: Any) -> None:
        raise ParameterError("this index is written by publishing only", hint=_REPUBLISH_HINT)

    def cleanup(self) -> None:
        """Nothing to remove, see `WorkbenchSimilarity.cleanup`."""

    def attributes(self) -> list[str]:
        return ["cls"]

    @classmethod
    def _from_dict(
        cls, d: dict[str, Any], samples: Any, config: Any, brain_key: str
    ) -> WorkbenchSimilarityIndex:
        del d
        return cls(samples, config, brain_key)

    def _kneighbors(
        self,
        query: Any = None,
        k: int | None = None,
        reverse: bool = False,
        aggregation: str | None = None,
        return_dists: bool = False,
    ) -> Any:
        """The nearest of the current view; ties in the order of the index."""
        if query is None:
            raise ParameterError("this index needs a query")
        vectors, single = self._vectors(query)
        inside = self._current_inds
        if inside is None:
            inside = np.arange(len(self._ids))
        if aggregation is None:
            results = [self._nearest(one[None], inside, k, reverse, "mean") for one in vectors]
        else:
            results = [self._nearest(vectors, inside, k, reverse, aggregation)]
        parts = [
            [self._ids[rows].tolist() for rows, _ in results],
            [self._label_ids[rows].tolist() for rows, _ in results]
            if self._label_ids is not None
            else None,
            [distance.tolist() for _, distance in results],
        ]
        if aggregation is not None or single:
            parts = [None if part is None else part[0] for part in parts]
        return tuple(parts) if return_dists else tuple(parts[:2])

    def _vectors(self, query: Any) -> tuple[NDArray[np.float32], bool]:
        """Query vectors ``[q, d]``, and whether there is only one."""
        if isinstance(query, str):
            query = [query]
        values = np.asarray(query)
        if np.issubdtype(values.dtype, np.number):
            single = values.ndim == 1
            values = np.atleast_2d(values).astype(np.float32)
            if values.shape[1] != self._unit.shape[1]:
                raise DataError(
                    f"cannot compare vectors of width {values.shape[1]} and {self._unit.shape[1]}",
                    hint="Embed the query with the model that was published",
                )
            return values, single
        row_of = {name: row for row, name in enumerate(self._names.tolist())}
        unknown = [name for name in values.tolist() if name not in row_of]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(values)} queries have no vector in this index",
                where=unknown[0],
                hint=_REPUBLISH_HINT,
            )
        rows = [row_of[name] for name in values.tolist()]
        return np.asarray(self._unit[rows]), len(rows) == 1

    def _nearest(
        self,
        vectors: NDArray[np.float32],
        inside: NDArray[np.int64],
        k: int | None,
        reverse: bool,
        aggregation: str,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows, nearest first, and their cosine distances."""
        if aggregation not in _AGGREGATIONS:
            raise ParameterError(
                f"unknown aggregation {aggregation!r}", hint=f"Known: {', '.join(_AGGREGATIONS)}"
            )
        if aggregation == "mean":
            vectors = vectors.mean(axis=0, keepdims=True)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        units = (vectors / lengths).astype(np.float32)
        distance = np.empty((len(units), len(inside)), np.float32)
        for start in range(0, len(inside), _ROWS):
            part = inside[start : start + _ROWS]
            distance[:, start : start + _ROWS] = 1 - units @ np.asarray(self._unit[part]).T
        combined = _AGGREGATIONS[aggregation](distance, axis=0)
        order = np.argsort(-combined if reverse else combined, kind="stable")[:k]
        return inside[order], combined[order]


def write_vectors(
    folder: Path, unit: NDArray[np.float32], owners: Sequence[str | tuple[str, str]]
) -> tuple[Path, str]:
    """Write vectors and owners to a folder named by their content.

    Args:
        folder: Parent folder.
        unit: Float32 ``[n, d]`` unit vectors.
        owners: The frame's digest of each vector, or with it the id of a label.

    Returns:
        The folder and the digest for a `WorkbenchSimilarityConfig`.
    """
    text = json.dumps(list(owners)).encode()
    content = _content_digest(unit, text)
    target = folder / digest.shorten(content)
    if not (target / _OWNERS).exists():
        with (
            atomic_replace(target / _VECTORS) as temporary,
            temporary.open("wb") as stream,
        ):
            np.save(stream, unit, allow_pickle=False)
        # Written last: without it the folder is incomplete.
        write_atomic(target / _OWNERS, text)
    return target, content


def read_vectors(
    folder: Path, content: str
) -> tuple[NDArray[np.float32], list[str] | list[tuple[str, str]]]:
    """Read vectors and owners as `write_vectors` wrote them.

    Raises:
        DataError: They are missing or changed.
    """
    try:
        text = (folder / _OWNERS).read_bytes()
        unit = np.load(folder / _VECTORS, mmap_mode="r", allow_pickle=False)
        owners = json.loads(text)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"vectors of this similarity index are missing: {error}",
            where=folder,
            hint=_REPUBLISH_HINT,
        ) from error
    if _content_digest(unit, text) != content or len(owners) != len(unit):
        raise DataError(
            "vectors of this similarity index are not those that were published",
            where=folder,
            hint=_REPUBLISH_HINT,
        )
    return unit, owners


def _content_digest(unit: NDArray[np.float32], owners: bytes) -> str:
    running = hashlib.sha256(owners)
    running.update(str(unit.shape).encode())
    for start in range(0, len(unit), _ROWS):
        running.update(np.ascontiguousarray(unit[start : start + _ROWS]).tobytes())
    return running.hexdigest()


def _current_ids(
    samples: Any, config: Any, owners: Sequence[Any]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Current sample ids in FiftyOne, by frame; empty for a frame that was removed."""
    by_frame = dict(zip(*samples.values(["frame", "id"]), strict=True))
    if config.patches_field is None:
        return np.array([by_frame.get(frame, "") for frame in owners], dtype=str), None
    present = set(samples.values(f"{config.patches_field}.detections.id", unwind=True))
    ids = [by_frame.get(frame, "") if label in present else "" for frame, label in owners]
    return np.array(ids, dtype=str), np.array([label for _, label in owners], dtype=str)
