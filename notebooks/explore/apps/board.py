"""A board of what this workbench has made: runs as they go, gates, coverage, labelers, models.

Everything is read from the workspace's records; nothing is changed. What is quick to read comes
first on the page, so that the newest run is there while the rest is still read.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Workbench board")

with app.setup:
    import contextlib
    import html
    import os
    from collections import Counter
    from itertools import islice
    from pathlib import Path
    from typing import Any

    import marimo as mo

    from workbench.core import digest, workspace
    from workbench.core.errors import WorkbenchError
    from workbench.core.text import counted
    from workbench.pipeline import runs
    from workbench.pipeline.pipeline_file import read_pipeline_file
    from workbench.pipeline.runs import RunState
    from workbench.records import catalog
    from workbench.records import dataset as datasets
    from workbench.records.base import GateReport, digest_of, short_ref
    from workbench.records.dataset import Dataset
    from workbench.records.frames import Role
    from workbench.records.model_types import ExportBundle, Release
    from workbench.records.store import Store
    from workbench.records.types import Agreement, DatasetVersion, LabelBatch, LabelSet

    SHOWN_RUNS = 200
    # Fill and text of a step, readable on light and on dark pages.
    STATUS_COLOURS = {
        "ran": ("#c6ecd7", "#0b3d22"),
        "skipped": ("#e3e6ea", "#2b3138"),
        "running": ("#cfe3ff", "#0a2f66"),
        "waiting": ("#ffe7b3", "#4a3200"),
        "failed": ("#ffd0c7", "#5c1405"),
        "killed": ("#ffd0c7", "#5c1405"),
    }


@app.function
def newest(store: Store, kind: str, limit: int = 200) -> list[str]:
    """References of a kind, the newest first."""
    return list(store.refs(kind))[::-1][:limit]


@app.function
def made_by_steps(store: Store, kind: str) -> list[str]:
    """References of a kind that finished steps made, the newest first; never what hands made."""
    from workbench.pipeline.lineage.graph import EdgeIndex

    index = EdgeIndex(store)
    return [ref for ref in newest(store, kind) if index.run_of(ref)]


@app.function
def run_rows(place: workspace.Workspace) -> list[dict[str, Any]]:
    """One row a run of a pipeline, the newest first."""
    rows = []
    for run in islice(runs.list_runs(place), SHOWN_RUNS):
        counts = Counter(step.status for step in run.steps)
        stopped = [step for step in run.steps if step.status in ("failed", "waiting", "running")]
        rows.append(
            {
                "started": run.started_at[:16].replace("T", " "),
                "run": run.run_id,
                "pipeline": run.pipeline,
                "state": run.state,
                "took": "-" if run.seconds is None else f"{run.seconds / 60:.1f} min",
                "steps": ", ".join(f"{count} {status}" for status, count in counts.items()),
                "at": "; ".join(f"{step.name} {step.reason}".strip() for step in stopped) or "-",
            }
        )
    return rows


@app.function
def run_graph(run: RunState) -> str:
    """The steps of a run as a Mermaid diagram, coloured by status; its file says what needs what."""
    needs: set[tuple[str, str]] = set()
    with contextlib.suppress(WorkbenchError):  # the file may be gone: steps without arrows
        for name, step in read_pipeline_file(Path(run.pipeline_file)).steps.items():
            sources = [source.partition(".")[0] for source in step.inputs.values()]
            needs |= {(source, name) for source in (*sources, *step.after)}
    lines = ["graph LR"]
    for number, step in enumerate(run.steps):
        status = run.state if (step.status, run.state) == ("running", "killed") else step.status
        took = f" · {step.seconds:.0f} s" if step.seconds else ""
        lines.append(f's{number}["{html.escape(step.name)}<br/>{status}{took}"]')
        fill, ink = STATUS_COLOURS.get(status, ("#f4f5f7", "#4a5058"))
        lines.append(f"style s{number} fill:{fill},color:{ink},stroke:{ink}")
    base = [step.name.partition("[")[0] for step in run.steps]  # of a fan-out
    lines += [
        f"s{first} --> s{second}"
        for first, source in enumerate(base)
        for second, name in enumerate(base)
        if (source, name) in needs
    ]
    if not needs and len(base) > 1:
        lines.append(" ~~~ ".join(f"s{number}" for number in range(len(base))))  # in a row
    return "\n".join(lines)


@app.function
def run_notes(place: workspace.Workspace, run: RunState) -> str:
    """What a run waits for or failed at, and what to do, as Markdown."""
    lines = []
    for step in run.steps:
        if step.status in ("failed", "waiting"):
            again = f"workbench run {run.pipeline_file} --from {step.name}"
            lines.append(
                f"- **{step.name} {step.status}**: {html.escape(step.reason)}  \n"
                f"  `workbench logs {run.run_id} {step.name}` shows its output with times; "
                f"`{again}` runs it again"
            )
    if url := runs.mlflow_url(place, run.run_id):
        lines.append(f"- [metrics, files and notebooks in MLflow]({url})")
    return "\n".join(lines)


@app.function
def model_rows(store: Store) -> list[dict[str, Any]]:
    """One row a trained model: the champion, those of pipelines and those made by hand."""
    return [
        {
            "model": row.names[0] if row.names else digest.shorten(digest_of(row.ref)),
            "state": "champion" if row.champion else "made by hand" if row.by_hand else "candidate",
            "made by": row.made_by,
            "dataset": row.dataset,
            "steps": "-" if row.steps is None else row.steps,
            "AP50": "-" if row.ap50 is None else f"{row.ap50:.3f}",
            "simulated": "yes" if row.simulated else "no",
        }
        for row in catalog.list_models(store)
    ]


@app.function
def release_rows(store: Store) -> list[dict[str, Any]]:
    """One row a release: its aliases, and every waiver that it has."""
    return [
        {
            "release": f"{row.model}/{row.version}" if row.version else row.model,
            "aliases": ", ".join(row.aliases) or "-",
            "verdict": row.verdict,
            "waivers": "; ".join(row.waived) or "-",
            "when": row.created,
        }
        for row in catalog.list_releases(store)
    ]


@app.function
def registry_note(place: workspace.Workspace) -> str:
    """Where MLflow says something else than the signed records; empty where it does not run."""
    from workbench import services
    from workbench.release import registry

    if not services.status(place, ("mlflow",))["mlflow"].usable:
        return "MLflow is not running, so its registry was not compared with the signed records."
    problems = registry.registry_problems(place, registry.connect(place))
    lines = [f"- **{problem}**" for problem in problems]
    fix = (
        "\n\n`workbench doctor --rebuild-registry` puts MLflow right; references are not affected."
    )
    return "\n".join(lines) + fix if problems else "MLflow says what the signed records say."


@app.function
def gate_rows(report: GateReport) -> list[dict[str, Any]]:
    """One row a gate, refusals first."""
    order = {"FAIL": 0, "INSUFFICIENT EVIDENCE": 1, "PASS": 2}

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4g}"

    return [
        {
            "verdict": str(gate.verdict),
            "gate": gate.name,
            "slice": gate.slice,
            "value": number(gate.value),
            "interval": "-" if gate.low is None else f"{number(gate.low)} to {number(gate.high)}",
            "bound": number(gate.bound),
            "n": f"{gate.n} {gate.unit}",
            "required": "yes" if gate.required else "no",
            "why": gate.why,
        }
        for gate in sorted(report.gates, key=lambda gate: (order[gate.verdict], gate.name))
    ]


@app.function
def comparison_rows(store: Store, report: str) -> list[dict[str, Any]]:
    """One row a slice: whether the judged model is better, worse or unknown beside the other."""
    from workbench.evaluation.gates import load_comparison

    def change(one: dict[str, float | None]) -> str:
        if one["value"] is None or one["low"] is None or one["high"] is None:
            return "-"
        return f"{one['value']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})"

    return [
        {
            "slice": row["slice"],
            "verdict": row["verdict"],
            "objects": row["boxes"],
            "drives": row["drives"],
            "recall": change(row["recall"]),
            "precision": change(row["precision"]),
            "AP50": change(row["ap50"]),
        }
        for row in load_comparison(store, report)
    ]


@app.function
def model_of(store: Store, report: GateReport, models: dict[str, str]) -> str:
    """The judged model: name, steps and AP50; the bundle's digest where its record is away."""
    if not store.exists(report.candidate):
        return digest.shorten(digest_of(report.candidate))
    checkpoint = store.get(report.candidate, ExportBundle).checkpoint
    return models.get(checkpoint, digest.shorten(digest_of(report.candidate)))


@app.function
def coverage_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """Labelled boxes of each class by light, on frames that are learned from, thinnest first."""
    learned = dataset.role(Role.SEED, Role.TRAIN)
    light = {frame.id: str(frame.conditions.light) for frame in learned.frames}
    counts = Counter((label.cls, light[label.frame]) for label in learned.labels)
    lights = sorted({str(frame.conditions.light) for frame in dataset.frames})
    rows = [
        {
            "class": cls,
            **{name: counts[cls, name] for name in lights},
            "all": sum(counts[cls, name] for name in lights),
        }
        for cls in dataset.label_schema.classes
    ]
    return sorted(rows, key=lambda row: (row["all"], row["class"]))


@app.function
def coverage_rank(store: Store, ref: str) -> tuple[int, int]:
    """Orders versions: answers held back for replay last, then by labels."""
    version = store.get(ref, DatasetVersion)
    return (version.made_by != "withhold", version.labels)


@app.function
def labeler_rows(store: Store) -> list[dict[str, Any]]:
    """One row a labeler over all label sets: work, time, agreement with others and with gold."""
    people: dict[str, Counter[str]] = {}
    simulated: set[str] = set()
    for ref in store.refs(LabelSet.KIND):
        for one in store.get(ref, LabelSet).annotators:
            tally = people.setdefault(one.id, Counter())
            tally.update(frames=one.frames, boxes=one.boxes, minutes=one.minutes or 0)
            simulated |= {one.id} if one.simulated else set()
    rates: dict[tuple[str, str], tuple[int, float]] = {}
    for ref in store.refs(Agreement.KIND):
        for rate in store.get(ref, Agreement).rates:
            if rate.subject == "labeler" and rate.missed is not None:
                count, missed = rates.get((rate.name, rate.against), (0, 0.0))
                rates[rate.name, rate.against] = count + rate.n, missed + rate.missed * rate.n

    def agreement(name: str, against: str) -> str:
        count, missed = rates.get((name, against), (0, 0.0))
        return f"{1 - missed / count:.0%} of {count:,} boxes" if count else "-"

    return [
        {
            "labeler": name,
            "frames": tally["frames"],
            "boxes": tally["boxes"],
            "minutes": "-" if name in simulated else f"{tally['minutes']:.0f}",
            "seconds a frame": "-"
            if name in simulated or not tally["frames"]
            else f"{60 * tally['minutes'] / tally['frames']:.0f}",
            "boxes that others drew too": agreement(name, "labelers"),
            "boxes as in gold": agreement(name, "gold"),
            "who": "replayed, nobody" if name in simulated else "a person",
        }
        for name, tally in sorted(people.items(), key=lambda item: -item[1]["frames"])
    ]


@app.function
def labeling_time_rows(store: Store) -> list[dict[str, Any]]:
    """Minutes of people by slice of the frames, and those on safety frames."""
    from workbench.data.slices import frame_conditions
    from workbench.labeling.answers import AnswerRow

    spent: Counter[str] = Counter()
    frames: Counter[str] = Counter()
    for ref in store.refs(LabelSet.KIND):
        labelset = store.get(ref, LabelSet)
        if labelset.simulated or not store.exists(labelset.batch):
            continue
        version = datasets.load_dataset(store, store.get(labelset.batch, LabelBatch).dataset)
        by_id = {frame.id: frame for frame in version.frames}
        for row in datasets.read_json_lines(store.payload(ref, "answers.jsonl"), AnswerRow):
            if not row.minutes or row.frame not in by_id:
                continue
            frame = by_id[row.frame]
            for name in (*frame_conditions(frame), f"role={frame.role}"):
                spent[name] += row.minutes
                frames[name] += 1
    return [
        {"slice": name, "answers": frames[name], "minutes": f"{minutes:.0f}"}
        for name, minutes in spent.most_common()
    ]


@app.function
def backlog_rows(store: Store) -> list[dict[str, Any]]:
    """Batches that were sent and are not collected, the oldest first."""
    from workbench.labeling.sync import read_entry, sent_batches

    rows = []
    for ref in sent_batches(store.workspace):
        entry = read_entry(store.workspace, ref)
        if entry is None or entry.collected or not store.exists(ref):
            continue
        sent = store.side(ref, "created")["at"][:10]
        frames = len(store.get(ref, LabelBatch).frames)
        rows.append({"since": sent, "project": entry.title, "frames": frames})
    return sorted(rows, key=lambda row: row["since"])


@app.function
def role_rows(dataset: Dataset) -> list[dict[str, Any]]:
    """Frames, drives and boxes of each role."""
    rows = []
    for role in Role:
        part = dataset.role(role)
        if part.frames:
            sizes = {"frames": len(part.frames), "drives": len(part.drives)}
            rows.append({"role": str(role), **sizes, "boxes": len(part.labels)})
    return rows


@app.function
def stage_map(rollout: dict[str, Any]) -> str:
    """The stages of a rollout from left to right, as HTML: done, here with its state, or ahead."""
    names = rollout["stages"]
    here = len(names) if rollout["stage"] is None else names.index(rollout["stage"])
    bad = rollout["state"] in {"rolled-back", "aborted", "paused"}
    boxes = []
    for number, name in enumerate(names):
        state = "done" if number < here else rollout["state"] if number == here else "ahead"
        colour = "#2f7d4f" if number < here else "#888" if number > here else "#2563a8"
        colour = "#b3452c" if number == here and bad else colour
        boxes.append(
            f'<div style="border:2px solid {colour};border-radius:6px;padding:4px 12px">'
            f"<b>{html.escape(name)}</b><br>{html.escape(state)}</div>"
        )
    row = '<div style="align-self:center">→</div>'.join(boxes)
    why = f" ({html.escape(rollout['why'])})" if rollout["why"] else ""
    return (
        f"<p><b>{html.escape(rollout['id'])}</b>: {html.escape(rollout['state'])}{why}; {rollout['running']} "
        f"vehicles run it, {rollout['back']} went back</p>"
        f'<div style="display:flex;gap:8px;flex-wrap:wrap">{row}</div>'
    )


@app.function
def kpi_rows(found: Any) -> list[dict[str, str]]:
    """One row a key figure of `kpis.measure_kpis`; what was never observed says so."""

    def rate(one: Any) -> str:
        if one is None:
            return "not observed"
        interval = "" if one.low is None else f" ({one.low:.1%} to {one.high:.1%})"
        return f"{one.value:.1%}{interval}"

    def share(value: float | None, form: str = ".0%") -> str:
        return "not observed" if value is None else format(value, form)

    rows = {
        f"alarm in {one.slice} to the updated fleet": "goes on"
        if one.hours is None
        else f"{one.hours:.2f} h, {counted(len(one.hops), 'hop')}"
        for one in found.alarm_to_model
    }
    hours = list(found.ingest_to_curated_hours.values())
    minutes = [one.boxes_a_minute for one in found.labeling if one.boxes_a_minute]
    rows |= {
        "ingest to curated, last": f"{hours[-1]:.2f} h" if hours else "not observed",
        "experiments in the last week": str(found.experiments_a_week),
        "automation share": share(found.automation_share),
        "releases with whole lineage": share(found.lineage_complete),
        "wrong boxes": rate(found.false_positive_rate),
        "missed objects": rate(found.false_negative_rate),
        "near misses and fallbacks in 1,000 frames": share(found.disengagement_proxy, ".2f"),
        "boxes a labeler's minute, last": f"{minutes[0]:.1f}" if minutes else "not observed",
        "CPU hours of the last run": f"{found.runs[0].cpu_hours:.2f}" if found.runs else "-",
    }
    return [{"figure": name, "value": value} for name, value in rows.items()]


@app.function
def daily_values(url: str) -> dict[str, tuple[list[int], list[float]]]:
    """Fleet days and values by signal, without rides of the shadow."""
    from workbench.data.telemetry import SHADOW
    from workbench.monitoring.store import TelemetryStore

    counted_events = ("near_misses", "frames.fallback", "frames.late")
    with TelemetryStore(url).connect() as connection:
        rows = connection.execute(
            "SELECT signal, day, sum(sum * resolution) / sum(n) FROM telemetry WHERE n > 0 AND "
            "list_contains(?, signal) AND NOT starts_with(model, ?) GROUP BY signal, day "
            "ORDER BY signal, day",
            [[*counted_events, "confidence", "input.brightness"], SHADOW],
        ).fetchall()
    found: dict[str, tuple[list[int], list[float]]] = {}
    for signal, day, value in rows:
        is_event = signal in counted_events
        name = f"{signal} in 1,000 frames" if is_event else f"mean {signal}"
        days, values = found.setdefault(name, ([], []))
        days.append(day)
        values.append(1000 * value if is_event else value)
    return found


@app.function
def draw_series(series: dict[str, tuple[list[int], list[float]]]) -> bytes:
    """A PNG with one plot a signal."""
    import io

    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(series), figsize=(3.2 * len(series), 2.5), squeeze=False)
    for axis, (name, (days, values)) in zip(axes[0], series.items(), strict=True):
        axis.plot(days, values, marker="o")
        axis.set(title=name, xlabel="fleet day")
        axis.set_ylim(bottom=0)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    plt.close(figure)
    return stream.getvalue()


@app.cell
def _():
    place = workspace.find_workspace()
    store = Store(place)
    live = mo.ui.refresh(options=["5s", "30s"], default_interval="5s", label="runs")
    refresh = mo.ui.refresh(options=["1m", "10m"], label="all else")
    mo.vstack(
        [
            mo.md(f"# Workbench board\n\nThe records of `{place.root.parent.name}`."),
            mo.hstack([mo.md("Read again:"), live, refresh], justify="start"),
        ]
    )
    return live, place, refresh, store


@app.cell
def _(live, place):
    live.value
    _rows = run_rows(place)
    if _rows:
        _table = mo.ui.table(_rows, selection=None, page_size=8)
        _view = mo.vstack([mo.md(f"## Runs\n\n{counted(len(_rows), 'run')}."), _table])
    else:
        _view = mo.md("## Runs\n\nNo pipeline has run yet. `make run` runs all of one.")
    _view


@app.cell
def _(place, refresh):
    refresh.value
    _ids = [run.run_id for run in islice(runs.list_runs(place), SHOWN_RUNS)]
    # Apart from the table, which is drawn anew every few seconds: a choice stays.
    run = mo.ui.dropdown(
        options={"the newest": runs.LATEST_RUN, **{one: one for one in _ids}},
        value="the newest",
        label="steps of run",
    )
    return (run,)


@app.cell
def _(live, place, run):
    live.value
    try:
        _run = runs.find_run(place, run.value)
        _view = mo.vstack([run, mo.mermaid(run_graph(_run)), mo.md(run_notes(place, _run))])
    except WorkbenchError:
        _view = mo.md("")  # there is none yet, or its folder was removed
    _view


@app.cell
def _(refresh, store):
    refresh.value
    _models = {row.ref: str(row) for row in catalog.list_models(store)}
    _reports = {}
    for _ref in made_by_steps(store, GateReport.KIND):
        _report = store.get(_ref, GateReport)
        _when = store.side(_ref, "created")["at"][:16].replace("T", " ")
        _reports[f"{model_of(store, _report, _models)}: {_report.verdict}, {_when}"] = _ref
    judged = mo.ui.dropdown(
        options=_reports, value=next(iter(_reports), None), label="judged model"
    )
    return (judged,)


@app.cell
def _(judged, store):
    if judged.value:
        _report = store.get(judged.value, GateReport)
        _note = " **The judged drives are simulated.**" if _report.simulated else ""
        _releases = made_by_steps(store, Release.KIND)
        _signed = {row.ref for row in catalog.list_releases(store) if row.promoted}
        _promoted = _releases and _releases[0] in _signed
        _next = "promoted to champion" if _promoted else "registered as candidate, not promoted"
        _said = f" The newest release is {_next}." if _releases else ""
        _view = mo.vstack(
            [
                mo.md(
                    f"## Gates: {_report.verdict}\n\n{counted(len(_report.gates), 'gate')}."
                    f"{_note}{_said}"
                ),
                judged,
                mo.ui.table(gate_rows(_report), selection=None, page_size=20),
            ]
        )
    else:
        _view = mo.md("## Gates\n\nNo model was judged yet. `make run` goes all the way there.")
    _view


@app.cell
def _(judged, store):
    _rows = comparison_rows(store, judged.value) if judged.value else []
    if _rows:
        _report = store.get(judged.value, GateReport)
        _models = f"{short_ref(_report.reference)} {short_ref(_report.candidate)}"
        _text = (
            "## Beside the model it would replace\n\nDifferences with intervals over drives; "
            "verdicts on recall, corrected for the number of slices. A page with pictures of the "
            f"frames that changed: `workbench compare {_models} -o page.html`"
        )
        _view = mo.vstack([mo.md(_text), mo.ui.table(_rows, selection=None, page_size=20)])
    else:
        _view = mo.md("")
    _view


@app.cell
def _(refresh, store):
    refresh.value
    _names = {}
    for _ref in newest(store, DatasetVersion.KIND):
        _version = store.get(_ref, DatasetVersion)
        _label = f"{_version.name} {digest.shorten(digest_of(_ref))} ({_version.made_by})"
        _names[_label] = _ref
    _fullest = max(_names, key=lambda name: coverage_rank(store, _names[name]), default=None)
    version = mo.ui.dropdown(options=_names, value=_fullest, label="dataset version")
    return (version,)


@app.cell
def _(store, version):
    if version.value is None:
        _view = mo.md(
            "## Coverage\n\nThere is no dataset yet. `workbench ingest` or `make run` makes one."
        )
    else:
        try:
            _dataset = datasets.load_dataset(store, version.value)
            _note = " **Simulated drives.**" if _dataset.simulated else ""
            _view = mo.vstack(
                [
                    mo.md(f"## Coverage\n\nBoxes to learn from, thinnest class first.{_note}"),
                    version,
                    mo.ui.table(coverage_rows(_dataset), selection=None, page_size=20),
                    mo.ui.table(role_rows(_dataset), selection=None),
                ]
            )
        except WorkbenchError as _error:
            _view = mo.vstack([version, mo.md(f"This version cannot be read: {_error}")])
    _view


@app.cell
def _(refresh, store):
    refresh.value
    _people, _times, _backlog = labeler_rows(store), labeling_time_rows(store), backlog_rows(store)
    _parts = [mo.md("## Labelers")]
    if _backlog:
        _waiting = sum(row["frames"] for row in _backlog)
        _parts += [
            mo.md(f"{counted(_waiting, 'frame')} out with labelers. `workbench label status`"),
            mo.ui.table(_backlog, selection=None),
        ]
    if _people:
        _parts.append(mo.ui.table(_people, selection=None, page_size=20))
    if _times:
        _parts += [
            mo.md("Minutes of people by slice; `role=safety` is the time spent on safety frames."),
            mo.ui.table(_times, selection=None, page_size=12),
        ]
    if len(_parts) == 1:
        _parts.append(mo.md("Nothing was sent to labelers yet: `workbench label send SELECTION`."))
    mo.vstack(_parts)


@app.cell
def _(refresh, store):
    refresh.value
    _rows = model_rows(store)
    mo.vstack([mo.md("## Models"), mo.ui.table(_rows, selection=None)] if _rows else [])


@app.cell
def _(refresh, store):
    refresh.value
    _rows = release_rows(store)
    _head = mo.md(f"## Releases\n\n{registry_note(store.workspace) if _rows else ''}")
    mo.vstack([_head, mo.ui.table(_rows, selection=None)] if _rows else [])


@app.cell
def _(refresh, store):
    refresh.value
    _url = os.environ.get("WORKBENCH_TELEMETRY") or str(store.workspace.root / "telemetry")
    _parts = [mo.md("## Fleet")]
    from workbench.fleet.rollout import fleet_status as _fleet_status
    from workbench.fleet.server import FleetFolder as _FleetFolder

    _folder = _FleetFolder(store.workspace.root / "fleet")
    if _folder.exists:
        _status = _fleet_status(_folder.director())
        _text = f"{counted(_status['vehicles'], 'vehicle')}, evidence: {_status['evidence']}"
        _parts += [
            mo.md(_text),
            *(mo.Html(stage_map(one)) for one in _status["rollouts"][-3:][::-1]),
        ]
    _series = daily_values(_url)
    if _series:
        _parts.append(mo.image(draw_series(_series), alt="signals of the fleet by day"))
    if len(_parts) == 1:
        _parts.append(mo.md("No fleet yet: `workbench fleet up --vehicles 20`."))
    mo.vstack(_parts)


@app.cell
def _(refresh, store):
    refresh.value
    _url = os.environ.get("WORKBENCH_TELEMETRY") or str(store.workspace.root / "telemetry")
    from workbench.pipeline import kpis as _kpis

    _found = _kpis.measure_kpis(store.workspace, telemetry=_url)
    _hops = [
        {"alarm": f"{short_ref(one.alarm)} {one.slice}", "hop": hop.name, "hours": f"{hop.hours:.2f}",
         "by": hop.by}
        for one in _found.alarm_to_model
        for hop in one.hops
    ]  # fmt: skip
    _text = "## Key figures\n\nRead from records, runs and the audit log: `workbench monitor kpis`."
    _parts = [mo.md(_text), mo.ui.table(kpi_rows(_found), selection=None, page_size=20)]
    mo.vstack([*_parts, mo.ui.table(_hops, selection=None)] if _hops else _parts)


if __name__ == "__main__":
    app.run()
