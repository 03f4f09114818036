"""Write a run to MLflow while it happens, from a background thread.

MLflow takes seconds to import and can respond slowly; steps never wait for it. Nothing is lost when
it is away: a finished step is marked once MLflow has all of it, and the next run writes the steps
without a mark from their folders.
"""

from __future__ import annotations

import html
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import digest, secret_scan
from workbench.core.errors import WorkbenchError
from workbench.core.workspace import write_atomic
from workbench.pipeline import ipynb, runs
from workbench.pipeline.environment import read_git_state
from workbench.pipeline.lineage.graph import EdgeIndex
from workbench.pipeline.spec import EXECUTED_NOTEBOOK, RESULT_FILE
from workbench.pipeline.step_output import StepFiles, resources
from workbench.records.base import Ref
from workbench.records.model_types import Release, StepRun
from workbench.records.releases import REGISTRY
from workbench.records.store import Store
from workbench.release import registry
from workbench.tracking import MetricPoint, Tracker, record_tags

if TYPE_CHECKING:
    from workbench.pipeline.openlineage import LineageEvents

__all__ = ()

TRACKED_MARK = "mlflow"
"""Side file of a step's run record once MLflow has it."""

EVENTS_VARIABLE = "WORKBENCH_OPENLINEAGE"
PAGE_FILE = "executed.html"
_LOCK_FILE = "requirements.lock"

_PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; font-src data:"
_PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff;
       max-width: 1080px; margin: 2rem auto; padding: 0 1.5rem; }
.cell { margin: 0 0 1rem; }
.code_cell { display: block; }
.prompt { font: 11px ui-monospace, monospace; color: #8a94a3; }
.input_area { background: #f6f7f9; border: 1px solid #e3e7ec; border-radius: 6px; overflow: auto; }
pre { font: 12.5px/1.45 ui-monospace, monospace; margin: 0; padding: .6rem .8rem; overflow: auto; }
.output_area pre { color: #38414e; white-space: pre-wrap; overflow-wrap: anywhere; }
.output_stderr pre { background: #fff6ec; }
.output_error pre { background: #fdeeee; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: 13px; }
th, td { border: 1px solid #e3e7ec; padding: .25rem .6rem; text-align: left; }
.anchor-link { display: none; }
footer { margin-top: 3rem; color: #8a94a3; font-size: 12px; border-top: 1px solid #e3e7ec; }
"""
_WIDGET_TYPES = ("application/vnd.jupyter.widget-view+json", "application/javascript")


@dataclass(frozen=True)
class StepStart:
    """What is known when a step starts. An input of several records is a tuple of them."""

    step: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, Ref | tuple[Ref, ...]]
    tags: Mapping[str, str]
    folder: Path

    def named_inputs(self) -> dict[str, Ref]:
        """Each input record under a name of its own: ``name``, or ``name[0]`` and so on."""
        named: dict[str, Ref] = {}
        for name, value in self.inputs.items():
            if isinstance(value, str):
                named[name] = value
            else:
                named |= {f"{name}[{at}]": ref for at, ref in enumerate(value)}
        return named


class RunRecorder:
    """One pipeline run in MLflow, and as OpenLineage events if the environment asks for them.

    All methods return at once, except `close`.

    Args:
        connect: Makes the tracker, which may take seconds and may fail.
        tags: Tags of the run and all its steps, with ``workbench.pipeline``, ``workbench.run`` and
            ``workbench.workspace`` among them.
        project: The folder whose git state and lock are kept with the run.
        secrets: Secret values by name, redacted in tags, the git diff and the lock.
    """

    def __init__(
        self,
        connect: Callable[[], Tracker],
        store: Store,
        tags: Mapping[str, str],
        *,
        project: Path | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self._connect = connect
        self._store = store
        self._tags = dict(tags)
        self._project = project or Path.cwd()
        self._secrets = dict(secrets or {})
        self._source_tags: dict[str, str] = {}
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._children: dict[str, str] = {}
        self._run_ids: dict[Ref, str] = {}
        self._edges: EdgeIndex | None = None
        self._parent = ""
        self._stopped: tuple[str, str] | None = None
        self._error: Exception | None = None
        self.problems: list[str] = []
        """Where MLflow's registry differed from the release records when the run started."""
        self._tracker: Tracker | None = None
        self._events = _open_events(tags)
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()

    def start(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Start the parent run, and end the runs that a killed runner left running."""

        def work() -> None:
            same = ("workbench.pipeline", "workbench.workspace")
            self._mlflow.end_abandoned({key: self._tags[key] for key in same}, self._alive_runs())
            self._parent = self._mlflow.start(name, tags=self._tags, parameters=parameters)
            url = self._mlflow.run_url(self._parent)
            runs.save_mlflow_url(self._store.workspace, self._tags["workbench.run"], url)
            self._log_source()
            self.problems = registry.registry_problems(self._store.workspace, self._mlflow)

        if self._events:
            self._events.end_abandoned(self._store.workspace)
            self._events.run_started(parameters)
        self._work.put(work)

    def _alive_runs(self) -> set[str]:
        """Runs of this workspace whose runner is still alive."""
        known = runs.list_runs(self._store.workspace, self._tags["workbench.pipeline"])
        return {run.run_id for run in known if run.alive}

    def step_started(self, step: StepStart) -> None:
        if self._events:
            inputs = list(step.named_inputs().values())
            notebook = step.tags.get("workbench.notebook", "")
            self._events.step_started(step.step, step.parameters, inputs, notebook)
        self._work.put(lambda: self._start_step(step))

    def log_points(self, step: str, points: list[MetricPoint]) -> None:
        if points:
            self._work.put(lambda: self._mlflow.log_points(self._children[step], points))

    def step_ended(
        self, step: StepStart, status: str, tags: Mapping[str, str], run: Ref | None
    ) -> None:
        """End a step's run and log its files.

        Args:
            status: MLflow's status: FINISHED, FAILED or KILLED.
            run: The step's run record; None when it failed, or waits for people (FINISHED).
        """
        tags = {name: secret_scan.mask(value, self._secrets) for name, value in tags.items()}
        if status != "FINISHED":
            self._stopped = (status, f"{step.step}: {tags.get('workbench.failure', 'cancelled')}")
        if self._events:
            self._events.step_ended(
                step.step,
                status,
                inputs=list(step.named_inputs().values()),
                outputs=list(self._store.get(run, StepRun).outputs.values()) if run else (),
                reason=tags.get("workbench.failure", ""),
                waiting=status == "FINISHED" and run is None,
            )
        self._work.put(lambda: self._end_step(step, status, tags, run))

    def register(
        self,
        step: str,
        release_ref: Ref,
        bundle: Path,
        notes: Mapping[str, str],
        description: str = "",
    ) -> None:
        """Register a release, and point the aliases as the release records say.

        Args:
            notes: Further tags of the version.
            description: Markdown for its page; a link to the run is added.
        """

        def work() -> None:
            release = self._store.get(release_ref, Release)
            run_id = self._children[step]
            self._mlflow.log_files(run_id, [bundle], registry.BUNDLE_FOLDER)
            version = self._mlflow.register(
                release.model,
                run_id,
                source=registry.BUNDLE_FOLDER,
                tags={**notes, **registry.release_tags(release_ref, release)},
                aliases=(),
                number=release.version,
            )
            run = f"[{self._tags['workbench.run']}]({self._mlflow.run_link(self._parent)})"
            self._mlflow.describe(release.model, version, f"{description}\n\nMade by run {run}.")
            registry.point_aliases(self._store.workspace, self._mlflow, release.model)
            self._store.write_side(release_ref, REGISTRY, {"version": version, "run": run_id})

        self._work.put(work)

    def write_missing(self, step: StepStart, run: Ref) -> None:
        """Write a step that finished in an earlier run but never reached MLflow."""
        self._work.put(lambda: self._start_step(step))
        self.log_points(step.step, StepFiles(step.folder).points())
        tags = {"workbench.written": "later"}
        self._work.put(lambda: self._end_step(step, "FINISHED", tags, run))

    def end(
        self,
        status: str,
        tags: Mapping[str, str],
        *,
        name: str | None = None,
        description: str | None = None,
        points: Sequence[MetricPoint] = (),
    ) -> None:
        """End the parent run, with the reason when a step failed or was cancelled.

        Args:
            status: MLflow's.
            tags: Last tags.
            name: A new name of the run.
            description: Markdown for its page.
            points: Metrics of the whole run.
        """
        if self._stopped is not None:
            status, reason = self._stopped
            tags = {"workbench.failure": reason, **tags}
        if self._events:
            waiting = tags.get("workbench.waiting") == "True"
            self._events.run_ended(status, tags.get("workbench.failure", ""), waiting=waiting)
        self._work.put(
            lambda: self._mlflow.end(
                self._parent, status, tags, points, name=name, description=description
            )
        )

    def close(self) -> Exception | None:
        """Wait until everything is written; returns the error that prevented it, if any."""
        self._work.put(None)
        self._thread.join()
        if self._events:
            self._events.close()
        return self._error

    @property
    def _mlflow(self) -> Tracker:
        if self._tracker is None:
            self._tracker = self._connect()
        return self._tracker

    def _drain(self) -> None:
        while (work := self._work.get()) is not None:
            if self._error is None:
                self._attempt(work)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except WorkbenchError:
            try:
                self._tracker = self._connect()  # it may have been restarted elsewhere
                work()
            except Exception as error:
                self._error = error
        except Exception as error:
            self._error = error

    def _start_step(self, step: StepStart) -> None:
        inputs = step.named_inputs()
        upstream = self._upstream_runs(inputs.values())
        tags = {
            **self._tags,
            **self._source_tags,
            **step.tags,
            **record_tags(inputs, context="input", made_by=upstream),
            "workbench.step": step.step,
        }
        run_id = self._mlflow.start(
            step.step, tags=tags, parameters=step.parameters, parent=self._parent
        )
        self._children[step.step] = run_id
        self._mlflow.log_records(run_id, inputs, context="input", made_by=upstream)

    def _end_step(
        self, step: StepStart, status: str, tags: Mapping[str, str], run: Ref | None
    ) -> None:
        run_id = self._children[step.step]
        executed, result = step.folder / EXECUTED_NOTEBOOK, step.folder / RESULT_FILE
        page = step.folder / PAGE_FILE
        more: dict[str, str] = {}
        if executed.exists():
            caption = f"{self._tags['workbench.pipeline']} {self._tags['workbench.run']}"
            caption += f" · {step.step} · {status.lower()}"
            try:
                render_notebook(executed, page, caption=caption)
            except Exception as error:  # the page is a convenience
                more["workbench.page"] = f"could not be rendered: {error}"[:500]
        files = [path for path in (executed, page, result) if path.exists()]
        self._mlflow.log_files(run_id, files)
        figures = step.folder / "figures"
        if figures.exists():
            self._mlflow.log_files(run_id, [figures], "figures")
        if run is not None:
            more |= self._log_outputs(run, run_id)
        self._mlflow.end(run_id, status, {**tags, **more}, resources(result))
        if run is not None:
            self._store.write_side(run, TRACKED_MARK, {"run": run_id})

    def _log_outputs(self, run: Ref, run_id: str) -> dict[str, str]:
        """Log a step's outputs as datasets; returns the tags that repeat them."""
        record = self._store.get(run, StepRun)
        self._mlflow.log_records(run_id, record.outputs, context="output")
        self._run_ids |= dict.fromkeys(record.outputs.values(), run_id)
        tags = record_tags(record.outputs, context="output")
        return {**tags, "workbench.record": run, "workbench.environment": record.environment}

    def _log_source(self) -> None:
        """Log git state, uncommitted changes and the lock to the parent run."""
        state = read_git_state(self._project, self._secrets)
        if state is not None:
            self._source_tags |= state.tags()
            if state.dirty:
                self._mlflow.log_text(self._parent, state.as_patch(), "source/changes.patch")
        lock = self._project / _LOCK_FILE
        if lock.is_file():
            self._source_tags["workbench.lock"] = digest.of_file(lock)
            text = secret_scan.mask(lock.read_text(errors="replace"), self._secrets)
            self._mlflow.log_text(self._parent, text, f"environment/{lock.name}")
        self._mlflow.set_tags(self._parent, self._source_tags)

    def _upstream_runs(self, refs: Iterable[Ref]) -> dict[Ref, str]:
        """The MLflow runs that made these records, as far as they are known."""
        for ref in refs:
            if ref in self._run_ids:
                continue
            if self._edges is None:
                self._edges = EdgeIndex(self._store)
            run = self._edges.run_of(ref)
            mark = self._store.side(run, TRACKED_MARK) if run else None
            if mark:
                self._run_ids[ref] = mark["run"]
        return {ref: self._run_ids[ref] for ref in refs if ref in self._run_ids}


def _open_events(tags: Mapping[str, str]) -> LineageEvents | None:
    target = os.environ.get(EVENTS_VARIABLE, "").strip()
    if not target:
        return None
    from workbench.pipeline.openlineage import LineageEvents

    return LineageEvents(
        target,
        pipeline=tags["workbench.pipeline"],
        run_id=tags["workbench.run"],
        workspace=tags["workbench.workspace"],
    )


def render_notebook(notebook: Path, target: Path, *, caption: str = "") -> None:
    """Write an executed notebook as one HTML file without scripts; widgets become plain text.

    Args:
        caption: A line at the bottom of the page that identifies the run.

    Raises:
        ValueError: The file is not a notebook.
        OSError: It cannot be read or written.
    """
    content = ipynb.import_nbformat().read(str(notebook), as_version=4)
    for cell in content.cells:
        if "outputs" in cell:
            cell["outputs"] = _merge_streams(cell["outputs"])
        for output in cell.get("outputs", []):
            for view in _WIDGET_TYPES:
                output.get("data", {}).pop(view, None)
    exporter, colours = _html_exporter()
    body, _ = exporter.from_notebook_node(content)
    page = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_PAGE_POLICY}">'
        f"<title>{html.escape(notebook.parent.name)}</title>"
        f"<style>{_PAGE_STYLE}{colours}</style></head>"
        f"<body>{body}<footer>{html.escape(caption)}</footer></body></html>"
    )
    write_atomic(target, page.encode())


def _merge_streams(outputs: list[Any]) -> list[Any]:
    """Outputs with consecutive parts of one stream joined."""
    merged: list[Any] = []
    for output in outputs:
        is_stream = output["output_type"] == "stream"
        if is_stream and merged and merged[-1].get("name") == output["name"]:
            merged[-1]["text"] += output["text"]
        else:
            merged.append(output)
    return merged


@lru_cache(maxsize=1)
def _html_exporter() -> tuple[Any, str]:
    """The exporter and its style; cached, because importing nbconvert takes over a second."""
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

    colours: str = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    exporter = HTMLExporter(template_name="basic")  # type: ignore[no-untyped-call]
    return exporter, colours
