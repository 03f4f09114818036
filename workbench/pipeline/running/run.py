"""Run a pipeline: skip what is done, run what is not, stop cleanly where it cannot go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from workbench.errors import ContractError
from workbench.pipeline.definition.graph import Pipeline
from workbench.pipeline.planning import plan
from workbench.pipeline.planning.plan import ALL, Choice
from workbench.pipeline.running import report
from workbench.pipeline.running.executors import Executor
from workbench.pipeline.running.executors.local import LocalExecutor
from workbench.pipeline.running.report import RunReport
from workbench.pipeline.running.session import Display, Session
from workbench.workspace import Workspace


def run(
    place: Workspace,
    pipeline: Pipeline,
    display: Display,
    *,
    choice: Choice = ALL,
    executor: Callable[[], Executor] = LocalExecutor,
) -> RunReport:
    """Run ``pipeline`` to its end or to where it has to stop.

    Several runs may be under way at once, also of one pipeline: the lock of a step's key keeps them
    from doing the same work twice.

    Args:
        choice: Which steps to run, and which of them although nothing changed.
        executor: Makes the executor, once a step really has to run.

    Raises:
        ContractError: A chosen step reads what has not been made.
    """
    _check(place, pipeline, choice)
    session = Session(place, pipeline, display, executor, choice)
    with _terminated_is_cancelled():
        try:
            cancelled = session.go()
        except BaseException:
            session.journal.end("failed")
            raise
        finally:
            session.close()
    made = report.make(
        place, pipeline.name, session.run_id, session.steps, session.outputs, cancelled=cancelled
    )
    session.journal.end(made.status)
    (session.folder / "report.json").write_text(made.model_dump_json(indent=1))
    return made


def _check(place: Workspace, pipeline: Pipeline, choice: Choice) -> None:
    """A step asked for by name must be able to run."""
    if choice.only is None:
        return
    steps = {planned.name: planned for planned in plan.plan(pipeline, place, choice)}
    for name in sorted(choice.only):
        for need in pipeline.steps[name].needs:
            if steps[need].action == "omit" and need not in choice.only:
                raise ContractError(
                    f"step {name!r} reads what {need!r} makes, which is not made as it is now",
                    where=pipeline.file.name,
                    hint=f"Run it too (--only {need} --only {name}), or leave --only away",
                )


@contextlib.contextmanager
def _terminated_is_cancelled() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that `workbench cancel` and schedulers end a run in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break the ending
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
