"""The report of runs: tables and figures, each where the runs hold data for it, and a page.

report.html   report.md   tables/NAME.{md,csv}   figures/NAME.{png,svg}

The page has every conversation and tree to read too. It is self-contained: style, script and data
stand in it, it loads nothing and works from disk. Conversations are text from models. They reach
the document as text nodes only, and the page's policy runs no script but its own, whose digest it
names.
"""

import base64
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from tqdm import tqdm

from optima.errors import StageError, UsageError
from optima.evaluation.figures import AgentFigures, agents_of
from optima.plan import describe_agents, plan
from optima.records import (
    atomic_writer,
    clear_temporaries,
    disk_errors,
    make_folder,
    write_text,
)
from optima.reporting.archive import Archive, StaleError, packed
from optima.reporting.tables import (
    Spent,
    Table,
    agents_table,
    cost_table,
    differences_table,
    ends_table,
    matrix_table,
    models_table,
    policies_table,
    rewards_table,
    votes_table,
    write_tables,
)
from optima.reporting.trees import Trees
from optima.runs.comparison import differences, open_runs, transfers, wholes
from optima.runs.files import PROVENANCE, RECIPE
from optima.runs.reader import Run
from optima.tasks import get_task

if TYPE_CHECKING:
    from optima.reporting.drawing import Figure

logger = logging.getLogger(__name__)
PAGE = "report.html"
SETUP_FILES = {RECIPE: "Recipe, as resolved", PROVENANCE: "Provenance"}
SCRIPTS = ("data.js", "conversations.js", "trees.js", "main.js")
_SEED = 0  # of the intervals of differences, as for ``optima compare``
# What is said of each table: its title, and what its columns are.
_WORDS = {
    "models": (
        "Models",
        "Score in per cent with its 95 % interval (bootstrap over problems). Tokens of a "
        "conversation's utterances by the paper's count (label in, end of turn out): mean with its "
        "interval, median, 95th percentile; generated: mean as the server counts (label out, end "
        "of turn in). Failed and overlong conversations count in full, a vote counts all its "
        "samples. reward: mean R, with the tokens of the run's first model as normaliser. made in: "
        "wall time of the stages that made the model; asked in: of its conversations.",
    ),
    "differences": (
        "Differences to the first model",
        "Differences to the model of the first line, of mixtures to the first on the same task, "
        "over the problems both were asked (common), with 95 % intervals (paired bootstrap): * "
        "where the interval leaves 0 out. Score in per cent, tokens per conversation.",
    ),
    "tasks-together": (
        "Tasks together",
        "Score in per cent / mean tokens per conversation of each model of a mixture on each of "
        "its tasks, and the means over the tasks, whatever their sizes.",
    ),
    "transfer": (
        "Transfer",
        "Score in per cent / mean tokens per conversation of each model on each task.",
    ),
    "self-consistency": (
        "Self-consistency",
        "vote: score of the largest group of equal answers among k samples of a problem; coverage: "
        "best score of the k; in per cent, with 95 % intervals. tokens: of all k conversations.",
    ),
    "rewards": (
        "Reward of the candidates",
        "Means over the conversations that an iteration draws from the model before it. R = R_task "
        "- λ_token · R_token + loss term; eligible: share that may be selected; trained before: "
        "share of the problems that an earlier iteration was trained on; R_task of others: of the "
        "problems that none was.",
    ),
    "stop-reasons": (
        "How conversations ended",
        "Share of conversations by the reason why they ended, and share with a fault, which is "
        "never selected. a label began: generation was stopped there; repeated, empty: an "
        "utterance twice, or without a word. one answer: share of problems with the commonest "
        "answer, marked ! where most problems get it and it is right for less than half of those.",
    ),
    "agents": (
        "What each agent does",
        "What each agent says and marks: turns of a conversation, tokens and seconds of a turn, "
        "share of its turns with an answer; marks first: share of conversations whose first answer "
        "is its, and the mean score of those answers in per cent. changes: answers in other words "
        "than the last one marked, and how many of them score higher and lower.",
    ),
    "policies": (
        "What each policy was trained on",
        "Rows of its own agents in the selected conversations, or pairs in which one of them acts; "
        "steps of the optimizer, tokens that training went over in all epochs and those of them "
        "that carried loss, and its seconds.",
    ),
    "cost": (
        "Cost",
        "Cost up to each model: tokens that agents generated and that training went over in all "
        "epochs, and device-seconds (wall time times GPUs, times 1 on a CPU) by what they were "
        "spent on. repaid after: conversations until the tokens saved against the run's first "
        "model are those generated and trained.",
    ),
}


@dataclass(frozen=True, slots=True)
class Content:
    """What a page shows. A ``live`` page asks its server for conversations and trees, and for
    what is new since ``version``; any other holds everything."""

    runs: Sequence[Run]
    archive: Archive
    trees: Trees
    tables: Sequence[Table]
    figures: "Sequence[Figure]"
    live: bool = False
    version: str = ""

    @property
    def blobs(self) -> dict[str, tuple[int, Callable[[int], bytes]]]:
        """What is read when it is looked into, by its kind: how many there are, and how."""
        return {
            "chunk": (self.archive.n_chunks, self.archive.chunk),
            "tree": (len(self.trees), self.trees.tree),
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """What a page holds at most: conversations in all, trees of each search; None is no limit."""

    n_conversations: int | None = 100_000
    n_trees: int | None = 200


def contents(places: Sequence[Path], limits: Limits | None = None) -> Content:
    """Read what a page shows of runs, or folders of runs; they may be going on."""
    limits = limits or Limits(None, None)
    runs = open_runs(places)
    archive = Archive(runs, n_most=limits.n_conversations)
    trees = Trees(archive, n_most=limits.n_trees)
    return Content(runs, archive, trees, tables_of(runs), figures_of(runs))


def write_report(places: Sequence[Path], output: Path, limits: Limits) -> Path:
    """Write the report of runs, or folders of runs, into ``output``; return the page's path.

    Runs are read as they are, finished or not. Raises UsageError for what is not a run, StageError
    for what is damaged, or was made anew while it was read.
    """
    try:
        return _write_report(places, output, limits)
    except (StaleError, FileNotFoundError) as error:
        place = error.filename if isinstance(error, FileNotFoundError) else error
        raise StageError(
            f"{place}: was made anew or taken away while it was read; give the same command again"
        ) from error


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
        setup=[(run, list(_setup_files(run))) for run in wholes(content.runs)],
        payload=_script_json(_payload(content)),
        blobs=iter(()) if content.live else _blobs(content),
    )


def tables_of(runs: Sequence[Run]) -> tuple[Table, ...]:
    """Return the tables of runs."""
    return tuple(_tables(runs))


def figures_of(runs: Sequence[Run]) -> "tuple[Figure, ...]":
    """Return the figures of runs."""
    # Imported here: they bring matplotlib, which takes a second, and what is no run needs none.
    from optima.reporting import bars, curves

    found = [
        curves.score_figure(runs),
        curves.tokens_figure(runs),
        curves.tradeoff_figure(runs),
        *curves.scaling_figures(runs),
        *bars.transfer_figures(runs),
        bars.length_figure(runs),
        *bars.stop_figures(runs),
        curves.reward_figure(runs),
        bars.cost_figure(runs),
    ]
    return tuple(figure for figure in found if figure is not None)


def _write_report(places: Sequence[Path], output: Path, limits: Limits) -> Path:
    started = time.monotonic()
    content = contents(places, limits)
    make_folder(output, "--output")
    for folder in (output, output / "tables", output / "figures"):
        clear_temporaries(folder)
    write_tables(content.tables, output / "tables")
    from optima.reporting.drawing import write_figures  # as above: what is no run needs none

    write_figures(content.figures, output / "figures")
    write_text(output / "report.md", _markdown(content))
    page = output / PAGE
    with disk_errors(page), atomic_writer(page) as file:
        for part in page_parts(content):
            file.write(part)
    logger.info(
        "report: done in %.1f s, %d conversations and %d trees in %.1f MB",
        time.monotonic() - started, len(content.archive), len(content.trees),
        page.stat().st_size / 1e6,
    )  # fmt: skip
    return page


def _markdown(content: Content) -> str:
    """Return all tables, and the figures by link, as one page of Markdown."""
    parts = ["# Report\n"]
    parts += [f"## {t.title}\n\n{t.caption}\n\n{t.markdown()}" for t in content.tables]
    parts += [
        f"## {figure.title}\n\n![{figure.title}](figures/{figure.name}.svg)\n\n{figure.caption}\n"
        for figure in content.figures
    ]
    return "\n".join(parts)


def _tables(runs: Sequence[Run]) -> Iterator[Table]:
    """Yield each table that the runs hold data for; with several, lines begin with their names."""
    run_head = ("run",) if len(runs) > 1 else ()

    def place(run: Run, *words: str) -> tuple[str, ...]:
        return (run.name, *words) if run_head else words

    shown = [(run, one) for run in runs for one in run.figures]
    if len({run.recipe.task for run, _ in shown}) > 1:
        head = (*run_head, "model", "task")
        lines = [(place(run, one.label, run.recipe.task), one) for run, one in shown]
    else:
        head = (*run_head, "model")
        lines = [(place(run, one.label), one) for run, one in shown]
    if shown:
        yield _called(models_table(lines, head), "models")
    yield from _differences(runs)
    yield from _mixtures(runs)
    for suffix, group in transfers(runs).items():
        table = matrix_table({run.recipe.task: run.figures for run in group})
        yield _called(table, "transfer", suffix)
    points = [(place(run, one.label), one) for run, one in shown if run.kind == "consistency"]
    if points:
        yield _called(votes_table(points, (*run_head, "model")), "self-consistency")
    drawn = [
        (place(run, label), {**metrics, **run.remembered.get(label, {})})
        for run in runs
        for label, metrics in run.drawn.items()
    ]
    if drawn:
        yield _called(rewards_table(drawn, (*run_head, "iteration")), "rewards")
    talks: list[tuple[tuple[str, ...], Mapping[str, float]]] = []
    for run in runs:
        talks += [(place(run, one.label), one.metrics) for one in run.figures]
        talks += [(place(run, f"candidates of {key}"), of) for key, of in run.drawn.items()]
    ends = ends_table(talks, (*run_head, "conversations of"))
    if ends is not None:
        yield _called(ends, "stop-reasons")
    agents = [
        (place(run, one.label), agent) for run, one in shown for agent in _agents(run, one.label)
    ]
    if agents:
        yield _called(agents_table(agents, (*run_head, "model")), "agents")
    policies = [
        (place(run, step.model, step.policy), run.metrics[step.name])
        for run in wholes(runs)
        if not run.is_evaluation
        for step in plan(run.recipe)
        if step.policy and step.name in run.metrics
    ]
    if policies:
        yield _called(policies_table(policies, (*run_head, "model")), "policies")
    costs = [(run, _costs(run)) for run in wholes(runs) if run.costs]
    if costs:
        rows = tuple(place(run, *row) for run, table in costs for row in table.rows)
        table = Table((*run_head, *costs[0][1].head), rows, n_left=1 + len(run_head))
        yield _called(table, "cost")


def _mixtures(runs: Sequence[Run]) -> Iterator[Table]:
    """Yield the tasks of each mixture side by side, with their means."""
    mixtures = [run for run in wholes(runs) if run.is_mixture and run.figures]
    for number, run in enumerate(mixtures, start=1):
        by_task = {one.recipe.task: one.figures for one in run.tasks}
        table = matrix_table({**by_task, "mean": run.figures})
        yield _called(table, "tasks-together", f"-{number}" if len(mixtures) > 1 else "")


def _agents(run: Run, label: str) -> tuple[AgentFigures, ...]:
    """Return what each agent of a model does; nothing where the run keeps no problems."""
    try:
        run.problems("test")
    except UsageError:
        return ()
    found = agents_of(run.evaluation(label), get_task(run.recipe.task).metric)
    by_name = describe_agents(run.recipe)
    return tuple(
        replace(one, name=f"{one.name} ({by_name[one.name]})") if one.name in by_name else one
        for one in found
    )


def _differences(runs: Sequence[Run]) -> Iterator[Table]:
    """Yield paired differences to the first model of the first run, where some are shared.

    Samples of self-consistency are left out: they are drawn at another temperature.
    """
    alike = [(run, one) for run in runs if run.kind != "consistency" for one in run.figures]
    # A problem's id is a digest of its content, so other tasks have none in common.
    is_mixed = any(run.task for run, _ in alike)
    tasks = dict.fromkeys(run.recipe.task if is_mixed else "" for run, _ in alike)
    groups = [[pair for pair in alike if task in ("", pair[0].recipe.task)] for task in tasks]
    rows = [row for group in groups for row in differences(group, seed=_SEED)]
    shared = [row for row in rows if row.n_common]
    if len(shared) > 1:
        names = [
            f"{row.run.name}:{row.figures.label}" if len(runs) > 1 else row.figures.label
            for row in shared
        ]
        yield _called(differences_table(shared, names), "differences")


def _costs(run: Run) -> Table:
    """Return what a run's models cost to make, those not asked yet too."""
    tokens = {one.label: one.tokens.mean for one in run.figures}
    labels = dict.fromkeys((*tokens, *(cost.label for cost in run.costs)))
    return cost_table([Spent(label, tokens.get(label), run.cost_of(label)) for label in labels])


def _called(table: Table, name: str, suffix: str = "") -> Table:
    title, caption = _WORDS[name]
    return replace(table, name=f"{name}{suffix}", title=title, caption=caption)


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
    blobs = [
        (f"{kind}-{number}", read, number)
        for kind, (n, read) in content.blobs.items()
        for number in range(n)
    ]
    for name, read, number in tqdm(blobs, desc="report", disable=not sys.stderr.isatty()):
        yield name, packed(read(number))


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
