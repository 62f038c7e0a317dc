"""Which address shows what.

What draws figures is imported by the first page that has some, or when nobody has asked for one for a while: it takes
as long as all the rest.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fogline.dashboard import assets, query, runs_page
from fogline.dashboard.examples_app import ExamplePages, posted
from fogline.dashboard.guard import Access, Guard
from fogline.dashboard.live import live
from fogline.dashboard.markup import THEMES, empty, page
from fogline.dashboard.runs import Folder, NoRunError
from fogline.descent.interrupts import STOP

if TYPE_CHECKING:
    from fogline.dashboard.thinned import View

_MOST_BODY = 100_000
_DRAWN = 48
_UNFIT = (KeyError, TypeError, ValueError, IndexError, AttributeError, sqlite3.Error, OSError)
"""What reading a damaged or foreign run folder may raise."""

Page = Callable[[Any], str]


class Dashboard:
    """The pages over one folder of runs.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = Folder(root)
        self.example_pages = ExamplePages(self.folder)
        self._drawn: OrderedDict[tuple[Any, ...], str] = OrderedDict()
        self._keeping = threading.Lock()  # requests are answered by several threads

    def routes(self) -> list[Route]:
        """Every address."""
        return [
            Route("/", self.runs),
            Route("/rows", self.rows),
            Route("/live", self.live_all),
            Route("/compare", self.compare),
            Route("/compare/figure", self.compare_figure),
            Route("/runs/{name}", self.overview),
            Route("/runs/{name}/parts", self.parts),
            Route("/runs/{name}/live", self.live_one),
            Route("/runs/{name}/figures/{figure}", self.figure),
            Route("/runs/{name}/rate", self.rate),
            Route("/runs/{name}/landscape", self.landscape),
            Route("/runs/{name}/examples", self.examples),
            Route("/runs/{name}/stop", self.stop, methods=["POST"]),
            Route("/runs/{name}/sql", posted(self.sql, _MOST_BODY), methods=["POST"]),
            Route("/tuning", self.searches),
            Route("/tuning/{name}", self.search),
            Route("/tuning/{name}/figures/{figure}", self.search_figure),
            *self.example_pages.routes(),
            Route("/static/{version}/{file}", self.static),
        ]

    # -- pages -----------------------------------------------------------------------------------------------------

    def runs(self, request: Request) -> Response:
        return _page(request, "Runs", runs_page.runs_page(self.folder), "runs.js", here="Runs", figures=False)

    def rows(self, request: Request) -> Response:
        """Rows of the table by name: of those that are named, or all."""
        names = request.query_params.getlist("run") or self.folder.names()
        there = [summary for name in names if (summary := self.folder.found(name)) is not None]
        return JSONResponse({each.name: runs_page.run_row(each) for each in there})

    def compare(self, request: Request) -> Response:
        names = self._chosen(request)
        body = runs_page.compare_page(self.folder, names)
        return _page(request, "Compare", body, "figures.js", here="Compare", figures=len(names) > 1)

    def overview(self, request: Request) -> Response:
        name = request.path_params["name"]
        view = self.folder.view(name)
        # A long run is read while the page is written and loaded: its figures are asked for after that.
        threading.Thread(target=_read, args=(view,), daemon=True).start()
        from fogline.dashboard import run_page

        body = run_page.overview(view, self.folder.summary(name))
        return _page(request, name, body, "figures.js", "run.js", "sql.js")

    def parts(self, request: Request) -> Response:
        """The parts of the overview, for a page that is open, and the figures there are now."""
        from fogline.dashboard import run_page

        name = request.path_params["name"]
        view = self.folder.view(name)
        parts = run_page.overview_parts(view, self.folder.summary(name))
        return JSONResponse({"parts": parts, "figures": run_page.overview_figures(view)})

    def rate(self, request: Request) -> Response:
        from fogline.dashboard.run_page import rate_page

        return self._of_run(request, rate_page)

    def landscape(self, request: Request) -> Response:
        from fogline.dashboard.run_page import landscape_page

        return self._of_run(request, landscape_page)

    def examples(self, request: Request) -> Response:
        from fogline.dashboard.run_page import examples_page, examples_wait

        name = request.path_params["name"]
        view = self.folder.view(name)
        if self.example_pages.at_once(name):
            body = examples_page(view, self.example_pages.drawable(name))
        else:
            body = examples_wait(view)
        return _page(request, name, body, "figures.js", "sql.js", "examples.js")

    def _of_run(self, request: Request, make: Page) -> Response:
        name = request.path_params["name"]
        return _page(request, name, make(self.folder.view(name)), "figures.js", "run.js")

    def searches(self, request: Request) -> Response:
        from fogline.dashboard.tuning_page import searches_page

        return _page(request, "Tuning", searches_page(self.folder.root), here="Tuning", figures=False)

    def search(self, request: Request) -> Response:
        from fogline.dashboard.tuning_page import search_folder, search_page

        name = request.path_params["name"]
        body = search_page(search_folder(self.folder.root, name))
        return _page(request, name, body, "figures.js")

    # -- data ------------------------------------------------------------------------------------------------------

    def figure(self, request: Request) -> Response:
        from fogline.dashboard.run_page import drawable
        from fogline.plots import FIGURES

        name, figure = request.path_params["name"], request.path_params["figure"]
        view = self.folder.view(name)
        if not drawable(view, figure):
            raise NoRunError(f"expected a figure of this run, received {figure!r}")
        return self._figure(request, figure, [name], lambda dark: FIGURES[figure](view, dark=dark))

    def search_figure(self, request: Request) -> Response:
        """A figure of a search, from the summary in its folder: no database is opened."""
        from fogline._tune.study import SUMMARY
        from fogline.dashboard.tuning_page import FIGURES, search_folder

        folder, name = search_folder(self.folder.root, request.path_params["name"]), request.path_params["figure"]
        if name not in FIGURES:
            raise NoRunError(f"expected a figure of a search, received {name!r}")
        dark = request.query_params.get("look") == "dark"
        key = ("tuning", name, dark, folder.name, (folder / SUMMARY).stat().st_mtime_ns)
        return self._kept(key, name, lambda: self._search_figure(folder, name, dark))

    def _search_figure(self, folder: Path, name: str, dark: bool) -> Any:
        from fogline._tune.view import Kept, read_summary
        from fogline.plots.tuning import FIGURES

        return FIGURES[name](Kept(read_summary(folder)), dark=dark)

    def compare_figure(self, request: Request) -> Response:
        from fogline import plots

        names = self._chosen(request)
        views = [self.folder.view(name) for name in names]
        return self._figure(request, "compare", names, lambda dark: plots.compare_figure(views, dark=dark))

    def _figure(self, request: Request, figure: str, names: list[str], make: Callable[[bool], Any]) -> Response:
        """The figure as JSON, kept until one of its runs writes something."""
        dark = request.query_params.get("look") == "dark"
        key = (figure, dark, *((name, self.folder.stamp(name)) for name in names))
        return self._kept(key, figure, lambda: make(dark))

    def _kept(self, key: tuple[Any, ...], figure: str, make: Callable[[], Any]) -> Response:
        drawn = self._drawn.get(key)
        if drawn is None:
            try:
                drawn = make().to_json()
            except ImportError as error:
                return JSONResponse({"error": str(error)}, 422)
            except _UNFIT:
                return JSONResponse({"error": f"this folder holds something that cannot be drawn as {figure}"}, 422)
            with self._keeping:
                self._drawn[key] = drawn
                while len(self._drawn) > _DRAWN:
                    self._drawn.popitem(last=False)
        return Response(drawn, media_type="application/json")

    def live_all(self, request: Request) -> Response:
        return live(self.folder, None, request.query_params.get("since", ""))

    def live_one(self, request: Request) -> Response:
        self.folder.path(request.path_params["name"])
        return live(self.folder, request.path_params["name"], request.query_params.get("since", ""))

    def static(self, request: Request) -> Response:
        name = request.path_params["file"]
        if name not in assets.FILES or request.path_params["version"] != assets.VERSION:
            raise NoRunError(f"expected a file of the dashboard, received {name!r}")
        keep = {"Cache-Control": "private, max-age=31536000, immutable"}
        return FileResponse(assets.FILES[name], media_type=assets.kind(name), headers=keep)

    # -- changes ---------------------------------------------------------------------------------------------------

    def stop(self, request: Request) -> Response:
        """Ask a run to save and stop: by a file in its folder, which its process looks for. No process is signalled."""
        name = request.path_params["name"]
        folder = self.folder.path(name)
        if not self.folder.summary(name).alive:
            return JSONResponse(
                {"error": "expected a run that trains, received one that has ended or gives no sign"}, 409
            )
        with suppress(FileExistsError):
            (folder / STOP).open("x").close()
        return JSONResponse({"asked": True}, 202)

    def sql(self, request: Request, asked: Mapping[str, Any]) -> Response:
        return JSONResponse(query.ask(self.folder.path(request.path_params["name"]), str(asked["sql"])))

    def _chosen(self, request: Request) -> list[str]:
        names = list(dict.fromkeys(request.query_params.getlist("run")))[: runs_page.MOST]
        for name in names:
            self.folder.path(name)
        return names


def make_app(root: Path, access: Access) -> Guard:
    """The dashboard over a folder of runs, behind its guard."""
    handlers: Any = {NoRunError: _missing, 404: _missing} | dict.fromkeys(_UNFIT, _unreadable)
    app = Starlette(routes=Dashboard(root).routes(), exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, access)


def prepare_figures() -> None:
    """Load what draws figures before the first of them is asked for."""
    import_module("fogline.dashboard.run_page")
    import_module("plotly.graph_objects").Figure().add_scatter(x=[0], y=[0]).to_json()


def _read(view: View) -> None:
    with suppress(sqlite3.Error, OSError):  # the figures say that it cannot be read
        view.columns("steps")


def _theme(request: Request) -> str:
    asked = request.cookies.get("fogline-theme", "")
    return asked if asked in THEMES else "system"


def _page(
    request: Request, title: str, body: str, *scripts: str, here: str = "", figures: bool = True, code: int = 200
) -> Response:
    whole = page(title, body, theme=_theme(request), here=here, scripts=scripts, figures=figures)
    return HTMLResponse(whole, code)


def _missing(request: Request, error: Exception) -> Response:
    words = "There is nothing at this address: the run may have been moved or removed."
    return _said(request, "Not found", words, 404)


def _unreadable(request: Request, error: Exception) -> Response:
    words = "This run folder holds something that cannot be read: run.json or run.sqlite is damaged."
    return _said(request, "Unreadable", words, 422)


def _said(request: Request, title: str, words: str, code: int) -> Response:
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": words}, code)
    body = f"<h1>{title}</h1>{empty(words, '<a href=/>All runs</a>')}"
    return _page(request, title, body, figures=False, code=code)
