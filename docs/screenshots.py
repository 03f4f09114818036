"""Screenshots of the real servers for README and docs: ``python -m docs.screenshots``.

Takes ``docs/images/{fiftyone,label_studio,mlflow,lab,board}.png`` in a headless Chromium after a
`make run`. A page with nothing to show yet is skipped with a message.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import requests

from workbench import curation, services
from workbench.core.errors import ServiceError, WorkbenchError
from workbench.core.workspace import HOME_VARIABLE, Workspace, find_workspace
from workbench.records import dataset
from workbench.records.references import list_dataset_versions
from workbench.records.store import Store
from workbench.records.types import Selection
from workbench.services.servers import ADMIN_EMAIL

PROJECT = Path(__file__).resolve().parents[1]
IMAGES = PROJECT / "docs" / "images"
NOTEBOOK = PROJECT / "notebooks" / "explore" / "long_tail.ipynb"
BOARD = PROJECT / "notebooks" / "explore" / "apps" / "board.py"

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
)
_MINUTE_MS = 60_000
_KERNEL_IDLE = (
    "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
)


def chromium() -> str | None:
    """The installed browser's path, or None."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browser(width: int = 1440, height: int = 900) -> Iterator[Any]:
    """A page of a headless Chromium, in pixels."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise ServiceError("there is no Chromium", hint="Install Debian's `chromium` package")
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=path, args=list(_FLAGS))
        try:
            yield running.new_page(viewport={"width": width, "height": height})
        finally:
            running.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(
    arguments: list[str],
    workspace: Workspace,
    probe: str,
    folder: Path,
    servers: tuple[str, ...] = ("mongod",),
) -> Iterator[None]:
    """A server as a process group of its own, until its page answers; stopped afterwards.

    Args:
        servers: What it is told the addresses of; they must be running.
    """
    variables = {**os.environ, HOME_VARIABLE: str(workspace.root)}
    if servers:
        variables |= services.environment(workspace, servers)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=variables,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process, probe, log)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(process: subprocess.Popen[bytes], probe: str, log: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(probe, timeout=5).status_code < 500:
                return
        time.sleep(0.2)
    log.seek(0)
    output = log.read().decode(errors="replace")[-1500:]
    raise ServiceError(f"the server did not start: {output}", where=probe)


@contextlib.contextmanager
def lab(
    workspace: Workspace, notebook: Path = NOTEBOOK, servers: tuple[str, ...] = ("mongod",)
) -> Iterator[str]:
    """JupyterLab on a copy of the notebook, which it may write into; yields the page's address."""
    port, token = free_port(), secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="lab-") as name:
        folder = Path(name)
        shutil.copy(notebook, folder)
        quiet = folder / "settings" / "@jupyterlab" / "apputils-extension"
        quiet.mkdir(parents=True)
        (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
        command = [
            *("-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"),
            f"--port={port}",
            "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={token}",
            f"--ServerApp.root_dir={folder}",
            "--LabApp.expose_app_in_browser=True",
            f"--LabApp.user_settings_dir={folder}/settings",
            f"--LabApp.workspaces_dir={folder}/workspaces",
        ]
        base = f"http://127.0.0.1:{port}"
        with serving(command, workspace, f"{base}/api", folder, servers):
            yield f"{base}/lab/tree/{notebook.name}?token={token}"


def run_all_cells(page: Any, address: str, shown: str = "Tag in FiftyOne") -> None:
    """Open a notebook, wait for its kernel, run every cell, and wait for a button of this name."""
    page.goto(address)
    # The indicator says idle before a session exists; running cells then asks for a kernel.
    page.wait_for_function(_KERNEL_IDLE, timeout=2 * _MINUTE_MS)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    button = page.get_by_role("button", name=shown)
    failure = page.locator(".jp-OutputArea-output[data-mime-type*='error']")
    button.or_(failure).first.wait_for(timeout=3 * _MINUTE_MS)
    if failure.count():
        raise ServiceError(f"the notebook failed: {failure.first.inner_text()[-800:]}")


_WIDGET_PAGE = """
<body style="margin:0;padding:12px"><div id="widget"></div></body>
<script>
  window.workbenchOpen = async (source, style, state) => {
    const sheet = document.createElement("style");
    sheet.textContent = style;
    document.head.append(sheet);
    const { default: widget } = await import(URL.createObjectURL(
      new Blob([source], { type: "text/javascript" })));
    const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    const text = (view) => btoa(Array.from(new Uint8Array(view.buffer),
      (one) => String.fromCharCode(one)).join(""));
    const decoded = (value) => value?.bytes === undefined ? value
      : new DataView(bytes(value.bytes).buffer);
    const values = Object.fromEntries(
      Object.entries(state).map(([name, value]) => [name, decoded(value)]));
    const heard = {}, changed = new Set();
    const tell = (name, ...given) => (heard[name] ?? []).forEach((act) => act(...given));
    window.workbenchTell = (message, buffers) => tell("msg:custom", message,
      buffers.map((one) => new DataView(bytes(one).buffer)));
    window.workbenchSet = (name, value) => {
      values[name] = decoded(value);
      tell("change:" + name);
    };
    const model = {
      get: (name) => values[name],
      set: (name, value) => { values[name] = value; changed.add(name); },
      save_changes: () => {
        for (const name of changed) {
          const value = values[name];
          window.workbenchKernel({ set: name, value: value instanceof DataView
            ? { bytes: text(value) } : value });
        }
        changed.clear();
      },
      send: (message) => { window.workbenchKernel({ message }); },
      on: (name, act) => { (heard[name] ??= []).push(act); },
      off: (name, act) => { heard[name] = (heard[name] ?? []).filter((one) => one !== act); },
    };
    window.workbenchClose = widget.render({ model, el: document.getElementById("widget") });
  };
</script>
"""
_PAGE_TRAITS = ("_marks", "_picked", "_picked_title")
_DARK = """
  --jp-layout-color1: #14171b; --jp-layout-color2: #20242a; --jp-border-color2: #3a4048;
  --jp-ui-font-color1: #e8eaed; --jp-ui-font-color2: #a3abb5; --jp-brand-color1: #6cb2f0;
"""


def show_widget(page: Any, widget: Any, *, dark: bool = False) -> None:
    """Open an anywidget on a bare page, with this process in the place of the kernel.

    Args:
        page: Of `browser`.
        widget: A `FrameBrowser`; its traits and messages work as in JupyterLab.
        dark: With the colours of JupyterLab's dark theme.
    """

    def encoded(value: Any) -> Any:
        return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value

    def tell(content: Any, buffers: Any = ()) -> None:
        data = [base64.b64encode(one).decode() for one in buffers]
        page.evaluate("([content, data]) => workbenchTell(content, data)", [content, data])

    from_page: dict[str, Any] = {}

    def hear(heard: Any) -> None:
        if "message" in heard:
            widget._handle_custom_msg(heard["message"], [])
            return
        value = heard["value"]
        # A memoryview, as ipykernel delivers it.
        data = memoryview(base64.b64decode(value["bytes"])) if isinstance(value, dict) else value
        # As in ipywidgets, a change from the page is not sent back to it: the page may have
        # changed again by then.
        from_page[heard["set"]] = bytes(data) if isinstance(data, memoryview) else data
        with widget.hold_trait_notifications():
            widget.set_trait(heard["set"], data)
        from_page.clear()

    def show(change: Any) -> None:
        if change.name in from_page and from_page[change.name] == change.new:
            return
        page.evaluate("([name, to]) => workbenchSet(name, to)", [change.name, encoded(change.new)])

    names = [name for name in widget.keys if name in _PAGE_TRAITS]
    page.expose_function("workbenchKernel", hear)
    widget.send = tell
    page.set_content(_WIDGET_PAGE)
    if dark:
        page.add_style_tag(content=f"body {{ background: #0f1114; {_DARK} }}")
    state = {name: encoded(getattr(widget, name)) for name in names}
    page.evaluate(
        "([source, style, state]) => workbenchOpen(source, style, state)",
        [widget._esm, widget._css, state],
    )
    widget.observe(show, names)


@contextlib.contextmanager
def board(workspace: Workspace) -> Iterator[str]:
    """The marimo board; yields its address."""
    port, token = free_port(), secrets.token_urlsafe(16)
    command = [
        *("-m", "marimo", "-q", "run", str(BOARD), "--headless", "--host", "127.0.0.1"),
        *("--port", str(port), "--token", "--token-password", token),
    ]
    base = f"http://127.0.0.1:{port}"
    with serving(command, workspace, f"{base}/health", PROJECT):
        yield f"{base}/?access_token={token}"


def _shoot_board(workspace: Workspace, target: Path) -> None:
    with board(workspace) as address, browser(1280, 1100) as page:
        page.goto(address)
        page.get_by_role("heading", name="Runs").wait_for(timeout=_MINUTE_MS)
        page.wait_for_timeout(1500)
        page.screenshot(path=target)


def _shoot_lab(workspace: Workspace, target: Path) -> None:
    name = next(iter(list_dataset_versions(workspace))).name
    source = (
        f'import workbench as wb\n\nws = wb.open()\nws.browse("{name}", roles=["seed", "safety"])'
    )
    kernel = {"name": "python3", "display_name": "Python 3"}  # without it, JupyterLab asks
    cells = [nbformat.v4.new_code_cell(source)]
    body = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder) / "look.ipynb"
        nbformat.write(body, notebook)
        with lab(workspace, notebook) as address, browser(1440, 1000) as page:
            run_all_cells(page, address)
            page.evaluate("void window.jupyterapp.commands.execute('application:toggle-left-area')")
            page.locator(".wb-root[data-complete-ms]").wait_for(timeout=_MINUTE_MS)
            page.locator(".wb-card").nth(1).hover()
            page.wait_for_timeout(1500)
            page.screenshot(path=target)


def _shoot_fiftyone(workspace: Workspace, target: Path) -> None:
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    store = Store(workspace)
    selection = store.get(curation.newest_selection(store), Selection)
    name = dataset.load_dataset(store, selection.dataset).name
    port = free_port()
    code = (
        "import sys, time; from workbench import curation;"
        "curation.open_app(sys.argv[1], port=int(sys.argv[2])); time.sleep(3600)"
    )
    base = f"http://127.0.0.1:{port}"
    with serving(["-c", code, name, str(port)], workspace, base, PROJECT), browser() as page:
        page.goto(f"{base}/datasets/{name}?view=mined")
        page.wait_for_selector("text=mined", timeout=_MINUTE_MS)
        with contextlib.suppress(PlaywrightTimeout):
            page.get_by_text("Dismiss").first.click(timeout=5000)  # of two on some pages
        page.wait_for_timeout(8000)  # thumbnails are drawn one by one by software
        page.screenshot(path=target)


def _shoot_label_studio(workspace: Workspace, target: Path) -> None:
    admin = services.label_studio_admin(workspace)
    if admin.password_file is None:
        raise ServiceError("the password of this external Label Studio is unknown", where=admin.url)
    with browser() as page:
        page.goto(f"{admin.url}/user/login/")
        page.fill("input[name=email]", ADMIN_EMAIL)
        page.fill("input[name=password]", admin.password_file.read_text().strip())
        page.press("input[name=password]", "Enter")
        page.wait_for_url(lambda url: "/user/login" not in url, timeout=_MINUTE_MS)
        answer = page.request.get(f"{admin.url}/api/projects?ordering=-id").json()
        if not answer["results"]:
            raise ServiceError("Label Studio has no project", hint="Run `make run` first")
        project = answer["results"][0]["id"]
        tasks = page.request.get(f"{admin.url}/api/tasks?project={project}&page_size=1").json()
        page.goto(f"{admin.url}/projects/{project}/data?task={tasks['tasks'][0]['id']}")
        page.wait_for_selector("canvas", timeout=_MINUTE_MS)
        page.wait_for_timeout(4000)
        page.screenshot(path=target)


def _shoot_mlflow(workspace: Workspace, target: Path) -> None:
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    base = services.tracking_address(workspace)
    search = f"{base}/api/2.0/mlflow/experiments/search"
    found = requests.post(search, json={"max_results": 50}, timeout=20).json()["experiments"]
    newest = max(found, key=lambda one: int(one.get("last_update_time", 0)))
    with browser() as page:
        page.goto(f"{base}/#/experiments/{newest['experiment_id']}/runs")
        page.wait_for_selector("[role=grid], .ag-root", timeout=_MINUTE_MS)
        with contextlib.suppress(PlaywrightTimeout):
            page.get_by_label("Close").first.click(timeout=5000)
        with contextlib.suppress(PlaywrightTimeout):
            page.locator(".ag-row button").first.click(timeout=5000)  # the steps below the run
        page.wait_for_timeout(3000)
        page.screenshot(path=target)


SHOTS: dict[str, Callable[[Workspace, Path], None]] = {
    "fiftyone": _shoot_fiftyone,
    "label_studio": _shoot_label_studio,
    "mlflow": _shoot_mlflow,
    "lab": _shoot_lab,
    "board": _shoot_board,
}


def main() -> int:
    """Take all screenshots, or those named; returns the number that failed."""
    from playwright.sync_api import Error as PlaywrightError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(SHOTS)}")
    parser.add_argument(
        "--to", type=Path, default=IMAGES, help="folder to write to (default: docs/images)"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(SHOTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SHOTS)}")
    workspace = find_workspace()
    services.up(workspace)
    arguments.to.mkdir(parents=True, exist_ok=True)
    missing = 0
    for name in arguments.names or SHOTS:
        try:
            SHOTS[name](workspace, arguments.to / f"{name}.png")
            print(arguments.to / f"{name}.png")
        except (WorkbenchError, PlaywrightError, requests.RequestException) as error:
            missing += 1
            print(f"no screenshot of {name}: {error}", file=sys.stderr)
    return missing


if __name__ == "__main__":
    sys.exit(main())
