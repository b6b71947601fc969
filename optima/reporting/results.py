"""What commands print and write about models: a table, its legend, what they cost, and where.

table.md  table.csv  costs.csv  results.json (the figures in full)
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optima.evaluation.figures import Figures
from optima.recipe.schema import Recipe
from optima.records import write_text
from optima.reporting.tables import (
    Placed,
    Spent,
    Table,
    cost_table,
    differences_table,
    matrix_table,
    models_table,
    untrained,
    votes_table,
)
from optima.runs.comparison import Asked, Compared, Decided
from optima.runs.costs import EvaluationCost, ModelCost
from optima.runs.files import COSTS_CSV, METRICS, RESULTS, TABLE_CSV, TABLE_MD, run_of
from optima.runs.reader import Run

MODELS_LEGEND = (
    "Score in per cent; tokens of a conversation's utterances (label in, end of turn out), and as\n"
    "generated."
)
DIFFERENCES_LEGEND = (
    "Score in per cent, tokens per conversation. Differences to the first over the problems in\n"
    "common, with 95 % intervals; * leaves 0 out."
)
COST_LEGEND = (
    "Cost up to each model: tokens, and device-seconds (of all GPUs) by what they were spent on."
)
REPAID_LEGEND = (
    "\nrepaid after: conversations until the tokens saved against {first}\nare those generated and "
    "trained."
)
NO_BASE_LEGEND = (
    "\nrepaid after: not known, as no untrained model is beside them to save tokens against."
)
MEAN = "mean"  # in place of a task: of all tasks of a mixture
# What results.json has of a model in ``summary``.
_SUMMARY = (
    *("n_problems", "n_conversations", "score", "tokens", "tokens_median", "tokens_p95", "turns"),
    *("answered", "failed", "generated", "n_generated", "score_by_problem", "tokens_by_problem"),
)


def training_text(root: Path) -> str:
    """Return the closing table of a training: its models, what they cost, and where things are."""
    run = Run(root)
    paths = [f"  {one.label}: {one.model}" for one in run.figures]
    alone: list[Placed] = [((one.label,), one) for one in run.figures]
    lines = [
        _models_text(_by_task(run), ("model", "task"))
        if run.is_mixture
        else _models_text(alone, ("model",)),
        *("", "Models:", *paths, f"Run: {root}", f"Metrics: {root / METRICS}"),
    ]
    return "\n".join(lines) + cost_text([_spent(run, one, one.label) for one in run.figures])


def _by_task(run: Run) -> list[Placed]:
    """Return the figures of each model of a mixture on each of its tasks, and their means."""
    tasks = [(one.recipe.task, one.figures) for one in run.tasks] + [(MEAN, run.figures)]
    found = [((one.label, task), one) for task, figures in tasks for one in figures]
    labels = list(run.evaluated)
    return [pair for label in labels for pair in found if pair[0][0] == label]


def training_results(root: Path) -> dict[str, Any]:
    """Return what ``training_text`` tells, in full, as results.json has it of an inference."""
    run = Run(root)
    return {
        "schema_version": 1,
        "run": str(root),
        "task": run.recipe.task,
        "method": run.recipe.method,
        "seed": run.recipe.seed,
        "models": [_record(one) for one in run.figures],
        **({"tasks": _records_by_task(run)} if run.is_mixture else {}),
        "costs": [cost for one in run.figures if (cost := run.cost_of(one.label))],
    }


def _records_by_task(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return the models of a mixture on each of its tasks."""
    return {one.recipe.task: [_record(figures) for figures in one.figures] for one in run.tasks}


def sweep_results(key: str, root_by_value: Mapping[str, Path]) -> dict[str, Any]:
    """Return the results of several runs by the value of the field ``key``."""
    values = [{"value": v, **training_results(root)} for v, root in root_by_value.items()]
    return {"schema_version": 1, "field": key, "values": values}


def stored_results(output: Path) -> dict[str, Any]:
    """Return the results.json that a command has written to ``output``."""
    found: dict[str, Any] = json.loads((output / RESULTS).read_bytes())
    return found


def results_json(results: Mapping[str, Any]) -> str:
    """Return results in one line, for other programs."""
    return json.dumps(results, default=dataclasses.asdict)


def sweep_text(key: str, root_by_value: Mapping[str, Path]) -> str:
    """Return one table of the models of several runs by the value of the field ``key``.

    What a run shares with the first one, its conversations are one file, is shown once.
    """
    shown, spent = [], []
    seen: set[tuple[int, int]] = set()
    for value, root in root_by_value.items():
        run = Run(root)
        talks = run.tasks[0].talks  # of a mixture all tasks are shared, or none
        file_by_label = {talk.label: talk.conversations.stat() for talk in talks}
        for one in run.figures:
            spent.append(_spent(run, one, f"{value}:{one.label}"))
            file = file_by_label[one.label]
            if (file.st_dev, file.st_ino) not in seen:
                shown.append(((value, one.label), one))
                seen.add((file.st_dev, file.st_ino))
    return _models_text(shown, (key, "model")) + cost_text(spent)


def write_inference(recipe: Recipe, rows: Sequence[Figures], output: Path) -> str:
    """Write the results of an inference or of baselines; return the table with its legend.

    Models that a run trained come with what they cost there.
    """
    table = models_table([((row.label,), row) for row in rows])
    cost = _write(output, (table, table), recipe, rows, [_record(row) for row in rows])
    n = rows[0].n_problems
    generated = sum(row.n_generated for row in rows)
    return (
        f"{table.text()}\n\n{recipe.task}, {n} problems. {MODELS_LEGEND} {generated:,} generated "
        f"in all.{cost}\nResults: {output}"
    )


def write_consistency(recipe: Recipe, rows: Sequence[Figures], output: Path) -> str:
    """Write the results of a self-consistency; return the table with its legend."""
    shown = [((row.label,), row) for row in rows]
    table = votes_table(shown)
    models = [
        {
            "label": row.label,
            "model": row.model,
            "points": row.points,
            "n_tokens": row.n_generated,
            "seconds": row.seconds,
        }
        for row in rows
    ]
    tables = (table, votes_table(shown, is_whole=True))
    cost = _write(output, tables, recipe, rows, models)
    return (
        f"{table.text()}\n\n{recipe.task}. vote: score of the largest group of equal answers among "
        f"k samples;\ncoverage: best score of the k; in per cent. tokens: of all k conversations."
        f"{cost}\nResults: {output}"
    )


def write_transfer(
    recipe_by_task: Mapping[str, Recipe],
    rows_by_task: Mapping[str, Sequence[Figures]],
    output: Path,
) -> str:
    """Write each task's results and the matrix of scores; return the matrix with its legend.

    Costs are those of the whole matrix; tokens saved are means over the tasks.
    """
    for task, rows in rows_by_task.items():
        write_inference(recipe_by_task[task], rows, output / task)
    table = matrix_table(rows_by_task)
    _write_table(output, table, table)
    results = {task: stored_results(output / task) for task in rows_by_task}
    _write_json(output, {"schema_version": 1, "tasks": results})
    spent = []
    for i, row in enumerate(next(iter(rows_by_task.values()))):
        costs = [Run(output / task).evaluation_cost(row.label) for task in rows_by_task]
        asked = EvaluationCost(
            sum(cost.n_generated for cost in costs), sum(cost.device_seconds for cost in costs)
        )
        tokens = sum(rows[i].tokens.mean for rows in rows_by_task.values()) / len(rows_by_task)
        spent.append(Spent(row.label, tokens, _cost_of(row), asked))
    cost = cost_text(spent, output=output)
    return (
        f"{table.text()}\n\nScore in per cent / tokens per conversation.{cost}\nResults: {output}"
    )


def comparison_table(rows: Sequence[Compared]) -> Table:
    """Return the table of models that are called by their runs and labels, and their tasks where
    there are several.
    """
    is_mixed = any(row.run.task or row.run.is_mixture for row in rows)
    return differences_table(rows, [_name(row, is_mixed=is_mixed) for row in rows])


def _name(row: Compared, *, is_mixed: bool) -> str:
    task = MEAN if row.run.is_mixture else row.run.recipe.task
    return f"{row.run.root}:{row.figures.label}{f' {task}' if is_mixed else ''}"


def comparison_json(rows: Sequence[Compared]) -> dict[str, Any]:
    """Return a comparison as results.json has it; estimates are dataclasses still."""
    models = [
        {
            "run": str(row.run.root),
            "label": row.figures.label,
            "task": row.run.recipe.task,
            "n_common": row.n_common,
            "summary": _summary(row.figures),
            "score_difference": row.score,
            "tokens_difference": row.tokens,
        }
        for row in rows
    ]
    return {"schema_version": 1, "models": models}


def decided_text(first: Compared, other: Compared, found: Sequence[Decided], n: int) -> str:
    """Return what a model solved better than the first, and what worse, up to ``n`` each."""
    names = [_name(one, is_mixed=bool(one.run.task)) for one in (first, other)]
    kinds = (
        ("better", [one for one in found if one.gain > 0]),
        ("worse", [one for one in found if one.gain < 0]),
    )
    parts = []
    for word, several in kinds:
        shown = f"; {min(n, len(several))} of them" if several else ""
        parts.append(f"{names[1]} is {word} than {names[0]} on {len(several)} problems{shown}")
        parts += [_decided_table(several[:n]).text()] if several else []
    return "\n\n".join(parts)


def said_table(asked: Asked) -> Table:
    """Return a line for each model that was asked a problem; of several samples the means."""
    head = ("model", "samples", "score", "tokens", "turns", "answer", "ended")
    rows = []
    for one in asked.said:
        talks = [sample.conversation for sample in one.samples]
        n = len(talks)
        rows.append(
            (
                one.name,
                str(n),
                f"{100 * sum(sample.reward.task for sample in one.samples) / n:.0f}",
                f"{sum(talk.n_tokens for talk in talks) / n:.0f}",
                f"{sum(len(talk.turns) for talk in talks) / n:.1f}",
                _cut(talks[0].answer or "-", 40),
                talks[0].stop_reason,
            )
        )
    return Table(head, tuple(rows))


def said_text(asked: Asked) -> str:
    """Return a problem, the table of what models made of it, and what they said, one by one."""
    problem = asked.problem
    parts = [f"{problem.problem_id}: {problem.question}\ngold: {' | '.join(problem.golds)}"]
    parts.append(said_table(asked).text())
    for one in asked.said:
        first, n = one.samples[0].conversation, len(one.samples)
        head = f"--- {one.name}{f', the first of {n}' if n > 1 else ''}"
        said = [f"{turn.name}:{turn.text}" for turn in first.turns]
        parts.append("\n".join([head, *said, *([first.error] if first.error else [])]))
    parts += ["\n".join(f"{run.root}: {why}" for run, why in asked.lacking)]
    return "\n\n".join(filter(None, parts))


def said_json(asked: Asked) -> dict[str, Any]:
    """Return a problem and all that models said about it."""
    left_out = {"turns": {"__all__": {"token_ids"}}}
    models = [
        {
            "run": str(one.run.root),
            "label": one.label,
            "conversations": [
                {
                    **sample.conversation.model_dump(mode="json", exclude=left_out),
                    "score": sample.reward.task,
                    "tokens": sample.conversation.n_tokens,
                    "generated": sample.conversation.n_generated,
                }
                for sample in one.samples
            ],
        }
        for one in asked.said
    ]
    lacking = [{"run": str(run.root), "why": why} for run, why in asked.lacking]
    problem = asked.problem.model_dump(mode="json")
    return {"schema_version": 1, "problem": problem, "models": models, "lacking": lacking}


def _decided_table(found: Sequence[Decided]) -> Table:
    head = ("problem", "score", "then", "tokens", "then", "answer", "then", "gold", "question")
    rows = (
        (
            one.problem.problem_id, *(f"{100 * score:.0f}" for score in one.scores),
            *(f"{tokens:.0f}" for tokens in one.tokens),
            *(_cut(answer or "-", 30) for answer in one.answers),
            _cut(one.problem.golds[0], 30), _cut(one.problem.question, 60),
        )
        for one in found
    )  # fmt: skip
    return Table(head, tuple(rows))


def _cut(text: str, n: int) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= n else f"{line[: n - 1]}…"


def comparison_text(rows: Sequence[Compared], output: Path | None = None) -> str:
    """Return the table of a comparison with its legend and costs; with ``output`` write it too."""
    table = comparison_table(rows)
    wholes = {(row.run.root, row.figures.label): row for row in rows}  # their means come last
    names = [f"{row.run.root}:{row.figures.label}" for row in wholes.values()]
    text = f"{table.text()}\n\n{DIFFERENCES_LEGEND}"
    if output is not None:
        _write_table(output, table, table)
        _write_json(output, comparison_json(rows))
    pairs = zip(wholes.values(), names, strict=True)
    spent = [_spent(row.run, row.figures, name) for row, name in pairs]
    text += cost_text(spent, _base_tokens(rows[0].run), output)
    return text if output is None else f"{text}\nResults: {output}"


def cost_text(
    spent: Sequence[Spent], before: tuple[str, float] | None = None, output: Path | None = None
) -> str:
    """Return the table of costs with its legend, with an empty line before; nothing without costs.

    ``before`` is the name of an untrained model and its tokens per conversation, for where none is
    among them. With ``output`` it is added to ``table.md`` there and written to ``costs.csv`` too.
    """
    table = cost_table(spent, before and before[1])
    if not table.rows:
        return ""
    if output is not None:
        page = output / TABLE_MD
        write_text(page, f"{page.read_text(encoding='utf-8')}\n{table.markdown()}")
        write_text(output / COSTS_CSV, table.csv())
    legend = COST_LEGEND
    if any(one.cost for one in spent):
        first = untrained(spent)
        name = first.label if first else before and before[0]
        legend += REPAID_LEGEND.format(first=name) if name else NO_BASE_LEGEND
    return f"\n\n{table.text()}\n\n{legend}"


def _spent(run: Run, one: Figures, name: str) -> Spent:
    """Return what one of a run's models cost, under a name for the table."""
    evaluation = run.evaluation_cost(one.label)
    return Spent(name, one.tokens.mean, run.cost_of(one.label), evaluation)


def _models_text(shown: Sequence[Placed], head: Sequence[str]) -> str:
    return f"{models_table(shown, head).text()}\n\n{MODELS_LEGEND}"


def _write(
    output: Path, tables: tuple[Table, Table], recipe: Recipe, rows: Sequence[Figures],
    models: Sequence[dict[str, Any]],
) -> str:  # fmt: skip
    """Write the tables and the JSON of an evaluation; return the text of its costs."""
    _write_table(output, *tables)
    run = Run(output)
    spent = [
        Spent(
            row.label,
            row.points[0].n_tokens if row.points else row.tokens.mean,
            _cost_of(row),
            run.evaluation_cost(row.label),
        )
        for row in rows
    ]
    results = {
        "schema_version": 1,
        "task": recipe.task,
        "seed": recipe.seed,
        "temperature": recipe.evaluation.temperature,
        "models": models,
        "costs": [one.cost for one in spent if one.cost],
        "evaluation_costs": {one.label: one.evaluation for one in spent},
    }
    _write_json(output, results)
    root = run_of(rows[-1].model)
    base = Run(root) if root else None
    before = _base_tokens(base) if base and base.recipe.task == recipe.task else None
    return cost_text(spent, before, output)


def _write_table(output: Path, table: Table, whole: Table) -> None:
    write_text(output / TABLE_MD, table.markdown())
    write_text(output / TABLE_CSV, whole.csv())


def _write_json(output: Path, results: Mapping[str, Any]) -> None:
    text = json.dumps(results, indent=1, default=dataclasses.asdict)
    write_text(output / RESULTS, f"{text}\n")


def _cost_of(row: Figures) -> ModelCost | None:
    """Return what a model cost in the run that trained it, called by its label here."""
    root = run_of(row.model)
    cost = Run(root).cost_of(Path(row.model).resolve().relative_to(root).parts[0]) if root else None
    return cost and replace(cost, label=row.label)


def _base_tokens(run: Run) -> tuple[str, float] | None:
    """Return a run's base model and its tokens per conversation; None where it was not asked."""
    talked = run.metrics.get("evaluate/base/talk")
    return (f"{run.root}:base", talked["tokens/conversation"]) if talked else None


def _record(row: Figures) -> dict[str, Any]:
    return {
        "label": row.label,
        "model": row.model,
        "summary": _summary(row),
        "seconds": row.seconds,
    }


def _summary(figures: Figures) -> dict[str, Any]:
    return {name: getattr(figures, name) for name in _SUMMARY}
