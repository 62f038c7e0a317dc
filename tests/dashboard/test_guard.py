"""Nobody else gets in, and every answer carries the headers."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from dashboard.conftest import Answer, Served
from fogline._examples.edits import Edits
from fogline.dashboard.guard import HEADERS, POLICY
from run_folders import add_examples, make_run

FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.0.0.1.evil.example:{port}",
    "",
    None,
]
FOREIGN_ORIGINS = [
    "http://evil.example",
    "null",
    "",
    None,
    "https://127.0.0.1:{port}",
    "http://127.0.0.1:1",
    "http://127.0.0.1:{port}.evil.example",
]


def said(value: str | None, served: Served) -> str | None:
    return None if value is None else value.format(port=served.port)


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_foreign_host_is_refused_even_with_the_cookie(dashboard: Served, host: str | None) -> None:
    answer = dashboard.ask("/", Host=said(host, dashboard))
    assert 400 <= answer.status < 500
    assert "Runs" not in answer.text


@pytest.mark.parametrize("host", FOREIGN_HOSTS[:1])
def test_a_foreign_host_gets_no_cookie(dashboard: Served, host: str) -> None:
    answer = dashboard.ask(f"/?token={dashboard.token}", Host=host, Cookie=None)
    assert answer.status == 421
    assert "set-cookie" not in answer.headers


def test_localhost_is_ours_too(dashboard: Served) -> None:
    assert dashboard.ask("/", Host=f"localhost:{dashboard.port}").status == 200


@pytest.mark.parametrize(
    "cookie", [None, "", "fogline={token}", "fogline-{port}=", "fogline-{port}={token}", "x=y; ;;=", "a" * 4000]
)
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/compare",
        "/runs/guarded",
        "/runs/guarded/parts",
        "/runs/guarded/examples",
        "/runs/guarded/examples/map?colour=loss",
        "/runs/guarded/examples/0/thumbnail",
        "/live",
        "/static/x/style.css",
        "/nothing",
    ],
)
def test_nothing_is_shown_without_the_cookie(dashboard: Served, path: str, cookie: str | None) -> None:
    given = None if cookie is None else cookie.format(port=dashboard.port, token=dashboard.token)
    answer = dashboard.ask(path, Cookie=given)
    assert answer.status == 403
    assert "fogline ui" in answer.text


@pytest.mark.parametrize("token", ["", "wrong", "ä"])
def test_a_wrong_token_gives_no_cookie(dashboard: Served, token: str) -> None:
    answer = dashboard.ask(f"/?token={token.encode().hex() if token == 'ä' else token}", Cookie=None)
    assert answer.status == 403
    assert "set-cookie" not in answer.headers


def test_the_token_is_exchanged_for_a_cookie_that_scripts_and_other_sites_cannot_use(dashboard: Served) -> None:
    cookie = dashboard.ask(f"/?token={dashboard.token}", Cookie=None).headers["set-cookie"]
    assert {part.strip() for part in cookie.split(";")[1:]} >= {"HttpOnly", "SameSite=strict", "Path=/"}
    assert dashboard.token not in cookie


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
@pytest.mark.parametrize("path", ["stop", "sql", "examples/edit", "examples/undo", "examples/list", "examples/sql"])
def test_a_change_needs_our_own_origin(dashboard: Served, path: str, origin: str | None) -> None:
    folder = make_run(dashboard.runs / "guarded", verdict=None)
    if not (folder / "examples").exists():
        add_examples(folder)
    body = '{"sql": "select 1", "ids": [1], "action": "drop"}'
    answer = dashboard.ask(f"/runs/guarded/{path}", "POST", body, Origin=said(origin, dashboard))
    assert answer.status == 403
    assert not (folder / "stop").exists()
    assert len(Edits(folder)) == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_embeds_nothing(dashboard: Served, site: str) -> None:
    assert dashboard.ask("/", Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors").status == 403
    assert dashboard.ask("/", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors").status == 200
    assert dashboard.ask("/", Sec_Fetch_Site=site, Sec_Fetch_Mode="navigate").status == 200


def every_kind_of_answer(served: Served) -> list[Answer]:
    make_run(served.runs / "kinds")
    page = served.ask("/")
    style = page.text.split('rel="stylesheet" href="')[1].split('"')[0]
    return [
        page,
        served.ask(style),
        served.ask("/runs/kinds"),
        served.ask("/runs/kinds/figures/loss"),
        served.ask("/runs/kinds/figures/none"),
        served.ask("/runs/none"),
        served.ask("/nothing"),
        served.ask("/", "PUT"),
        served.ask("/", "POST"),
        served.ask("/", Cookie=None),
        served.ask("/", Host="evil.example"),
        served.ask(f"/?token={served.token}"),
        served.sql("kinds", "select"),
        served.sql("kinds", "select 1"),
    ]


def test_every_answer_has_every_header(dashboard: Served) -> None:
    answers = every_kind_of_answer(dashboard)
    assert {answer.status for answer in answers} >= {200, 400, 403, 404, 405, 421}
    for answer in answers:
        assert {name: answer.headers.get(name.lower()) for name in HEADERS} == HEADERS
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes; text that only looks like one is text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.found}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


def test_the_policy_allows_no_script_or_style_in_a_page(dashboard: Served) -> None:
    rules = dict(rule.strip().split(" ", 1) for rule in POLICY.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == "'self'"
    assert [name for name, value in rules.items() if "unsafe" in value] == ["style-src-attr"]
    assert "http" not in POLICY
    make_run(dashboard.runs / "plain")
    for path in ("/", "/compare", "/runs/plain", "/runs/plain/rate"):
        seen = Elements()
        seen.feed(dashboard.ask(path).text)
        assert "style" not in seen.tags
        assert all("src" in attributes for tag, attributes in seen.found if tag == "script")
        assert not [name for _, attributes in seen.found for name in attributes if name == "style" or name[:2] == "on"]


def test_files_are_kept_for_good_and_pages_never(dashboard: Served) -> None:
    page = dashboard.ask("/")
    assert page.headers["cache-control"] == "no-store"
    style = page.text.split('rel="stylesheet" href="')[1].split('"')[0]
    assert "immutable" in dashboard.ask(style).headers["cache-control"]
