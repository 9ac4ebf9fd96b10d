"""What every request passes: who may ask, and the headers of every answer. Plain ASGI, so that bodies are not buffered."""

import re
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What needs no token: neither runs nor their answers.
OPEN = ("/", "/health", "/ready", "/docs", "/openapi.json")
OPEN_FOLDERS = ("/page/", "/static-offline-docs/")
# Nothing of another host is ever loaded. The API page (/docs) has scripts and styles within its HTML.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
DOCS_POLICY = PAGE_POLICY + "; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"


class Guard:
    """Checks the name of the server and, in constant time, the token, and adds headers that restrict what browsers do.

    Without a token, or with None for `hosts`, any is allowed.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Sequence[str] | None):
        self._app, self._token, self._hosts = app, token.encode(), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["content-security-policy"] = DOCS_POLICY if path == "/docs" else PAGE_POLICY
            await send(message)

        app, is_open = self._app, path in OPEN or path.startswith(OPEN_FOLDERS)
        if not self._is_known(scope):
            error = {"error": f"the Host header names another server; use {', '.join(self._hosts or ())}"}
            app = JSONResponse(error, 400)
        elif self._token and not is_open and not self._is_allowed(scope):
            error = {"error": "a token is needed; send it as 'Authorization: Bearer TOKEN'"}
            app = JSONResponse(error, 401, {"www-authenticate": "Bearer"})
        await app(scope, receive, send_with_headers)

    def _is_known(self, scope: Scope) -> bool:
        name = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).lower()
        return self._hosts is None or name in self._hosts

    def _is_allowed(self, scope: Scope) -> bool:
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(token.strip().encode(), self._token)
