"""Who may ask: this machine's browser, by one of its own addresses, with the key of this launch."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_NOTHING = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"  # of the empty text
POLICY = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {_NOTHING}; style-src-attr 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Scripts and style sheets come from us alone and none stands in a page. What Plotly cannot do without: the empty sheet
that it fills, and style attributes of the elements that it draws."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""On every response, whatever it is."""

_SAFE = ("GET", "HEAD")
_ENTRY = """<!DOCTYPE html><html lang="en">
<head><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={start}">
<link rel="icon" href="data:,"><title>Fogline</title></head>
<body><p><a href="{start}">Open the dashboard</a></p></body></html>"""
_NO_KEY = "This address needs the key of the launch: open the address that `fogline ui` printed."


@dataclass(frozen=True)
class Access:
    """What lets a browser in.

    Attributes:
        port: of 127.0.0.1, where the dashboard listens.
        start: the page that comes first, as a path.
        token: stands in the address that is printed; it is exchanged for the cookie.
        cookie: the value of the cookie, which no script can read.
    """

    port: int
    start: str = "/"
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    @property
    def hosts(self) -> tuple[str, str]:
        """The values of ``Host`` that are ours; a name that points here from elsewhere is not."""
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"

    @property
    def address(self) -> str:
        """Where a browser gets its cookie."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    @property
    def cookie_name(self) -> str:
        """Cookies are shared by all ports of a host: two dashboards must not take each other's."""
        return f"fogline-{self.port}"


class Guard:
    """Refuses a request before any page sees it, and puts the headers on every response."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = self._refusal(scope)
        await (answer or self.app)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that does not get through; None for one that does."""
        headers = Headers(scope=scope)
        if headers.get("host") not in self.access.hosts:
            return PlainTextResponse(f"expected one of the hosts {', '.join(self.access.hosts)}", 421)
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if token and scope["path"] == "/" and scope["method"] in _SAFE:
            return self._let_in(token[0])
        if not _same(_cookies(headers).get(self.access.cookie_name, ""), self.access.cookie):
            return PlainTextResponse(_NO_KEY, 403)
        origins = [f"http://{host}" for host in self.access.hosts]
        if scope["method"] not in _SAFE and headers.get("origin") not in origins:
            return PlainTextResponse("expected a request of the dashboard's own pages", 403)
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if elsewhere and headers.get("sec-fetch-mode") != "navigate":
            return PlainTextResponse("expected a request of the dashboard's own pages", 403)
        return None

    def _let_in(self, token: str) -> Response:
        if not _same(token, self.access.token):
            return PlainTextResponse(_NO_KEY, 403)
        # Not a redirect: on one that began at another site the browser would hold a strict cookie back.
        answer = HTMLResponse(_ENTRY.format(start=self.access.start))
        answer.set_cookie(self.access.cookie_name, self.access.cookie, httponly=True, samesite="strict", path="/")
        return answer


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending


def _cookies(headers: Headers) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _same(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode(), wanted.encode())
