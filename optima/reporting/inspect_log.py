"""An evaluated model's conversations as a log of Inspect, which ``inspect view`` opens.

A sample is a conversation: what each agent is told as system messages, the question, an assistant
message per utterance, and the score of its answer by the task's metric. Sample ``n`` of a problem
is its epoch n + 1. Format: inspect_ai's EvalLog, version 2, as one JSON file (0.3.285 reads it).
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import optima
from optima.evaluation.figures import JudgedConversation
from optima.runs.files import Evaluation
from optima.runs.reader import Run
from optima.tasks import get_task
from optima.tasks.loading import told_to_one

VERSION = 2


def inspect_log(run: Run, label: str) -> dict[str, Any]:
    """Return the log of one evaluated model; UsageError where the run has not evaluated it."""
    one = run.evaluations.get(label)
    judged = list(run.evaluation(label))  # says what is wrong where there is none
    assert one is not None
    (figures,) = run.measure([label])
    task, metric = run.recipe.task, get_task(run.recipe.task).metric.name
    name = f"{run.root.resolve().name}:{label}"
    scores = {
        "score": figures.score.mean, "score_low": figures.score.low,
        "score_high": figures.score.high, "tokens": figures.tokens.mean,
    }  # fmt: skip
    return {
        "version": VERSION,
        "status": "success",
        "eval": {
            "eval_id": one.talked.inputs, "run_id": str(run.root), "created": _began(one),
            "task": task, "task_id": task, "task_version": 0,
            "dataset": {"name": task, "samples": figures.n_problems},
            "model": name, "model_args": {"path": figures.model},
            "config": {"epochs": figures.n_samples}, "packages": {"optima": optima.__version__},
            "scorers": [{"name": metric}],
        },
        "plan": {"name": "conversation", "steps": []},
        "results": {
            "total_samples": len(judged), "completed_samples": len(judged),
            "scores": [{
                "name": metric, "scorer": metric,
                "metrics": {key: {"name": key, "value": value} for key, value in scores.items()},
            }],
        },
        "stats": {
            "started_at": _began(one), "completed_at": _ended(one),
            "model_usage": {name: _usage(figures.n_generated, judged)},
        },
        "samples": [_sample(said, name, metric, run.recipe.agents.names) for said in judged],
    }  # fmt: skip


def file_name(log: Mapping[str, Any]) -> str:
    """Return the name by which Inspect knows a log: when it began, task and identity."""
    head = log["eval"]
    words = (head["created"].replace(":", "-"), head["task"], head["model"], head["eval_id"][:8])
    return "_".join(re.sub(r"[^\w.+-]|_", "-", word) for word in words) + ".json"


def _sample(
    said: JudgedConversation, model: str, metric: str, names: Iterable[str]
) -> dict[str, Any]:
    problem, talk, reward = said.problem, said.conversation, said.reward
    if talk.stop_reason == "alone":
        problem, names = told_to_one(problem), [turn.name for turn in talk.turns]
    told = [
        {"role": "system", "content": f"{name} is told:\n\n{context}"}
        for name, context in zip(names, problem.contexts, strict=False)
    ]
    turns = [
        {
            "role": "assistant", "content": f"{turn.name}:{turn.text}", "model": model,
            "metadata": {"agent": turn.agent, "tokens": turn.n_tokens, "seconds": turn.seconds},
        }
        for turn in talk.turns
    ]  # fmt: skip
    answer = {"role": "assistant", "content": talk.answer or ""}
    return {
        "id": problem.problem_id,
        "epoch": talk.n + 1,
        "input": problem.question,
        "choices": list(problem.choices) or None,
        "target": list(problem.golds),
        "messages": [*told, {"role": "user", "content": problem.question}, *turns],
        "output": {"model": model, "choices": [{"message": answer, "stop_reason": "stop"}]},
        "scores": {metric: {"value": reward.task, "answer": talk.answer}},
        "model_usage": {model: _usage(talk.n_generated, [said])},
        "total_time": sum(turn.seconds for turn in talk.turns),
        "metadata": {
            "tokens": talk.n_tokens, "generated": talk.n_generated, "turns": len(talk.turns),
            "stop_reason": talk.stop_reason, "faults": list(talk.faults), "reward": reward.total,
        },
        "error": None if talk.error is None else {
            "message": talk.error, "traceback": "", "traceback_ansi": "",
        },
    }  # fmt: skip


def _usage(n_generated: int, judged: Iterable[JudgedConversation]) -> dict[str, int]:
    read = sum(turn.n_prompt_tokens for said in judged for turn in said.conversation.turns)
    return {
        "input_tokens": read, "output_tokens": n_generated, "total_tokens": read + n_generated,
    }  # fmt: skip


def _began(one: Evaluation) -> str:
    return datetime.fromtimestamp(one.talked.started_unix_s, UTC).isoformat(timespec="seconds")


def _ended(one: Evaluation) -> str:
    ended = one.ranked.started_unix_s + one.ranked.seconds
    return datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds")
