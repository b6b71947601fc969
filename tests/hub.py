"""A stand-in for the model hub: the few requests by which a client finds files and their sizes."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def fake_hub(model: str, files: Mapping[str, bytes], sizes: Mapping[str, int]) -> Iterator[str]:
    """Serve ``files`` of one model and the names and ``sizes`` of others; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(has_body=False)

        def do_GET(self) -> None:
            self._answer(has_body=True)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, has_body: bool) -> None:
            path = self.path.partition("?")[0]
            headers = {"X-Repo-Commit": COMMIT}
            if path.startswith(f"/api/models/{model}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(text),
                     "oid": hashlib.sha1(text).hexdigest()}
                    for name, text in files.items()
                ]  # fmt: skip
                body, status = json.dumps(tree).encode(), 200
            elif path.startswith(f"/api/models/{model}"):
                siblings = [{"rfilename": name, "size": size} for name, size in sizes.items()]
                body = json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode()
                status = 200
            else:
                name = path.rpartition("/")[2]
                body = files.get(name, b"")
                status = 200 if path.startswith(f"/{model}/resolve/") and name in files else 404
                headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
                if status == 404:
                    headers["X-Error-Code"] = "EntryNotFound"
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if has_body:
                self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
