"""Short synchronous questions to a completion server: is it there, does it generate, what is it.

No proxy and no redirect is followed: the key goes to the named server only.
"""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from optima.errors import ServerError
from optima.serving.client import Server


def is_healthy(server: Server, timeout_s: float) -> bool:
    """Return whether ``/health`` answers 200 in time; False for whatever else happens."""
    try:
        status, _ = _ask(server, "GET", "/health", None, timeout_s)
    except (OSError, http.client.HTTPException):
        return False
    return status == 200


def check_completion(server: Server, model_name: str, timeout_s: float) -> None:
    """Have the server generate one token. Raises ServerError with its answer if it does not."""
    body = {"model": model_name, "prompt": "1 2 3", "max_tokens": 1, "temperature": 0.0, "seed": 0}
    answer = _json(server, "POST", "/v1/completions", body, timeout_s)
    if not isinstance(answer, dict) or not answer.get("choices"):
        raise ServerError(f"{server.base_url}: answered with no completion: {answer!r:.200}")


def served_models(server: Server, timeout_s: float) -> tuple[str, ...]:
    """Return the names of the models it serves, its main one first."""
    answer = _json(server, "GET", "/v1/models", None, timeout_s)
    try:
        return tuple(str(model["id"]) for model in answer["data"])
    except (KeyError, TypeError) as error:
        raise ServerError(f"{server.base_url}: lists no models: {answer!r:.200}") from error


def _json(server: Server, method: str, path: str, body: object, timeout_s: float) -> Any:
    try:
        status, payload = _ask(server, method, path, body, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"{server.base_url}: {type(error).__name__}: {error}") from error
    text = payload.decode(errors="replace")
    if status != 200:
        raise ServerError(f"{server.base_url}{path}: HTTP {status}: {text[:500]}")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ServerError(f"{server.base_url}{path}: answered no JSON: {text[:200]!r}") from error


def _ask(
    server: Server, method: str, path: str, body: object, timeout_s: float
) -> tuple[int, bytes]:
    url = urlsplit(server.base_url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
    try:
        connection.request(
            method, url.path + path, None if body is None else json.dumps(body), headers
        )
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
