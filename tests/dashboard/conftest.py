"""A real dashboard in a process of its own, and a real browser where one is installed."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Served:
    """A dashboard that runs.

    Attributes:
        runs: its folder.
        port: where it listens.
        token: of the address that it printed.
        cookie: what a browser that came by that address sends.
    """

    runs: Path
    port: int
    token: str
    cookie: str = ""

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def entrance(self) -> str:
        return f"{self.base}/?token={self.token}"

    def ask(self, path: str, method: str = "GET", body: str | None = None, **headers: str | None) -> Answer:
        """Ask as our own pages do, but for the headers given; None leaves one out. The path is sent as it is."""
        sent = {"Host": f"127.0.0.1:{self.port}", "Cookie": self.cookie, "Accept": "text/html"}
        if method == "POST":
            sent["Origin"] = self.base
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        data = (body or "").encode()
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        response = connection.getresponse()
        text = response.read().decode()
        answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, text)
        connection.close()
        return answer

    def sql(self, run: str, query: str) -> Answer:
        return self.ask(f"/runs/{run}/sql", "POST", json.dumps({"sql": query}))


def start(*arguments: object, **options: Any) -> tuple[subprocess.Popen[str], str]:
    """Start ``fogline`` and read the line with the dashboard's address."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fogline", *map(str, arguments)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    return process, process.stdout.readline()


def served(runs: Path, line: str) -> Served:
    """The dashboard whose address stands in a line; its cookie is got as a browser gets it."""
    found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line)
    assert found, line
    dashboard = Served(runs, int(found[1]), found[2])
    dashboard.cookie = dashboard.ask(f"/?token={dashboard.token}", Cookie=None).headers["set-cookie"].split(";")[0]
    return dashboard


@pytest.fixture(scope="session")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One for all tests: each makes runs of names of its own in its folder."""
    runs = tmp_path_factory.mktemp("dashboard") / "runs"
    runs.mkdir()
    process, line = start("ui", runs, "--no-browser", "--port", 0)
    yield served(runs, line)
    process.terminate()
    assert process.wait(timeout=30) in (0, -15, 143)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless browser."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """Windows of a browser, one for each width and look; each keeps the files that it has loaded, but no cookies."""

    def __init__(self, browser: Any) -> None:
        self._browser, self._contexts = browser, {}
        self.complaints: list[str] = []

    def page(self, width: int, scheme: str) -> Any:
        if (width, scheme) not in self._contexts:
            size = {"width": width, "height": 900}
            self._contexts[width, scheme] = self._browser.new_context(viewport=size, color_scheme=scheme)
        context = self._contexts[width, scheme]
        context.clear_cookies()
        page = context.new_page()
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        return page


@pytest.fixture(scope="session")
def visitor(chromium: Any) -> Visitor:
    return Visitor(chromium)


@pytest.fixture
def visit(visitor: Visitor, dashboard: Served) -> Iterator[Callable[..., Any]]:
    """``visit("/runs/a", width=390)`` opens a page; at the end nothing may have been complained of in its console."""
    visitor.complaints.clear()
    pages = []

    def open_page(path: str, *, width: int = 1280, scheme: str = "light") -> Any:
        page = visitor.page(width, scheme)
        pages.append(page)
        page.goto(dashboard.entrance)
        page.wait_for_url(f"{dashboard.base}/")
        page.goto(dashboard.base + path)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert visitor.complaints == []
