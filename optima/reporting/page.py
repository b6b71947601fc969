"""The report as one page of HTML: figures, tables, and every conversation and tree to read.

Self-contained: style, script and data stand in the page, which loads nothing and works from disk.
Conversations are text from models. They reach the document as text nodes only, and the page's
policy runs no script but its own, whose digest it names.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment
from tqdm import tqdm

from optima.files import PROVENANCE, RECIPE
from optima.reader import Run
from optima.reporting.archive import Archive, packed
from optima.reporting.drawing import Figure
from optima.reporting.tables import Table
from optima.reporting.trees import Trees

SETUP_FILES = {RECIPE: "Recipe, as resolved", PROVENANCE: "Provenance"}
SCRIPTS = ("data.js", "conversations.js", "trees.js", "main.js")


@dataclass(frozen=True, slots=True)
class Content:
    """What a page shows. A ``live`` page asks its server for conversations and trees, and for
    what is new since ``version``; any other holds everything."""

    runs: Sequence[Run]
    archive: Archive
    trees: Trees
    tables: Sequence[Table]
    figures: Sequence[Figure]
    live: bool = False
    version: str = ""


def page_parts(content: Content) -> Iterator[str]:
    """Yield the page piece by piece: a large run does not fit into one string twice."""
    style = _asset("style.css")
    script = '"use strict";\n' + "\n".join(map(_asset, SCRIPTS))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    yield from environment.from_string(_asset("page.html")).generate(
        content=content,
        policy=_policy(style, script, is_live=content.live),
        title=", ".join(run.name for run in content.runs),
        style=style,
        script=script,
        cards=[(run, list(_card(run))) for run in content.runs],
        setup=[(run, list(_setup_files(run))) for run in content.runs],
        payload=_script_json(_payload(content)),
        blobs=iter(()) if content.live else _blobs(content),
    )


def _payload(content: Content) -> dict[str, Any]:
    return {
        **content.archive.header(),
        "live": content.live,
        "version": content.version,
        "runs": [
            {
                "name": run.name,
                "agents": run.recipe.agents.names,
                "lambda_token": run.recipe.reward.lambda_token,
            }
            for run in content.runs
        ],
        "trees": content.trees.lines(),
    }


def _blobs(content: Content) -> Iterator[tuple[str, str]]:
    """Yield the identifier and the content of all that is unpacked when it is looked into."""
    archive, trees = content.archive, content.trees
    total = archive.n_chunks + len(trees)
    with tqdm(desc="report", total=total, disable=not sys.stderr.isatty()) as bar:
        for name, n, read in (
            ("chunk", archive.n_chunks, archive.chunk),
            ("tree", len(trees), trees.tree),
        ):
            for number in range(n):
                yield f"{name}-{number}", packed(read(number))
                bar.update()


def _card(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what a run came to at a glance: its first model against its last, or their range."""
    models = run.figures
    is_series = run.kind == "training"
    scores = [100 * one.score.mean for one in models]
    for what, values in (("score", scores), ("tokens", [one.tokens.mean for one in models])):
        ends = values if is_series else sorted(values)
        texts = dict.fromkeys(f"{value:.1f}" for value in (*ends[:1], *ends[-1:]))
        if texts:
            yield what, (" → " if is_series else " to ").join(texts)


def _setup_files(run: Run) -> Iterator[tuple[str, str]]:
    for file, title in SETUP_FILES.items():
        if (run.root / file).is_file():
            yield title, (run.root / file).read_text(encoding="utf-8")


def _policy(style: str, script: str, *, is_live: bool) -> str:
    """Return the content security policy: our own style and script, and nothing from elsewhere.

    Style attributes are allowed for the figures, which are ours.
    """
    rules = [
        "default-src 'none'",
        f"script-src 'sha256-{_sha256(script)}'",
        f"style-src 'sha256-{_sha256(style)}'",
        "style-src-attr 'unsafe-inline'",
        "connect-src 'self'" if is_live else "connect-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return resources.files("optima.reporting").joinpath("assets", name).read_text(encoding="utf-8")


def _script_json(value: object) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
