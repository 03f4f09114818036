"""``schedule``: a pipeline in the form that somebody else's scheduler wants."""

from __future__ import annotations

from pathlib import Path

import click

from workbench.commands.common import emit, json_option, say
from workbench.commands.pipelines import parameter_option, pipeline_argument
from workbench.errors import ParameterError

_SYSTEMS = ("cron", "systemd", "dagster", "airflow", "k8s")


@click.command()
@pipeline_argument
@click.option("--for", "system", type=click.Choice(_SYSTEMS), required=True, help="Who runs it.")
@parameter_option
@click.option(
    "--at", metavar="CRON", help="When: '30 2 * * mon-fri', or @daily; else as the file says."
)
@click.option("--timezone", metavar="ZONE", help="Of --at, such as Europe/Berlin; else UTC.")
@click.option(
    "--image", default="workbench:latest", show_default=True, help="For k8s: the image to run."
)
@click.option(
    "-o", "folder", type=click.Path(path_type=Path, file_okay=False), help="Folder to write into."
)
@json_option
def schedule(
    pipeline: Path,
    system: str,
    given: tuple[str, ...],
    at: str | None,
    timezone: str | None,
    image: str,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Write what another scheduler needs to run PIPELINE; nothing is installed or started.

    Without -o the files are printed.
    """
    from workbench import workspace
    from workbench.commands.pipelines import pairs
    from workbench.pipeline.definition import graph
    from workbench.pipeline.schedules import SYSTEMS, job

    texts = pairs(given)
    loaded = graph.load(pipeline, texts, base=Path.cwd())
    made = job.make(
        loaded,
        workspace.find(),
        texts,
        at=at,
        timezone=timezone,
        image=image,
        folder=Path.cwd(),
    )
    files = SYSTEMS[system].emit(made)
    install = SYSTEMS[system].install.format(folder=folder or ".", name=made.name)
    if folder is not None:
        _write(folder, files)
    value = {
        "pipeline": made.name,
        "for": system,
        "cron": made.time.text,
        "timezone": made.timezone,
        "files": files if folder is None else {name: str(folder / name) for name in files},
        "install": install,
    }
    emit(value, as_json=as_json, text=_shown(files, folder))
    if folder is not None:
        say(f"next: {install}")


def _write(folder: Path, files: dict[str, str]) -> None:
    from workbench import workspace

    try:
        for name, text in files.items():
            workspace.write_atomic(folder / name, text.encode())
    except OSError as error:
        raise ParameterError(
            f"the folder of -o cannot be written: {error.strerror}", where=folder
        ) from error


def _shown(files: dict[str, str], folder: Path | None) -> str:
    if folder is not None:
        return "\n".join(str(folder / name) for name in files)
    if len(files) == 1:
        return next(iter(files.values())).rstrip("\n")
    return "\n".join(f"# ---- {name}\n{text}" for name, text in files.items())
