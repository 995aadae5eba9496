"""Who may ask for the page: it shows rows, and its buttons kill processes.

The listener is on 127.0.0.1, which all users of the machine reach, and all pages in the browser.
So the address in the terminal has a token in it; it becomes a cookie that other pages cannot send.
"""

import hmac

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self.app, self.token = app, token
        self.cookie = f"glass{port}"  # cookies know no ports, and two pages may be open
        self.hosts = [f"127.0.0.1:{port}", f"localhost:{port}"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.encode(), v.encode()) for k, v in HEADERS.items()]
            await send(message)

        await (self.answer(Request(scope)) or self.app)(scope, receive, with_headers)

    def answer(self, request: Request) -> Response | None:
        """A refusal, or the way from the address with the token to the page; None: it may pass."""
        if request.headers.get("host") not in self.hosts:
            # A foreign name that leads to 127.0.0.1: its page would count as of the same origin.
            return PlainTextResponse("this page is at 127.0.0.1", 421)
        token = request.query_params.get("token")
        given = token or request.cookies.get(self.cookie, "")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return PlainTextResponse("open the address in the terminal: it has a token in it", 403)
        if request.method != "GET":
            origin = request.headers.get("origin", "")
            if origin not in [f"http://{host}" for host in self.hosts]:
                return PlainTextResponse("only the page itself may ask for this", 403)
            if request.headers.get("content-type") != "application/json":
                return PlainTextResponse("only as JSON, which no form can send", 415)
        if token:
            to_page = RedirectResponse("/", 303)
            to_page.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return to_page
        return None
