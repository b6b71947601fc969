"""The report of runs that may be going on, served on loopback: ``optima view``.

The address holds a random key, and requests under another host name are refused, so neither other
users of this machine nor pages of other sites can read it. Each page is made from what the runs
hold when it is asked for; a page asks how far the current stage is and offers what is new.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from aiohttp import web

from optima.errors import OptimaError, UsageError
from optima.reporting.archive import StaleError
from optima.reporting.report import Content, contents, page_parts
from optima.runs.comparison import find_runs
from optima.runs.files import CONVERSATIONS, DONE, ROUNDS
from optima.runs.status import read_status, status_text
from optima.seeding import digest

HOST = "127.0.0.1"
KEPT_VERSIONS = 4  # pages of older versions go on reading from theirs
_WATCHED = (CONVERSATIONS, ROUNDS, DONE)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LiveReport:
    """The pages of some runs, made anew when the runs have grown."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self._runs = find_runs(runs)
        self._made: dict[str, Content] = {}
        self._making = asyncio.Lock()

    def version(self) -> str:
        """Identify what the runs hold now."""
        files = [p for run in self._runs for name in _WATCHED for p in run.glob(f"**/{name}")]
        sizes = []
        for path in sorted(files):
            with contextlib.suppress(FileNotFoundError):  # a stage that starts over is removed
                sizes.append(f"{path}:{path.stat().st_size}")
        return digest(*sizes)

    async def content(self) -> Content:
        """Return the newest content, at most made once at a time."""
        async with self._making:
            version = self.version()
            if version not in self._made:
                try:
                    self._made[version] = await asyncio.to_thread(self._make, version)
                except (OptimaError, FileNotFoundError) as error:  # written anew while it was read
                    raise web.HTTPServiceUnavailable(text=f"{error}; reload the page") from error
                for old in list(self._made)[:-KEPT_VERSIONS]:
                    del self._made[old]
            return self._made[version]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Answer with the page."""
        content = await self.content()
        text = await asyncio.to_thread(lambda: "".join(page_parts(content)))
        return web.Response(text=text, content_type="text/html")

    async def blob(self, request: web.Request) -> web.StreamResponse:
        """Answer with a chunk or a tree of the version that the page was made from."""
        number, version = int(request.match_info["number"]), request.query.get("v", "")
        try:
            if version not in self._made:
                raise StaleError(version)
            n, read = self._made[version].blobs[request.match_info["kind"]]
            if number >= n:
                raise web.HTTPNotFound
            body = await asyncio.to_thread(read, number)
        except (StaleError, FileNotFoundError) as error:
            raise web.HTTPGone(text="the runs have gone on; reload the page") from error
        return web.Response(body=body, content_type="application/json")

    async def status(self, request: web.Request) -> web.StreamResponse:
        """Answer with where the runs stand; ``share`` is that of the first stage under way."""
        lines, shares = [], []
        for run in self._runs:
            try:
                state = read_status(run)
            except OptimaError as error:  # the page says so too, when it is asked for again
                lines.append(str(error))
                continue
            lines += status_text(Path(run.resolve().name), state).splitlines()
            shares += [] if state.share is None else [state.share]
        return web.json_response(
            {
                "text": "\n".join(lines),
                "share": next(iter(shares), None),
                "version": self.version(),
            }
        )

    def _make(self, version: str) -> Content:
        return replace(contents(self._runs), live=True, version=version)


async def serve(runs: Sequence[Path], port: int, announce: Callable[[str], None]) -> None:
    """Serve the report of ``runs`` until cancelled; ``announce`` is given the address.

    ``port`` 0 takes a free one. Raises UsageError when the port cannot be listened at.
    """
    key = secrets.token_urlsafe(16)
    runner = web.AppRunner(_application(LiveReport(runs), key), access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            raise UsageError(f"--port {port}: {error.strerror}; take another one") from error
        host, bound = runner.addresses[0][:2]
        announce(f"http://{host}:{bound}/{key}/")
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def _application(report: LiveReport, key: str) -> web.Application:
    application = web.Application(middlewares=[_only_here])
    application.add_routes(
        [
            web.get(f"/{key}/", report.page),
            web.get(f"/{key}/status", report.status),
            web.get(f"/{key}/{{kind:chunk|tree}}/{{number:\\d+}}", report.blob),
        ]
    )
    return application


@web.middleware
async def _only_here(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse other host names, by which a page elsewhere could reach this server."""
    if request.host.rpartition(":")[0] not in (HOST, "localhost"):
        raise web.HTTPForbidden
    response = await handler(request)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
