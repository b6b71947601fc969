"""``optima chat``: a person's lines on standard input, the model's by a stand-in server."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from optima.processes.environment import Environment
from optima.records import read_records
from optima.runs.reader import Run
from optima.types import Conversation
from tests.commands import ROOT, command
from tests.fake_runs import MARK, processes_of, run, wait_until, write_recipe
from tests.fakes import commands, fake_environment


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Environment]:
    """Return a run of one iteration, and an environment to serve its models in."""
    directory = tmp_path_factory.mktemp("trained")
    environment = fake_environment(directory)
    run(directory, environment, "iterations=1", "cold_start=null", "data.n_test=2")
    return directory / "run", environment


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep temporary directories apart, of which none may be left; sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="o-", dir="/tmp") as place:
        monkeypatch.setattr("tempfile.tempdir", place)
        yield Path(place)
        assert [path.name for path in Path(place).iterdir()] == []


def chat(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, said: str, *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    return command("optima", "chat", *words, "--vllm-env", str(environment.prefix))


def test_person_and_model_agree_and_the_outcome_is_told(
    finished: tuple[Path, Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, environment = finished
    problem = next(iter(Run(root).problems("test").values()))
    place = tmp_path / "talk.jsonl"
    said = f"\n<A>{problem.golds[0]}</A>\n" + f"I say <A>{problem.golds[0]}</A> again\n" * 5
    status, out, err = chat(
        environment, monkeypatch, said, str(root), "--problem", problem.problem_id,
        "--output", str(place),
    )  # fmt: skip
    assert status == 0, err
    told, _, ended = out.partition("--- agreement after ")
    assert told.startswith(f"{problem.problem_id}: you are Alice\n--- what Alice is told\n")
    assert problem.contexts[0] in told
    assert problem.contexts[1] not in told
    assert f"\nAlice: <A>{problem.golds[0]}</A>\nBob: " in told
    assert "Ctrl-D: the end" in ended  # the lines end there
    held, *_ = read_records(place, Conversation)
    assert held.stop_reason == "agreement"
    mine = [turn for turn in held.turns if turn.agent == 0]
    assert mine[0].text == f" <A>{problem.golds[0]}</A>"
    assert {(turn.n_tokens, turn.token_ids) for turn in mine} == {(0, None)}
    assert all(turn.token_ids for turn in held.turns if turn.agent == 1)
    counts = ", ".join(f"{turn.name} {turn.n_spoken}" for turn in held.turns)
    base = [
        one.conversation.n_tokens for one in Run(root).evaluation("base") if one.problem == problem
    ]
    share = min(1.0, held.n_tokens / base[0])
    score = 1.0 if held.answer == problem.golds[0] else 0.0
    assert ended.startswith(
        f"{len(held.turns)} turns\nanswer: {held.answer}\ngold: {problem.golds[0]}\n"
        f"score: {100 * score:.0f}\ntokens: {held.n_tokens} ({counts})\n"
        f"reward without R_loss: R_task {score:.2f}, R_token {share:.2f} of the first model's "
        f"{base[0]} tokens\n"
    )


def test_model_opens_where_the_person_comes_second_and_is_asked_as_in_a_run(
    finished: tuple[Path, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, environment = finished
    (one, *_) = (
        one for one in Run(root).evaluation("base") if one.conversation.turns[0].agent == 0
    )
    n_before = len(commands(environment))
    words = (f"{root}:base", "--as", "Bob", "--problem", one.problem.problem_id, "--reveal")
    status, out, err = chat(environment, monkeypatch, "", *words)
    assert status == 0, err
    # the opening is that of the run: the same prompt at temperature 0
    assert f"\nAlice:{one.conversation.turns[0].text}\n" in out
    assert all(text in out for text in one.problem.contexts)
    assert out.endswith(f"\n--- left before its end\ngold: {one.problem.golds[0]}\n")
    (served,) = [argv for argv in commands(environment)[n_before:] if "--model" in argv]
    assert served[served.index("--model") + 1] == str(root.parent / "model")


def test_labels_end_what_a_person_says_and_problems_follow_each_other(
    finished: tuple[Path, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, environment = finished
    words = (f"{root}:iter_0", "--split", "train", "conversation.max_turns=2")
    said = "Hm. Bob: yes\n\nAlice: Hello\n"
    status, out, err = chat(environment, monkeypatch, said, *words)
    assert status == 0, err
    assert "\n(cut where a speaker's label begins: Alice: Hm.)\nBob: " in out
    assert out.count("\n--- max_turns after 2 turns\n") == 2
    ids = list(Run(root).problems("train"))
    assert out.count(": you are Alice\n") == 2
    assert [out.count(f"{key}: you are") for key in ids[:3]] == [1, 1, 0]
    assert out.count("R_token not known, as no run has asked its first model this") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--as", "Carol"), "--as Carol: must be one of Alice, Bob"),
        (("--problem", "none"), "--problem none: is no problem of two_hop (test or train split)"),
        (("--index", "99999999"), "--index: 99999999: must be a whole number from 0 to 10000000"),
        (("--index", "10000000"), "--index 10000000: the test split of two_hop has "),
        (("--index", "1", "--problem", "x"), "--index: cannot stand beside --problem"),
        (("--split", "dev"), "--split dev: must be test or train"),
        (("agents.names=[Solo]",), "agents: Solo is alone and has nobody to talk with"),
        (("train.learning_rate=1.0",), "is for training, and nothing is trained here"),
    ],
)
def test_wrong_input_is_one_line_before_a_server_starts(
    words: tuple[str, ...], message: str, finished: tuple[Path, Environment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root, environment = finished
    n_before = len(commands(environment))
    status, out, err = chat(environment, monkeypatch, "", str(root), *words)
    (line,) = err.splitlines()
    assert (status, out) == (2, "")
    assert line.startswith("optima: ")
    assert message in line
    assert len(commands(environment)) == n_before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my notes\n", "line 1: not a Conversation record (Invalid JSON"),
        (b'{"schema', "line 1: not a Conversation record (Invalid JSON"),
        (b"\xff\n", "line 1: not a Conversation record (Invalid JSON"),
        (b"TALK", "its last line has no end; add one, or name another file"),
        (b"TALK\n{}\n", "line 2: not a Conversation record ("),
    ],
)
def test_file_of_others_is_added_to_and_cut_by_nobody(
    content: bytes, message: str, finished: tuple[Path, Environment], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root, environment = finished
    talk = (root / "evaluate/base/talk/conversations.jsonl").read_bytes().splitlines()[0]
    file = tmp_path / "mine.txt"
    file.write_bytes(content.replace(b"TALK", talk))
    before, n_before = file.read_bytes(), len(commands(environment))
    status, out, err = chat(environment, monkeypatch, "hm\n", str(root), "--output", str(file))
    assert (status, out) == (2, "")
    assert err.startswith(f"optima: --output {file}: {message}")
    assert (file.read_bytes(), len(commands(environment))) == (before, n_before)


def test_model_that_a_run_has_not_is_named_with_those_it_has(
    finished: tuple[Path, Environment], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, environment = finished
    status, _, err = chat(environment, monkeypatch, "", f"{root}:iter_7")
    assert (status, err) == (
        2, f"optima: {root}:iter_7: is no model of this run; it has base, iter_0\n",
    )  # fmt: skip


def test_failure_keeps_the_logs_that_it_names(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, "sft")
    broken = fake_environment(tmp_path, server=("--never-ready",))
    words = (str(tmp_path / "model"), "--config", str(recipe), "serving.start_timeout_s=2.0")
    status, out, err = chat(broken, monkeypatch, "", *words)
    assert (status, out) == (1, "")
    (kept,) = temporary.iterdir()
    assert str(kept) in err.splitlines()[-1]
    shutil.rmtree(kept)


def test_nothing_outlives_a_chat_that_is_interrupted(
    finished: tuple[Path, Environment], temporary: Path
) -> None:
    root, environment = finished
    mark = f"chat-{os.getpid()}"
    words = ["chat", str(root), "--vllm-env", str(environment.prefix)]
    process = subprocess.Popen(
        [sys.executable, "-m", "optima.cli", "optima", *words], cwd=ROOT,
        env={**os.environ, MARK: mark, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith(b"---\n"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    wait_until(lambda: not processes_of(mark), "the end of all its processes")
    assert b"Traceback" not in err
