"""The tables of a report, each where the runs hold data for it, as Markdown and CSV."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optima.pipelines.comparison import differences
from optima.pipelines.cost import ModelCost
from optima.records import disk_errors, write_text
from optima.reporting.bars import transfers
from optima.reporting.consistency import HEAD as CONSISTENCY_HEAD
from optima.reporting.cost import HEAD as COST_HEAD
from optima.reporting.cost import REPAID, cost_table
from optima.reporting.history import EvaluatedModel, History
from optima.reporting.inference import comparison_table
from optima.reporting.tables import Table, interval

_SEED = 0  # of the intervals of differences, as for ``optima compare``
_REWARDS = ("total", "task", "token", "loss_term", "eligible")
_STOPS = ("agreement", "alone", "max_turns", "context_overflow", "error")
_FAULTS = ("role_leakage", "overflow")
# What else goes wrong in conversations, by its metric.
_HABITS = {
    "health/leaked": "a label began",
    "health/repeated": "repeated",
    "health/empty": "empty",
    "health/top_share": "one answer",
}


@dataclass(frozen=True, slots=True)
class ReportTable:
    """One table: ``name`` is a file's stem; ``caption`` says what its columns are, with units."""

    name: str
    title: str
    caption: str
    table: Table


def tables_of(histories: Sequence[History]) -> tuple[ReportTable, ...]:
    """Return the tables of runs already read."""
    found = [
        models_table(histories),
        differences_table(histories),
        *transfer_tables(histories),
        scaling_table(histories),
        reward_table(histories),
        stop_table(histories),
        costs_table(histories),
    ]
    return tuple(table for table in found if table is not None)


def write_tables(tables: Sequence[ReportTable], directory: Path) -> None:
    """Write ``<name>.md`` and ``<name>.csv`` of every table into a directory, made if missing."""
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for one in tables:
        text = f"# {one.title}\n\n{one.table.markdown()}\n{one.caption}\n"
        write_text(directory / f"{one.name}.md", text)
        write_text(directory / f"{one.name}.csv", one.table.csv())


def models_table(histories: Sequence[History]) -> ReportTable | None:
    """Return one line per evaluated model; columns that no run has anything for are left out."""
    shown = [(history, model) for history in histories for model in history.models]
    columns: dict[str, Callable[[History, EvaluatedModel], str]] = {
        "task": lambda history, _: history.task,
        "problems": lambda _, model: str(model.summary.n_problems),
        "samples": lambda _, model: str(model.n_samples),
        "score": lambda _, model: f"{100 * model.summary.score.mean:.1f}",
        "score, 95 %": lambda _, model: interval(model.summary.score, 100),
        "answered": lambda _, model: f"{100 * model.summary.answered:.0f} %",
        "tokens": lambda _, model: f"{model.summary.tokens.mean:.1f}",
        "tokens, 95 %": lambda _, model: interval(model.summary.tokens),
        "median": lambda _, model: f"{model.summary.tokens_median:.0f}",
        "p95": lambda _, model: f"{model.summary.tokens_p95:.0f}",
        "generated": lambda _, model: f"{model.summary.generated:.1f}",
        "turns": lambda _, model: f"{model.summary.turns:.2f}",
        "failed": lambda _, model: f"{100 * model.summary.failed:.1f} %",
        "reward": lambda _, model: "" if model.reward is None else f"{model.reward:.3f}",
        "made in": lambda _, model: f"{model.made_in_s:.0f} s" if model.made_in_s else "",
        "asked in": lambda _, model: f"{model.talk_s:.0f} s",
    }
    cells = {
        name: [cell(history, model) for history, model in shown] for name, cell in columns.items()
    }
    kept = [name for name, column in cells.items() if any(column)]
    if len({history.task for history, _ in shown}) < 2:
        kept = [name for name in kept if name != "task"]
    if {model.n_samples for _, model in shown} <= {1}:
        kept = [name for name in kept if name != "samples"]
    lines = [
        (*_place(histories, history, model.label), *(cells[name][i] for name in kept))
        for i, (history, model) in enumerate(shown)
    ]
    if not lines:
        return None
    table = Table((*_place_head(histories), *kept), tuple(lines), n_left=_n_left(histories))
    caption = (
        "Score in per cent with its 95 % interval (bootstrap over problems). Tokens of "
        "a conversation's utterances by the paper's count (label in, end of turn out): mean with "
        "its interval, median, 95th percentile; generated: mean as the server counts (label out, "
        "end of turn in). Failed and overlong conversations count in full, a vote counts all its "
        "samples. reward: "
        "mean R, with the tokens of the run's first model as normaliser. made in: wall time of the "
        "stages that made the model; asked in: of its conversations."
    )
    return ReportTable("models", "Models", caption, table)


def differences_table(histories: Sequence[History]) -> ReportTable | None:
    """Return paired differences to the first model of the first run; None where none is shared.

    Samples of self-consistency are left out: they are drawn at another temperature.
    """
    alike = [history for history in histories if history.kind != "consistency"]
    models = [(history, model) for history in alike for model in history.models]
    if len(models) < 2:
        return None
    rows = differences([(model.evaluated, model.summary) for _, model in models], seed=_SEED)
    # A problem's id is a digest of its content, so other tasks have none in common.
    shared = [
        replace(row, model=replace(row.model, label=model.label, run=Path(history.name)))
        for row, (history, model) in zip(rows, models, strict=True)
        if row.n_common
    ]
    if len(shared) < 2:
        return None
    table = comparison_table(shared)
    if len(histories) == 1:
        lines = zip(shared, table.rows, strict=True)
        table = Table(table.head, tuple((row.model.label, *line[1:]) for row, line in lines))
    caption = (
        "Differences to the model of the first line over the problems both were asked (common), "
        "with 95 % intervals (paired bootstrap): * where the interval leaves 0 out. Score in per "
        "cent, tokens per conversation."
    )
    return ReportTable("differences", "Differences to the first model", caption, table)


def transfer_tables(histories: Sequence[History]) -> list[ReportTable]:
    """Return a matrix of models by tasks for every transfer."""
    groups = transfers(histories)
    found = []
    for i, group in enumerate(groups):
        labels = dict.fromkeys(model.label for history in group for model in history.models)
        by_place = {
            (history.task, model.label): model.summary
            for history in group
            for model in history.models
        }
        lines = []
        for label in labels:
            cells = [by_place.get((history.task, label)) for history in group]
            figures = [
                f"{100 * cell.score.mean:.1f} / {cell.tokens.mean:.1f}" if cell else ""
                for cell in cells
            ]
            lines.append((label, *figures))
        head = ("model", *(history.task for history in group))
        suffix = "" if len(groups) == 1 else f"-{i + 1}"
        caption = "Score in per cent / mean tokens per conversation of each model on each task."
        found.append(
            ReportTable(f"transfer{suffix}", "Transfer", caption, Table(head, tuple(lines)))
        )
    return found


def scaling_table(histories: Sequence[History]) -> ReportTable | None:
    """Return votes and coverage for k = 1, 2, 4, ... and the last."""
    lines = [
        (
            *_place(histories, history, scaling.label),
            str(point.k),
            f"{100 * point.score.mean:.1f}",
            interval(point.score, 100),
            f"{100 * point.coverage.mean:.1f}",
            interval(point.coverage, 100),
            f"{point.n_tokens:.1f}",
        )
        for history in histories
        for scaling in history.scalings
        for point in scaling.points
        if point.k.bit_count() == 1 or point is scaling.points[-1]
    ]
    if not lines:
        return None
    head = (*_place_head(histories), *CONSISTENCY_HEAD[1:])
    caption = (
        "vote: score of the largest group of equal answers among k samples of a problem; coverage: "
        "best score of the k; in per cent, with 95 % intervals. tokens: of all k conversations."
    )
    table = Table(head, tuple(lines), n_left=_n_left(histories))
    return ReportTable("self-consistency", "Self-consistency", caption, table)


def reward_table(histories: Sequence[History]) -> ReportTable | None:
    """Return the parts of the candidates' reward by iteration."""
    lines = [
        (
            *_place(histories, history, candidates.label),
            *(_number(candidates.metrics.get(f"reward/{part}"), 3) for part in _REWARDS),
            _number(candidates.metrics.get("tokens/conversation"), 1),
            _number(candidates.metrics.get("turns/conversation"), 2),
            _number(candidates.metrics.get("conversations"), 0),
        )
        for history in histories
        for candidates in history.candidates
    ]
    if not lines:
        return None
    head = (
        *_place_head(histories, "iteration"),
        *("R", "R_task", "R_token", "loss term", "eligible", "tokens", "turns", "conversations"),
    )
    caption = (
        "Means over the conversations that an iteration draws from the model before it. "
        "R = R_task - λ_token · R_token + loss term; eligible: share that may be selected."
    )
    table = Table(head, tuple(lines), n_left=_n_left(histories))
    return ReportTable("rewards", "Reward of the candidates", caption, table)


def stop_table(histories: Sequence[History]) -> ReportTable | None:
    """Return why conversations ended and what went wrong in them, of models and of candidates."""
    metrics = [
        (history, f"{what}{one.label}", one.metrics)
        for history in histories
        for what, ones in (("", history.models), ("candidates of ", history.candidates))
        for one in ones
    ]
    keys = [f"stop/{reason}" for reason in _STOPS] + [f"fault/{fault}" for fault in _FAULTS]
    keys += _HABITS
    kept = [key for key in keys if any(key in of_one for _, _, of_one in metrics)]
    if not kept:
        return None
    lines = [
        (*_place(histories, history, label), *(_habit(of_one, key) for key in kept))
        for history, label, of_one in metrics
    ]
    head = (
        *_place_head(histories, "conversations of"),
        *(
            _HABITS.get(key)
            or key.replace("stop/", "").replace("fault/", "fault: ").replace("_", " ")
            for key in kept
        ),
    )
    caption = (
        "Share of conversations by the reason why they ended, and share with a fault, which is "
        "never selected. a label began: generation was stopped there; repeated, empty: an "
        "utterance twice, or without a word. one answer: share of problems with the commonest "
        "answer, marked ! where most problems get it and it is right for less than half of those."
    )
    table = Table(head, tuple(lines), n_left=_n_left(histories))
    return ReportTable("stop-reasons", "How conversations ended", caption, table)


def _habit(metrics: Mapping[str, float], key: str) -> str:
    if key == "health/top_share" and metrics.get("health/collapsed"):
        return f"{_share(metrics[key])} !"
    return _share(metrics.get(key, 0.0))


def costs_table(histories: Sequence[History]) -> ReportTable | None:
    """Return what models cost to make, and after how many conversations that is repaid."""
    lines: list[tuple[str, ...]] = []
    for history in histories:
        tokens = {model.label: model.summary.tokens.mean for model in history.models}
        repaid = {row[0]: row for row in cost_table(history.costs, tokens).rows} if tokens else {}
        for cost in history.costs:
            line = repaid.get(cost.label) or _cost_line(cost)
            lines.append((*_place(histories, history, cost.label), *line[1:]))
    if not lines:
        return None
    head = (*_place_head(histories), *COST_HEAD[1:], REPAID)
    caption = (
        "Cost up to each model: tokens that agents generated and that training went over in all "
        "epochs, and device-seconds (wall time times GPUs, times 1 on a CPU) by what they were "
        "spent on. repaid after: conversations until the tokens saved against the run's first "
        "model are those generated and trained."
    )
    table = Table(head, tuple(lines), n_left=_n_left(histories))
    return ReportTable("cost", "Cost", caption, table)


def _cost_line(cost: ModelCost) -> tuple[str, ...]:
    """Return the line of a model that is not evaluated yet: when it is repaid is not known."""
    line = cost_table([cost], {cost.label: 0.0}).rows[0]
    return (*line[:-1], "")


def _place_head(histories: Sequence[History], what: str = "model") -> tuple[str, ...]:
    return ("run", what) if len(histories) > 1 else (what,)


def _place(histories: Sequence[History], history: History, label: str) -> tuple[str, ...]:
    return (history.name, label) if len(histories) > 1 else (label,)


def _n_left(histories: Sequence[History]) -> int:
    return len(_place_head(histories))


def _number(value: float | None, n_digits: int) -> str:
    return "" if value is None else f"{value:,.{n_digits}f}"


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"
