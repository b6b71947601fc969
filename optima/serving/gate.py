"""Asks for a server's key on every path but /health; a class that vLLM loads as its middleware.

vLLM's own check guards /v1 alone (0.32), and a server that can be told to load other weights has
paths beside it that obey anybody (``serving/weights``). Runs in the servers' environment, so it
imports nothing but the standard library.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_OPEN_PATH = "/health"
_REFUSAL = b'{"error": "Unauthorized"}'


class Gate:
    """An ASGI application before another one, which it leads to with the key in VLLM_API_KEY."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass on what may pass and refuse all else."""
        is_open = scope["type"] == "lifespan" or scope["path"] == _OPEN_PATH
        if is_open or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSAL})

    def _has_key(self, scope: Message) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
