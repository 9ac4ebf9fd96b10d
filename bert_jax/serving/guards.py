"""What every request passes: who may ask, and the headers of every answer. Plain ASGI, so that bodies are not buffered."""

import secrets

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
    """Checks the token, if there is one, in constant time, and adds headers that restrict what browsers do."""

    def __init__(self, app: ASGIApp, token: str):
        self._app, self._token = app, token.encode()

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

        is_open = path in OPEN or path.startswith(OPEN_FOLDERS)
        if self._token and not is_open and not self._is_allowed(scope):
            error = {"error": "a token is needed; send it as 'Authorization: Bearer TOKEN'"}
            refusal = JSONResponse(error, 401, {"www-authenticate": "Bearer"})
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _is_allowed(self, scope: Scope) -> bool:
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), self._token)
