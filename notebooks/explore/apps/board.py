"""A board of what this workbench has made: runs, gates and coverage, read from its records."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Workbench board")

with app.setup:
    import os
    from collections import Counter
    from html import escape
    from typing import Any

    import marimo as mo
    import matplotlib.pyplot as plt

    from workbench import services
    from workbench.core import digest, workspace
    from workbench.core.errors import WorkbenchError
    from workbench.core.text import counted
    from workbench.data.slices import frame_conditions
    from workbench.data.telemetry import SHADOW
    from workbench.evaluation.gates import load_comparison
    from workbench.fleet.rollout import fleet_status
    from workbench.fleet.server import FleetFolder
    from workbench.labeling.answers import AnswerRow
    from workbench.labeling.sync import read_entry, sent_batches
    from workbench.monitoring.store import TelemetryStore
    from workbench.pipeline import kpis
    from workbench.records import catalog
    from workbench.records import dataset as datasets
    from workbench.records.base import GateReport, digest_of, short_ref
    from workbench.records.dataset import Dataset
    from workbench.records.frames import Role
    from workbench.records.model_types import ExportBundle, Release, StepRun
    from workbench.records.store import Store
    from workbench.records.types import Agreement, DatasetVersion, LabelBatch, LabelSet
    from workbench.release import registry


@app.function
def newest(store: Store, kind: str, limit: int = 200) -> list[str]:
    """References of a kind, the newest first."""
    return list(store.refs(kind))[::-1][:limit]


@app.function
def made_by_steps(store: Store, kind: str) -> list[str]:
    """References of a kind that finished steps made, the newest first; never what hands made."""
    runs = [store.get(ref, StepRun) for ref in store.refs(StepRun.KIND)]
    made = {output for run in runs for output in run.outputs.values()}
    return [ref for ref in newest(store, kind) if ref in made]


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
    if not services.status(place, ("mlflow",))["mlflow"].usable:
        return "MLflow is not running, so its registry was not compared with the signed records."
    problems = registry.registry_problems(place, registry.connect(place))
    lines = [f"- **{problem}**" for problem in problems]
    fix = (
        "\n\n`workbench doctor --rebuild-registry` puts MLflow right; references are not affected."
    )
    return "\n".join(lines) + fix if problems else "MLflow says what the signed records say."


@app.function
def run_rows(store: Store) -> list[dict[str, Any]]:
    """One row a finished step."""
    rows = []
    for ref in newest(store, StepRun.KIND):
        run = store.get(ref, StepRun)
        rows.append(
            {
                "when": store.side(ref, "created")["at"][:19].replace("T", " "),
                "step": run.step,
                "made": ", ".join(sorted(run.outputs)) or "-",
                "parameters": ", ".join(f"{k}={v}" for k, v in sorted(run.parameters.items())),
                "run": digest.shorten(digest_of(ref)),
            }
        )
    return rows


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
def model_of(store: Store, report: GateReport) -> str:
    """The judged model: name, steps and AP50; the bundle's digest where its record is away."""
    if not store.exists(report.candidate):
        return digest.shorten(digest_of(report.candidate))
    checkpoint = store.get(report.candidate, ExportBundle).checkpoint
    rows = {row.ref: str(row) for row in catalog.list_models(store)}
    return rows.get(checkpoint, digest.shorten(digest_of(report.candidate)))


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
            f"<b>{escape(name)}</b><br>{escape(state)}</div>"
        )
    row = '<div style="align-self:center">→</div>'.join(boxes)
    why = f" ({escape(rollout['why'])})" if rollout["why"] else ""
    return (
        f"<p><b>{escape(rollout['id'])}</b>: {escape(rollout['state'])}{why}; {rollout['running']} "
        f"vehicles run it, {rollout['back']} went back</p>"
        f'<div style="display:flex;gap:8px;flex-wrap:wrap">{row}</div>'
    )


@app.function
def kpi_rows(found: kpis.Kpis) -> list[dict[str, str]]:
    """One row a key figure; what was never observed says so."""

    def rate(one: kpis.Rate | None) -> str:
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
def daily_rates(url: str) -> dict[str, tuple[list[int], list[float]]]:
    """Fleet days and events in 1,000 frames by signal, without rides of the shadow."""
    with TelemetryStore(url).connect() as connection:
        rows = connection.execute(
            "SELECT signal, day, 1000 * sum(sum) / sum(n) FROM telemetry WHERE n > 0 AND signal IN "
            "('near_misses', 'frames.fallback', 'frames.late') AND NOT starts_with(model, ?) "
            "GROUP BY signal, day ORDER BY signal, day",
            [SHADOW],
        ).fetchall()
    found: dict[str, tuple[list[int], list[float]]] = {}
    for signal, day, value in rows:
        days, values = found.setdefault(signal, ([], []))
        days.append(day)
        values.append(float(value))
    return found


@app.cell
def _():
    place = workspace.find_workspace()
    store = Store(place)
    refresh = mo.ui.refresh(options=["10s", "1m"], label="read the records again")
    mo.vstack([mo.md(f"# Workbench board\n\nThe records of `{place.root.parent.name}`."), refresh])
    return refresh, store


@app.cell
def _(refresh, store):
    refresh.value
    _reports = made_by_steps(store, GateReport.KIND)
    _releases = made_by_steps(store, Release.KIND)
    if _reports:
        _report = store.get(_reports[0], GateReport)
        _note = " **The judged drives are simulated.**" if _report.simulated else ""
        _signed = {row.ref for row in catalog.list_releases(store) if row.promoted}
        _promoted = _releases and _releases[0] in _signed
        _next = "promoted to champion" if _promoted else "registered as candidate, not promoted"
        _said = f" The newest release is {_next}." if _releases else ""
        _view = mo.vstack(
            [
                mo.md(
                    f"## Gates: {_report.verdict}\n\n{len(_report.gates)} gates on "
                    f"{model_of(store, _report)}.{_note}{_said}"
                ),
                mo.ui.table(gate_rows(_report), selection=None, page_size=20),
            ]
        )
    else:
        _view = mo.md("## Gates\n\nNo model was judged yet. `make run` goes all the way there.")
    _view


@app.cell
def _(refresh, store):
    refresh.value
    _reports = made_by_steps(store, GateReport.KIND)
    _rows = comparison_rows(store, _reports[0]) if _reports else []
    if _rows:
        _report = store.get(_reports[0], GateReport)
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
    _rows = run_rows(store)
    if _rows:
        _view = mo.vstack(
            [
                mo.md(f"## Runs\n\n{counted(len(_rows), 'finished step')}, the newest first."),
                mo.ui.table(_rows, selection=None, page_size=12),
            ]
        )
    else:
        _view = mo.md("## Runs\n\nNo step has finished yet. `make run` runs them all.")
    _view


@app.cell
def _(refresh, store):
    refresh.value
    _url = os.environ.get("WORKBENCH_TELEMETRY") or str(store.workspace.root / "telemetry")
    _parts = [mo.md("## Fleet")]
    _folder = FleetFolder(store.workspace.root / "fleet")
    if _folder.exists:
        _status = fleet_status(_folder.director())
        _text = f"{counted(_status['vehicles'], 'vehicle')}, evidence: {_status['evidence']}"
        _parts += [
            mo.md(_text),
            *(mo.Html(stage_map(one)) for one in _status["rollouts"][-3:][::-1]),
        ]
    _series = daily_rates(_url)
    if _series:
        _figure, _axes = plt.subplots(
            1, len(_series), figsize=(4 * len(_series), 2.5), squeeze=False
        )
        for _axis, (_name, (_days, _values)) in zip(_axes[0], _series.items(), strict=True):
            _axis.plot(_days, _values, marker="o")
            _axis.set(title=_name, xlabel="fleet day", ylabel="in 1,000 frames", ylim=(0, None))
        _figure.tight_layout()
        plt.close(_figure)
        _parts.append(_figure)
    if len(_parts) == 1:
        _parts.append(mo.md("No fleet yet: `workbench fleet up --vehicles 20`."))
    mo.vstack(_parts)


@app.cell
def _(refresh, store):
    refresh.value
    _url = os.environ.get("WORKBENCH_TELEMETRY") or str(store.workspace.root / "telemetry")
    _found = kpis.measure_kpis(store.workspace, telemetry=_url)
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
