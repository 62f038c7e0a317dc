"""The addresses of a run's examples. What reads them is imported by the first of these that is asked."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fogline.dashboard import query
from fogline.dashboard.runs import Folder, NoRunError

if TYPE_CHECKING:
    from fogline.dashboard.example_table import Seen, Tables

_MOST_BODY = 1_000_000
_PAGE = 24
_UNDRAWN = (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError, sqlite3.Error)
"""What reading a damaged or foreign record of examples may raise."""


class ExamplePages:
    """What is asked of the examples of a run.

    Args:
        folder: the folder of runs.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def routes(self) -> list[Route]:
        """Every address."""
        place = "/runs/{name}/examples"
        return [
            Route(f"{place}/map", self.map),
            Route(f"{place}/parts", self.parts),
            Route(f"{place}/{{example:int}}/thumbnail", self.thumbnail),
            Route(f"{place}/{{example:int}}/more", self.more),
            Route(f"{place}/list", self._posted(self.list), methods=["POST"]),
            Route(f"{place}/edit", self._posted(self.edit), methods=["POST"]),
            Route(f"{place}/undo", self._posted(self.undo), methods=["POST"]),
            Route(f"{place}/sql", self._posted(self.sql), methods=["POST"]),
        ]

    @cached_property
    def _tables(self) -> Tables:
        from fogline.dashboard.example_table import Tables

        return Tables()

    def drawable(self, name: str) -> Seen | None:
        """The examples of a run; None where nothing that can be drawn was recorded of them.

        Raises:
            NoRunError: there is no run of that name.
        """
        folder = self.folder.path(name)
        try:
            return self._tables.of(folder)
        except (NoRunError, *_UNDRAWN):
            return None

    def at_once(self, name: str) -> bool:
        """Whether the examples of a run can be shown without a wait that a page has to speak of."""
        return self._tables.at_once(self.folder.path(name))

    def _seen(self, request: Request) -> Seen:
        name = request.path_params["name"]
        found = self.drawable(name)
        if found is None:
            raise NoRunError(f"expected a run that recorded its examples, received {name!r}")
        return found

    # -- to be seen ------------------------------------------------------------------------------------------------

    def map(self, request: Request) -> Response:
        from fogline.plots.example_map import colours_of, example_map_figure

        seen = self._seen(request)
        table, colour = seen.with_edits, request.query_params.get("colour", "")
        if colour not in colours_of(table):
            raise NoRunError(f"expected a column of the examples, received {colour!r}")
        dark = request.query_params.get("look") == "dark"
        figure = example_map_figure(table, colour, classes=seen.classes, dark=dark)
        return Response(figure.to_json(), media_type="application/json")

    def parts(self, request: Request) -> Response:
        from fogline.dashboard.examples_page import examples_parts

        seen = self._seen(request)
        view = self.folder.view(request.path_params["name"])
        return JSONResponse({"parts": examples_parts(view, seen), "epochs": seen.epochs})

    def thumbnail(self, request: Request) -> Response:
        from fogline.dashboard.example_cards import thumbnail

        found = thumbnail(self._seen(request), request.path_params["example"])
        if found is None:
            raise NoRunError("expected an example whose picture is kept")
        return Response(found, media_type="image/png")

    def more(self, request: Request) -> Response:
        """Everything about one example, and what it did in each epoch."""
        from fogline.dashboard.example_cards import details
        from fogline.plots.example_map import example_figure

        seen, example = self._seen(request), request.path_params["example"]
        if example >= len(seen):
            raise NoRunError(f"expected an example below {len(seen)}, received {example}")
        epochs, curves = seen.curves([example])
        dark = request.query_params.get("look") == "dark"
        figure = example_figure(epochs, {name: values[:, 0] for name, values in curves.items()}, dark=dark)
        found = details(seen, seen.with_edits, example, request.path_params["name"])
        return JSONResponse(found | {"figure": json.loads(figure.to_json())})

    # -- asked and changed -----------------------------------------------------------------------------------------

    def list(self, seen: Seen, name: str, asked: Mapping[str, Any]) -> Response:
        """A page of a selection as HTML."""
        from fogline.dashboard.example_cards import cards
        from fogline.dashboard.example_table import selected

        found = selected(seen, asked)
        start = asked.get("start", 0)
        if type(start) is not int or start < 0:
            raise ValueError(f"expected a place in the list to start at, received {start!r}")
        ids = found[start : start + _PAGE].tolist()
        html = cards(seen, seen.with_edits, ids, name) if ids else ""
        return JSONResponse({"html": html, "count": len(found), "start": start, "ids": ids, "page": _PAGE})

    def edit(self, seen: Seen, name: str, asked: Mapping[str, Any]) -> Response:
        """Decide about examples: each with a label of its own, or all alike."""
        from fogline._examples.edits import Edits

        ids, action = asked["ids"], asked["action"]
        if not isinstance(ids, list) or not isinstance(action, str):
            raise TypeError("expected a list of examples and an action")
        Edits(seen.folder).edit(ids, action, asked.get("labels"))
        return self._changed(seen, name)

    def undo(self, seen: Seen, name: str, asked: Mapping[str, Any]) -> Response:
        """Take back the last decision, or everything about some examples."""
        from fogline._examples.edits import Edits

        taken = Edits(seen.folder).undo(asked.get("ids"))
        return self._changed(seen, name, taken=taken)

    def _changed(self, seen: Seen, name: str, **more: Any) -> Response:
        from fogline.dashboard.examples_page import examples_parts

        return JSONResponse({"parts": examples_parts(self.folder.view(name), seen), **more})

    def sql(self, seen: Seen, name: str, asked: Mapping[str, Any]) -> Response:
        from fogline._examples.edits import Edits
        from fogline.dashboard.example_table import selected

        text = str(asked["sql"])
        chosen = selected(seen, asked.get("selection") or {}).tolist() if "selected" in text.lower() else []
        rows = Edits(seen.folder).table
        edits = [[row["example"], row["action"], row["label"]] for row in rows]
        examples = {"file": str(seen.columns_file), "edits": edits, "chosen": chosen}
        return JSONResponse(query.ask(seen.folder, text, examples))

    def _posted(self, answer: Callable[[Seen, str, Mapping[str, Any]], Response]) -> Callable[[Request], Any]:
        return posted(lambda request, asked: answer(self._seen(request), request.path_params["name"], asked))


def posted(
    answer: Callable[[Request, Mapping[str, Any]], Response], most: int = _MOST_BODY
) -> Callable[[Request], Any]:
    """A request with a JSON body of at most so many bytes, answered in a thread; what does not fit is told as such."""

    async def handle(request: Request) -> Response:
        if int(request.headers.get("content-length") or most + 1) > most:
            return JSONResponse({"error": "expected a shorter request"}, 413)
        body = await request.body()
        try:
            asked = json.loads(body)
            if not isinstance(asked, dict):
                raise TypeError("expected an object")
            return await run_in_threadpool(answer, request, asked)
        except KeyError as error:
            return JSONResponse({"error": f"expected {error.args[0]!r} in the request"}, 400)
        except (ValueError, TypeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        except OSError as error:
            return JSONResponse({"error": str(error)}, 507)

    return handle
