"""FiftyOne's brain, which mining is compared with: our arithmetic of it against the real one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.mining_peers import fiftyone_representativeness, fiftyone_values
from workbench.core.workspace import Workspace
from workbench.curation.fiftyone import connection


@pytest.fixture
def vectors() -> NDArray[np.float32]:
    """Clusters far from the origin, as a detector's are; the second is a copy of the first."""
    rng = np.random.default_rng(0)
    clusters = rng.normal(size=(6, 24))[rng.integers(6, size=300)]
    values = 3 + clusters + 0.4 * rng.normal(size=(300, 24))
    values[1] = values[0]
    return values.astype(np.float32)


@pytest.fixture
def samples(attached: Workspace, vectors: NDArray[np.float32]) -> Iterator[Any]:
    fo = connection.connect(attached)
    dataset = fo.Dataset()
    dataset.add_samples([fo.Sample(f"/{row}.jpg") for row in range(len(vectors))], progress=False)
    yield dataset
    dataset.delete()


def test_uniqueness_written_out_is_that_of_the_brain(
    samples: Any, vectors: NDArray[np.float32]
) -> None:
    from fiftyone import brain

    # A copy: the brain centres the very array that it is given.
    brain.compute_uniqueness(samples, embeddings=vectors.copy(), progress=False)
    theirs = np.array(samples.values("uniqueness"))
    np.testing.assert_allclose(fiftyone_values(vectors), theirs, atol=1e-5)


def test_representativeness_written_out_is_that_of_the_brain(
    samples: Any, vectors: NDArray[np.float32]
) -> None:
    from fiftyone import brain

    brain.compute_representativeness(samples, embeddings=vectors.copy(), progress=False)
    theirs = np.array(samples.values("representativeness"))
    np.testing.assert_allclose(fiftyone_representativeness(vectors), theirs, atol=1e-5)


def test_a_copy_is_not_the_least_unique_frame_to_the_brain(
    samples: Any, vectors: NDArray[np.float32]
) -> None:
    from fiftyone import brain

    brain.compute_uniqueness(samples, embeddings=vectors.copy(), progress=False)
    theirs = np.array(samples.values("uniqueness"))
    assert (theirs < theirs[0]).mean() > 0.25
