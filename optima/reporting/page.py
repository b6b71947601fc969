"""The report as one page of HTML: figures, tables, and every conversation and tree to read.

Self-contained: style, script and data stand in the page, which loads nothing and works from disk.
Conversations are text from models. They reach the document as text nodes only, and the page's
policy runs no script but its own, whose digest it names.
"""

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from optima.reporting.archive import Archive, packed
from optima.reporting.drawing import Figure
from optima.reporting.history import History
from optima.reporting.run_tables import ReportTable
from optima.reporting.trees import Trees
from optima.stages import finished_stages, read_recipe

SETUP_FILES = {"recipe.yaml": "Recipe, as resolved", "provenance.json": "Provenance"}
SCRIPTS = ("data.js", "conversations.js", "trees.js", "main.js")


@dataclass(frozen=True, slots=True)
class Content:
    """What a page shows. A ``live`` page asks its server for conversations and trees, and for
    what is new since ``version``; any other holds everything."""

    histories: Sequence[History]
    archive: Archive
    trees: Trees
    tables: Sequence[ReportTable]
    figures: Sequence[Figure]
    live: bool = False
    version: str = ""


def page_parts(content: Content) -> Iterator[str]:
    """Yield the page piece by piece: a large run does not fit into one string twice."""
    archive, trees = content.archive, content.trees
    style = _asset("style.css")
    script = '"use strict";\n' + "\n".join(map(_asset, SCRIPTS))
    values = {
        "policy": _policy(style, script, is_live=content.live),
        "title": html.escape(", ".join(history.name for history in content.histories)),
        "style": style,
        "script": script,
        "conversations_link": _link("conversations", "Conversations", len(archive)),
        "trees_link": _link("trees", "Trees", len(trees) + trees.n_left_out),
        "live_hidden": "" if content.live else "hidden",
        "overview": "".join(_overview(content)),
        "setup": "".join(_setup(content.histories)),
        "trees_left": f"{trees.n_left_out:,}",
        "trees_left_hidden": "" if trees.n_left_out else "hidden",
        "payload": _script_json(_payload(content)),
    }
    before, after = _asset("page.html").split("{{blobs}}")
    yield _fill(before, values)
    if not content.live:
        for number in range(archive.n_chunks):
            yield _blob(f"chunk-{number}", archive.chunk(number))
        for number in range(len(trees)):
            yield _blob(f"tree-{number}", trees.tree(number))
    yield after


def _payload(content: Content) -> dict[str, Any]:
    archive, trees = content.archive, content.trees
    return {
        **archive.header(),
        "live": content.live,
        "version": content.version,
        "runs": [_run_line(history) for history in content.histories],
        "trees": trees.lines(),
    }


def _run_line(history: History) -> dict[str, Any]:
    recipe = read_recipe(history.root)
    return {
        "name": history.name,
        "agents": recipe.agents.names,
        "lambda_token": recipe.reward.lambda_token,
    }


def _overview(content: Content) -> Iterator[str]:
    cards = "".join(map(_card, content.histories))
    yield f'<div class="cards">{cards}</div>' if cards else ""
    yield from map(_table, content.tables[:1])
    if content.figures:
        figures = "".join(map(_figure, content.figures))
        yield f'<h2>Figures</h2><div class="figures">{figures}</div>'
    yield from map(_table, content.tables[1:])
    if not content.tables and not content.figures:
        yield '<p class="note">No model has been evaluated yet.</p>'


def _card(history: History) -> str:
    """Return what a run came to at a glance: its first model against its last, or their range."""
    name, about = html.escape(history.name), html.escape(f"{history.kind}, {history.task}")
    models = history.models
    if not models:
        lines = "<p class=note>no model evaluated yet</p>"
    else:
        is_series = history.kind == "training"
        figures = (
            ("score", [100 * model.summary.score.mean for model in models]),
            ("tokens", [model.summary.tokens.mean for model in models]),
        )
        lines = "".join(
            f"<p>{what} <span class=big>{_span(values, is_series=is_series)}</span></p>"
            for what, values in figures
        )
        shown = f"{models[0].label} → {models[-1].label}" if is_series else f"{len(models)} models"
        which = models[0].label if len(models) == 1 else shown
        n = models[-1].summary.n_problems
        lines += f"<p class=note>{html.escape(which)}, {n:,} problems</p>"
    return f'<div class="card"><h3>{name}</h3><p class=note>{about}</p>{lines}</div>'


def _span(values: Sequence[float], *, is_series: bool) -> str:
    """Return the first and the last of a series, or the least and the greatest."""
    ends = (values[0], values[-1]) if is_series else (min(values), max(values))
    texts = list(dict.fromkeys(f"{value:.1f}" for value in ends))
    return (" → " if is_series else " to ").join(texts)


def _figure(figure: Figure) -> str:
    return (
        f'<figure id="figure-{figure.name}"><h3>{html.escape(figure.title)}</h3>{figure.svg}'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
    )


def _table(shown: ReportTable) -> str:
    table = shown.table

    def cells(line: Sequence[str], tag: str) -> str:
        kinds = (' class="word"' if i < table.n_left else "" for i in range(len(line)))
        texts = (html.escape(cell) for cell in line)
        return "".join(f"<{tag}{k}>{t}</{tag}>" for k, t in zip(kinds, texts, strict=True))

    body = "".join(f"<tr>{cells(line, 'td')}</tr>" for line in table.rows)
    return (
        f'<h2>{html.escape(shown.title)}</h2><p class="note">{html.escape(shown.caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(shown.title)}">'
        f'<table id="table-{shown.name}"><thead><tr>{cells(table.head, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _setup(histories: Sequence[History]) -> Iterator[str]:
    for history in histories:
        run = history.root
        yield f"<h2>{html.escape(history.name)}</h2>"
        yield f'<p class="note">{html.escape(str(run.resolve()))}</p>'
        yield _stages(run)
        for file, title in SETUP_FILES.items():
            if (run / file).is_file():
                text = html.escape((run / file).read_text(encoding="utf-8"))
                yield f"<details class=setup><summary>{title}</summary><pre>{text}</pre></details>"


def _stages(run: Path) -> str:
    """Return the finished stages with their seconds and all that was measured in them."""
    lines = "".join(
        f"<tr><td class=word>{html.escape(done.stage)}</td><td>{done.seconds:.1f} s</td>"
        f"<td class='word wrap'>{html.escape(_metrics(done.metrics))}</td></tr>"
        for done in finished_stages(run)
    )
    return (
        '<h3>Stages</h3><div class="scroll" tabindex="0" role="region" aria-label="stages"><table>'
        "<thead><tr><th class=word>stage</th><th>time</th><th class=word>measured</th></tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in metrics.items())


def _link(section: str, text: str, n: int) -> str:
    return f'<a href="#{section}">{text} <small>{n:,}</small></a>' if n else ""


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


def _fill(template: str, values: dict[str, str]) -> str:
    """Put each value in its place once: what a value says is no template."""
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [values[name], rest]
    return "".join(filled)


def _blob(identifier: str, content: bytes) -> str:
    return f'<script type="application/octet-stream" id="{identifier}">{packed(content)}</script>\n'


def _script_json(value: object) -> str:
    """Return JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")
