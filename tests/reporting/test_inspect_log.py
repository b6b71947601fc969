"""Conversations as a log of Inspect; inspect_ai 0.3.285, not installed here, read such a log."""

import json
import re
from pathlib import Path

import pytest

import optima
from optima.cli.main import main

TRAINING = Path(__file__).parents[1] / "data/runs/training"


def test_log_has_every_conversation_with_its_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "new/logs"
    assert main(["export", f"{TRAINING}:iter_0_dpo", "--output", str(logs)]) == 0
    (path,) = logs.iterdir()
    assert capsys.readouterr().out == f"5 conversations: {path}\n"
    # what inspect takes for a log in a folder: it begins with a time, and has three parts
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\+00-00_[^_]+_[^_]+_[0-9a-f]{8}\.json",
                        path.name)  # fmt: skip
    log = json.loads(path.read_text(encoding="utf-8"))
    said = list(optima.open_run(TRAINING).evaluation("iter_0_dpo"))
    assert (log["version"], log["status"]) == (2, "success")
    assert log["eval"]["model"] == "training:iter_0_dpo"
    assert log["results"]["total_samples"] == len(log["samples"]) == len(said) == 5
    (metric,) = log["results"]["scores"]
    assert metric["metrics"]["score"]["value"] == pytest.approx(0.2)
    for sample, one in zip(log["samples"], said, strict=True):
        talk = one.conversation
        assert (sample["id"], sample["epoch"]) == (talk.problem_id, 1)
        assert sample["target"] == list(one.problem.golds)
        assert sample["scores"][metric["name"]] == {"value": one.reward.task, "answer": talk.answer}
        roles = [message["role"] for message in sample["messages"]]
        assert roles == ["system", "system", "user", *["assistant"] * len(talk.turns)]
        assert [message["content"] for message in sample["messages"][3:]] == [
            f"{turn.name}:{turn.text}" for turn in talk.turns
        ]
        for message, name, context in zip(
            sample["messages"], ("Alice", "Bob"), one.problem.contexts, strict=False
        ):
            assert message["content"] == f"{name} is told:\n\n{context}"
        (usage,) = sample["model_usage"].values()
        assert usage["output_tokens"] == talk.n_generated


def test_an_agent_alone_was_told_everything(tmp_path: Path) -> None:
    baselines = TRAINING.parent / "baselines"
    assert main(["export", f"{baselines}:cot", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    said = list(optima.open_run(baselines).evaluation("cot"))
    for sample, one in zip(json.loads(path.read_text())["samples"], said, strict=True):
        (told,) = [m["content"] for m in sample["messages"] if m["role"] == "system"]
        (speaker,) = {turn.name for turn in one.conversation.turns}
        assert told == "\n".join([f"{speaker} is told:\n", *one.problem.contexts])


def test_models_and_exports_have_files_of_their_own(tmp_path: Path) -> None:
    for label in ("base", "iter_0_sft", "base"):
        assert main(["export", f"{TRAINING}:{label}", "--output", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for words, message in (
        ([f"{TRAINING}:iter_9", "--output", str(tmp_path)], "has evaluated no iter_9"),
        (["nowhere", "--output", str(tmp_path)], "nowhere: is not a run directory"),
        ([str(TRAINING), "--output", str(tmp_path / "file")], "cannot be a directory"),
    ):
        assert main(["export", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
