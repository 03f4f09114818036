"""The public API: open a workspace, and work with its datasets, models and selections.

import workbench as wb

ws = wb.open()
ds = ws.dataset("builtin@2")
model = ws.model("models:/front-camera-builtin/1")
predictions = model.predict(ds.role("safety"))
evaluation = wb.evaluate(predictions)
selection = wb.mine(ds, model, budget=10)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core.errors import DataError, ParameterError, RecordError
from workbench.core.text import counted, html_table
from workbench.core.types import Progress
from workbench.core.workspace import Workspace, find_workspace
from workbench.detection import model as detection_model
from workbench.records import types
from workbench.records.base import Ref, kind_of
from workbench.records.dataset import Dataset, load_dataset
from workbench.records.model_types import Checkpoint, ExportBundle, Release
from workbench.records.references import list_dataset_versions, resolve_reference
from workbench.records.store import Store

if TYPE_CHECKING:
    from workbench.curation import Embeddings
    from workbench.evaluation.metrics import Evaluation
    from workbench.evaluation.misses import FrameMisses, Miss
    from workbench.export.exporter import ExportSettings
    from workbench.labeling import LabelingOptions
    from workbench.labeling.first_boxes import FirstBoxes
    from workbench.training import TrainingConfig

__all__ = ["Model", "Predictions", "Selection", "Workbench", "mine", "open", "train"]


@dataclass(frozen=True, repr=False)
class Workbench:
    """An open workspace: its datasets, models and selections by name.

    Attributes:
        workspace: The folder and its layout.
    """

    workspace: Workspace

    @property
    def store(self) -> Store:
        """The immutable records."""
        return Store(self.workspace)

    def dataset(self, reference: str) -> Dataset:
        """A dataset version: ``name`` (the newest), ``name@2``, ``dataset/PREFIX``.

        Raises:
            RecordError: No dataset matches, or several do; names the nearest.
        """
        ref = resolve_reference(self.workspace, reference)
        return load_dataset(self.store, _of_kind(ref, reference, (types.DatasetVersion.KIND,)))

    def model(self, reference: str, *, name: str = "", threads: int = 2) -> Model:
        """A model by any reference: a checkpoint, a bundle, or a release.

        A release is verified to the byte against its signature first.

        Args:
            reference: ``models:/NAME/VERSION``, ``models:/NAME@ALIAS``, ``KIND/PREFIX`` or
                ``sha256:DIGEST``.
            name: As shown in plots and tables; the reference by default.
            threads: Threads of one prediction.

        Raises:
            RecordError: No model matches, or several do.
            VerificationError: A file of the release was changed, removed or added.
        """
        ref = resolve_reference(self.workspace, reference)
        _of_kind(ref, reference, (Checkpoint.KIND, ExportBundle.KIND, Release.KIND))
        if kind_of(ref) == Release.KIND:
            from workbench.release.publishing import verify_release

            verify_release(self.workspace, ref)
        return Model(self.workspace, ref, name=name or reference, threads=threads)

    def selection(self, reference: str = "") -> Selection:
        """A selection of frames; the newest that was mined by default."""
        from workbench.curation import newest_selection

        ref = resolve_reference(self.workspace, reference) if reference else ""
        ref = ref or newest_selection(self.store)
        return Selection(self.workspace, _of_kind(ref, reference, (types.Selection.KIND,)))

    def browse(
        self,
        dataset: str | Dataset,
        *models: str | Model,
        roles: Sequence[str] = (),
        embeddings: bool = True,
    ) -> Any:
        """Look at frames with labels and predictions: grid, map, comparison, why it was missed.

        Args:
            dataset: A whole version, or its name.
            *models: Models, or references to them; the second is compared with the first.
            roles: Only frames of these roles; all by default.
            embeddings: Whether to embed the frames for the map and for "more like this".

        Returns:
            A `FrameBrowser`. Its ``selection()`` is the marked frames as a `Selection`.
        """
        from workbench.widgets.explore import explore

        version = self.dataset(dataset) if isinstance(dataset, str) else dataset
        return explore(
            version,
            [self.model(one) if isinstance(one, str) else one for one in models],
            roles=roles,
            embeddings=embeddings,
            keep=lambda ref: Selection(self.workspace, ref),
        )

    def browse_answers(self, labels: str = "") -> Any:
        """Look at the frames that several labelers answered: what only one drew, and why.

        Args:
            labels: A label set, ``label/PREFIX``; the newest by default.

        Returns:
            A `FrameBrowser`: the first labeler's boxes are its labels, each other's those of a
            model. The frames' reasons are what is disputed.

        Raises:
            ParameterError: There is no label set, or no frame has two answers.
        """
        from workbench.records.catalog import newest_first
        from workbench.widgets import FrameBrowser
        from workbench.widgets.frames import answered_frames

        if labels:
            ref = _of_kind(
                resolve_reference(self.workspace, labels), labels, (types.LabelSet.KIND,)
            )
        elif found := newest_first(self.store, types.LabelSet):
            ref = found[0][0]
        else:
            raise ParameterError(
                "nothing was collected from labelers yet", hint="Run `workbench label collect`"
            )
        frames = answered_frames(self.store, ref)
        if not frames:
            raise ParameterError(
                "no frame of this label set has two answers",
                where=ref,
                hint="Send with `--overlap 0.2` to have a fifth of the frames labeled twice",
            )
        return FrameBrowser(frames, workspace=self.workspace)

    def datasets(self) -> Any:
        """Every dataset version, one row each: name, version, frames, labels, drives."""
        import pandas as pd

        rows = []
        records = dict(self.store.readable(types.DatasetVersion))
        for version in list_dataset_versions(self.workspace):
            if (record := records.get(version.ref)) is None:
                continue  # damaged: `workbench datasets` names it
            counts = record.model_dump(include={"frames", "labels", "drives", "simulated"})
            rows.append({"dataset": str(version), **counts})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        versions = counted(len(list_dataset_versions(self.workspace)), "dataset version")
        return f"Workbench({str(self.workspace.root)!r}: {versions})"

    def _repr_html_(self) -> str:
        kinds = Counter(kind for kind in types.RECORD_TYPES for _ in self.store.refs(kind))
        names = ", ".join(map(str, list_dataset_versions(self.workspace))) or "none"
        facts = {"datasets": names, **{kind: f"{kinds[kind]:,}" for kind in sorted(kinds)}}
        return html_table(str(self.workspace.root), facts)


class Predictions(detection_model.Predictions):
    """A model's boxes on a dataset, to evaluate and to look at."""

    def evaluate(self, threshold: float | None = None) -> Evaluation:
        """Metrics by class and slice with intervals, at this threshold or else the model's."""
        from workbench.evaluation.metrics import evaluate
        from workbench.evaluation.results import EvaluationSettings

        least = self.threshold if threshold is None else threshold
        return evaluate(self, settings=EvaluationSettings(threshold=least))

    def worst_misses(
        self, count: int = 10, threshold: float | None = None
    ) -> tuple[FrameMisses, ...]:
        """The frames with the most missed labels, vulnerable road users first.

        Args:
            count: Maximum number of frames; one of each drive.
            threshold: Boxes below this score count as missing; the model's by default.
        """
        from workbench.data.slices import ALL_FRAMES
        from workbench.evaluation.metrics import evaluate
        from workbench.evaluation.misses import worst_frames
        from workbench.evaluation.results import EvaluationSettings

        least = self.threshold if threshold is None else threshold
        settings = EvaluationSettings(threshold=least, resamples=100)
        return worst_frames(evaluate(self, [ALL_FRAMES], settings=settings), count)

    def why_missed(
        self,
        count: int = 10,
        threshold: float | None = None,
        *,
        other: detection_model.Predictions | None = None,
    ) -> tuple[Miss, ...]:
        """The cause of each miss on the worst frames: score, class, place, or nothing there.

        Args:
            count: Maximum number of frames; one of each drive.
            threshold: Boxes below this score count as missing; the model's by default.
            other: What another model says of the same frames, such as the float file of an INT8
                one (``bundle.fp32.predict(dataset)``): then a miss says whether that one found it.
        """
        from workbench.evaluation.misses import explain_misses

        return explain_misses(
            self.worst_misses(count, threshold),
            self.boxes,
            threshold=self.threshold if threshold is None else threshold,
            other=() if other is None else other.boxes,
        )

    def plot(self, count: int = 6, threshold: float | None = None) -> Any:
        """The worst misses as pictures, with labels and boxes; a matplotlib figure."""
        from workbench.data.slices import ALL_FRAMES
        from workbench.evaluation import plots
        from workbench.evaluation.metrics import evaluate
        from workbench.evaluation.results import EvaluationSettings

        least = self.threshold if threshold is None else threshold
        settings = EvaluationSettings(threshold=least, resamples=100)
        evaluation = evaluate(self, [ALL_FRAMES], settings=settings)
        return plots.worst_misses(_workspace_of(self.dataset), evaluation, count=count)


class Model(detection_model.Model):
    """A checkpoint, a bundle or a release of a workspace; read when it is first used."""

    def predict(
        self, dataset: Dataset, *, name: str = "", progress: Progress | None = None
    ) -> Predictions:
        """Find boxes on every frame of ``dataset``; shows a progress bar by default.

        Args:
            dataset: Frames whose images lie in a workspace.
            name: What the predictions are called in plots; the model's name by default.
            progress: Called with the number of frames done and their total, instead of the bar.
        """
        with _progress_bar(f"predict {self.name}", progress) as shown:
            found = super().predict(dataset, name=name, progress=shown)
        return Predictions(found.dataset, found.boxes, found.model, found.threshold)

    def export(
        self,
        dataset: Dataset,
        settings: ExportSettings | None = None,
        *,
        progress: Progress | None = None,
    ) -> Model:
        """Export this checkpoint to ONNX with INT8 files, and save the bundle.

        The parity gate needs an evaluation and is part of ``notebooks/steps/export.ipynb``.

        Args:
            dataset: A whole version; calibrated on its seed and train frames, compared on its val
                and safety frames.
            settings: Of the export.
            progress: Called with the frames compared and their total.

        Returns:
            The bundle.
        """
        from workbench.export import exporter

        with _progress_bar("export", progress) as shown:
            exported = exporter.export(self, dataset, settings, progress=shown)
        return Model(self.workspace, exported.ref)

    def release(self, gates: Ref, name: str) -> Model:
        """Sign this bundle, which was judged, and register it under a name.

        Args:
            gates: The `GateReport` of this bundle; decides whether it becomes champion.
            name: Of the registered model.
        """
        from workbench.release.publishing import publish_release

        published = publish_release(Store(self.workspace), self.ref, gates, name)
        return Model(self.workspace, published.ref, name=name)


class Selection:
    """Ranked frames of a dataset, with a reason for each, and what can be done with them."""

    def __init__(self, workspace: Workspace, ref: Ref) -> None:
        self.workspace = workspace
        self.ref = ref
        self.record = Store(workspace).get(ref, types.Selection)

    def __len__(self) -> int:
        return len(self.record.chosen)

    @property
    def frames(self) -> tuple[str, ...]:
        """Ids of the frames, the best first."""
        return tuple(choice.frame for choice in self.record.chosen)

    @property
    def dataset(self) -> Dataset:
        """The chosen frames as a part of their dataset version."""
        chosen = set(self.frames)
        whole = load_dataset(Store(self.workspace), self.record.dataset)
        return whole.where(lambda frame: frame.id in chosen)

    def to_pandas(self) -> Any:
        """One row a frame: rank, arm, score, reasons, drive and conditions."""
        import pandas as pd

        rows = [
            {
                "frame": choice.frame,
                "rank": choice.rank,
                "arm": choice.arm,
                "score": choice.score,
                "reasons": "; ".join(choice.reasons),
            }
            for choice in self.record.chosen
        ]
        table = pd.DataFrame(rows, columns=["frame", "rank", "arm", "score", "reasons"])
        return table.merge(self.dataset.to_pandas(), on="frame")

    def show(self) -> Any:
        """The frames with their reasons in a browser widget; its buttons tag and send them."""
        from workbench.widgets import FrameBrowser, selected_frames, send_action, tag_action

        dataset = load_dataset(Store(self.workspace), self.record.dataset)
        boxes = self.predictions()
        return FrameBrowser(
            selected_frames(self.workspace, dataset, self.record, boxes),
            workspace=self.workspace,
            on_tag=tag_action(self.workspace, dataset.name, "look-again"),
            on_send=send_action(self.workspace, self.record),
        )

    def open_in_fiftyone(self, *, port: int = 5151) -> Any:
        """Publish the pool with this selection to FiftyOne and start its App.

        Returns:
            FiftyOne's session; ``session.url`` opens in a browser.
        """
        from workbench import curation

        name = self.publish()
        return curation.open_app(name, workspace=self.workspace, port=port)

    def tag(self, label: str, *, by: str, frames: Iterable[str] | None = None) -> int:
        """Tag frames of the selection in FiftyOne.

        Args:
            label: The tag.
            by: Who tags; kept with the tag.
            frames: Ids of the frames; all of the selection by default.

        Returns:
            How many frames did not have the tag before.
        """
        from workbench import curation

        name = self.publish()
        chosen = self.frames if frames is None else tuple(frames)
        return curation.tag_frames(name, chosen, label, by=by, workspace=self.workspace)

    def send(
        self,
        project: str | None = None,
        *,
        overlap: float = 0.0,
        options: LabelingOptions | None = None,
        progress: Progress | None = None,
    ) -> Any:
        """Send the frames to Label Studio, with `first_boxes` to start from.

        Sending twice writes nothing twice.

        Args:
            project: Title of the Label Studio project; made from dataset and batch by default.
            overlap: Share of the frames, in [0, 1], that two labelers answer.
            options: Rules by slice, and gold frames.
            progress: Called with the number of tasks sent and their total.

        Returns:
            A `SentBatch`: the number of tasks and the project's address.
        """
        from workbench import labeling, services

        boxes = () if self.record.model is None else self.first_boxes().boxes
        batch = labeling.make_batch(
            Store(self.workspace),
            self.record.dataset,
            self.ref,
            self.record.model if boxes else None,
            boxes,
            overlap=overlap,
            options=options,
        )
        services.up(self.workspace, ("label-studio",))
        admin = services.label_studio_admin(self.workspace)
        server = labeling.connect(admin.url, admin.token)
        with _progress_bar("send", progress) as shown:
            return labeling.send(self.workspace, server, batch, project, progress=shown)

    def predictions(self, progress: Progress | None = None) -> Sequence[types.Prediction]:
        """Confident boxes of the model used for mining, on the chosen frames; empty without one.

        Args:
            progress: Called with the number of frames predicted and their total.
        """
        if self.record.model is None:
            return ()
        model = Model(self.workspace, self.record.model)
        return model.predict(self.dataset, progress=progress).above()

    def first_boxes(self, progress: Progress | None = None) -> FirstBoxes:
        """Boxes for labelers to start from: none where the model is wrong too often.

        Args:
            progress: Called with the number of frames predicted and their total.

        Raises:
            ParameterError: The selection has no model.
        """
        from workbench import labeling

        if self.record.model is None:
            raise ParameterError("the selection has no model", where=self.record.method)
        dataset = load_dataset(Store(self.workspace), self.record.dataset)
        model = detection_model.Model(self.workspace, self.record.model)
        return labeling.predict_first_boxes(model, dataset, self.frames, progress=progress)

    def publish(self, embeddings: Embeddings | None = None) -> str:
        """Publish the pool with this selection to FiftyOne, unless it is there already.

        Args:
            embeddings: Of the pool, for FiftyOne's embedding map and similarity search; with them
                it is published again.

        Returns:
            Name of the dataset in FiftyOne.
        """
        from workbench import curation, services

        services.up(self.workspace, ("mongod",))
        store = Store(self.workspace)
        dataset = load_dataset(store, self.record.dataset)
        known = curation.is_published(self.workspace, self.record, dataset.name)
        if embeddings is not None or not known:
            curation.publish(
                self.workspace,
                dataset.role("pool"),
                self.predictions(),
                self.record,
                scores=curation.read_scores(store, self.ref),
                embeddings=embeddings,
            )
        return dataset.name

    def __repr__(self) -> str:
        short = self.ref[: self.ref.index("/") + 13]
        return f"Selection({short!r}: {counted(len(self), 'frame')}, {self.record.method})"

    def _repr_html_(self) -> str:
        rows = [
            [str(choice.rank), choice.arm, f"{choice.score:.3f}", "; ".join(choice.reasons)]
            for choice in self.record.chosen[:25]
        ]
        more = f" (first 25 of {len(self)})" if len(self) > len(rows) else ""
        return html_table(repr(self) + more, rows, ["rank", "arm", "score", "reasons"])


def open(path: str | Path | None = None) -> Workbench:  # noqa: A001 - `wb.open`, as in `io.open`
    """Open the workspace around the current folder, or the one at ``path``.

    Args:
        path: A ``.workbench`` folder, or a folder that contains one.

    Raises:
        ParameterError: There is no workspace.
    """
    if path is None:
        workspace = find_workspace()
    else:
        folder = Path(path).expanduser().resolve()
        inner = folder / ".workbench"
        workspace = Workspace(inner if inner.is_dir() else folder)
    if not workspace.records.is_dir():
        raise ParameterError(
            "no workspace with records",
            where=workspace.root,
            hint="Run `make run` first, or `workbench ingest FOLDER`, or pass the path of one",
        )
    return Workbench(workspace)


def mine(  # noqa: PLR0913 - what to mine, and what for
    dataset: Dataset,
    model: detection_model.Model | None = None,
    budget: int = 50,
    *,
    like: str | Iterable[str] = (),
    unlike: str | Iterable[str] = (),
    text: str | None = None,
    watch: str | Path | None = None,
    seed: int = 0,
    control: bool = False,
    progress: Progress | None = None,
) -> Selection:
    """Choose the frames of the pool that should be labelled next, with a reason for each.

    Args:
        dataset: A whole dataset version: frames of role ``pool`` are candidates, frames of role
            ``seed`` and ``train`` are what is labelled.
        model: Its float weights embed the frames. Without one, an ImageNet classifier does.
        budget: Number of frames.
        like: Exemplars to search for instead, each a frame id, or its first digits, or
            ``DRIVE@INDEX``, optionally with a box in pixels: ``8e6b60:120,80,40,60`` (x, y, w, h).
            From the second one on, a linear probe is fitted to all.
        unlike: What the search should not find, written in the same way.
        text: Words to search for instead, such as ``motor scooter``.
        watch: File with a watch list; by default, real drives are mined for what is rare on roads.
        seed: Of the random share.
        control: Draw as many frames at random beside, to measure the lift later.
        progress: Called with the number of frames embedded and their total.

    Raises:
        DataError: The pool is empty, or no frame of it can be used.
        ParameterError: The dataset is part of a version, or an exemplar is not in it.
    """
    from workbench import curation
    from workbench.curation.signals.words import read_watch_list

    workspace = _workspace_of(dataset)
    if dataset.ref is None:
        raise ParameterError(
            "mining needs a whole dataset version",
            where=dataset.name,
            hint="Pass the dataset as `ws.dataset(...)` returns it; the pool is chosen by role",
        )
    wanted, unwanted = (
        tuple(
            curation.parse_exemplar(dataset.frames, one)
            for one in ([written] if isinstance(written, str) else written)
        )
        for written in (like, unlike)
    )
    with _progress_bar("embed", progress) as shown:
        ref = curation.mine(
            Store(workspace),
            dataset.ref,
            model.checkpoint if model else None,
            budget,
            seed,
            rules=curation.SelectionRules(control=control),
            query=curation.MiningQuery(
                like=wanted,
                unlike=unwanted,
                text=text,
                watch=read_watch_list(Path(watch)) if watch else (),
            ),
            progress=shown,
        )
    return Selection(workspace, ref)


def train(
    dataset: Dataset,
    config: TrainingConfig | None = None,
    *,
    start: detection_model.Model | None = None,
    progress: Progress | None = None,
) -> Model:
    """Train a detector on frames of a dataset version, and save its checkpoint.

    Args:
        dataset: A whole version; its frames of role ``seed`` and ``train`` are learned from.
        config: The training's configuration.
        start: A model of the same architecture to continue from.
        progress: Called with the steps done and their total.

    Raises:
        DataError: There are no such frames, or an image cannot be read.
    """
    from workbench import training

    workspace = _workspace_of(dataset)
    if dataset.ref is None:
        raise ParameterError(
            "training needs a whole dataset version",
            where=dataset.name,
            hint="Pass the dataset as `ws.dataset(...)` returns it; frames are chosen by role",
        )
    with _progress_bar("train", progress) as shown:
        result = training.train(
            dataset.role("seed", "train"),
            config,
            start=start.torch_predictor if start else None,
            progress=shown,
        )
    store = Store(workspace)
    parent = start.checkpoint if start else None
    return Model(workspace, training.save_checkpoint(store, result, dataset.ref, parent=parent))


def _of_kind(ref: Ref, reference: str, kinds: Sequence[str]) -> Ref:
    if kind_of(ref) not in kinds:
        raise RecordError(
            f"is a {kind_of(ref)}, not a {' or a '.join(kinds)}", where=reference or ref
        )
    return ref


def _workspace_of(dataset: Dataset) -> Workspace:
    if dataset.workspace is None:
        raise DataError(
            "this dataset was built in memory and has no images",
            where=dataset.name,
            hint="Load it with `wb.open().dataset(...)`",
        )
    return dataset.workspace


class _progress_bar:  # noqa: N801 - used like a function
    """A bar with the time left, in a terminal or a notebook; nothing where a callback is given."""

    def __init__(self, label: str, progress: Progress | None) -> None:
        self._label, self._progress = label, progress
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self._progress or self._update

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _update(self, done: int, total: int) -> None:
        from tqdm.auto import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, desc=self._label, delay=1)
        self._bar.n = done
        self._bar.refresh()
