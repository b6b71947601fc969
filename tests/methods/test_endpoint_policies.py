"""Whole runs with a frozen policy that somebody else serves, over fakes at the process borders."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from optima.conversation.loading import load_codec
from optima.processes.devices import free_port
from optima.records import read_records
from optima.runs.reader import open_run
from optima.serving.client import Server
from optima.serving.command import endpoint_key
from optima.serving.probe import is_healthy
from optima.studies.infer import find_models
from optima.types import Conversation, EndpointRef, PreferenceRow, TeamRef, TrainingRow
from tests.commands import ROOT, command
from tests.fake_runs import attempt, results, rewind, run, wait_until
from tests.fakes import commands, fake_environment
from tests.tokenizers import text_of, write_other_tokenizer

AGENTS = "agents=[{name: Alice, policy: solver}, {name: Bob, policy: critic}]"
KEY = "key-of-the-teacher"


@dataclass(frozen=True)
class Teacher:
    """A server of somebody else: its address, what it has been asked, and its tokenizer."""

    url: str
    notes: Path
    folder: Path

    def words(self, **changes: str) -> tuple[str, ...]:
        """Return the overrides that let it play Bob."""
        fields = {"endpoint": self.url, "model": "teacher", "path": str(self.folder)} | changes
        text = ", ".join(f'{key}: "{value}"' for key, value in fields.items() if value)
        return AGENTS, f"policies={{critic: {{{text}, frozen: true}}}}"

    def asked(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.notes.open()]


@contextmanager
def teaching(directory: Path, *options: str, key: str = KEY) -> Iterator[Teacher]:
    folder, notes, port = directory / "teacher", directory / "taught.jsonl", free_port()
    write_other_tokenizer(folder)
    argv = [sys.executable, "-m", "optima.serving.fake", "--port", str(port), "--tokenizer"]
    argv += [str(folder), "--served-model-name", "teacher", "--notes", str(notes), *options]
    process = subprocess.Popen(argv, cwd=ROOT, env={"VLLM_API_KEY": key, "PYTHONPATH": str(ROOT)})
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_healthy(Server(0, url, key), 5.0), "the teacher")
        yield Teacher(url, notes, folder)
    finally:
        process.kill()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def keys() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTIMA_API_KEY", "of somebody else")
        patch.setenv("OPTIMA_API_KEY_CRITIC", KEY)
        yield patch


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teacher]:
    with teaching(tmp_path_factory.mktemp("teacher")) as teacher:
        yield teacher


@pytest.fixture(scope="module")
def taught(
    teacher: Teacher, keys: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a finished run of a whole model that learns beside the teacher."""
    directory = tmp_path_factory.mktemp("taught")
    environment = fake_environment(directory, server=("--notes", str(directory / "asked.jsonl")))
    run(directory, environment, *teacher.words())
    return directory / "run"


def turns_of(root: Path) -> list[tuple[str, Any]]:
    return [
        (turn.name, turn)
        for path in sorted(root.rglob("conversations.jsonl"))
        for talk in read_records(path, Conversation)
        for turn in talk.turns
    ]


def test_every_turn_is_asked_of_who_plays_its_agent(teacher: Teacher, taught: Path) -> None:
    codec = load_codec(str(teacher.folder))
    prompts = [one["prompt"] for one in teacher.asked() if len(one["prompt"]) > 3]
    said = turns_of(taught)
    n_bob = sum(name == "Bob" for name, _ in said)
    assert len(prompts) == n_bob > 0
    for ids in prompts:  # in its own template, by its own tokenizer
        text = codec.encoder._tokenizer.decode(ids, skip_special_tokens=False)
        assert text.startswith("<|begin_of_text|>")
        assert text.endswith("Bob:")
    asked = [json.loads(line) for line in (taught.parent / "asked.jsonl").open()]
    own = [one["prompt"] for one in asked if "return_token_ids" in one and len(one["prompt"]) > 3]
    assert len(own) == len(said) - n_bob
    assert all(text_of(ids).endswith("Alice:") for ids in own)


def test_turns_are_counted_by_the_tokenizer_of_their_agent(teacher: Teacher, taught: Path) -> None:
    theirs, ours = (
        load_codec(str(place)).encoder for place in (teacher.folder, taught.parent / "model")
    )
    differing = 0
    for name, turn in turns_of(taught):
        own, other = (theirs, ours) if name == "Bob" else (ours, theirs)
        assert turn.n_spoken == len(own.encode_once(f"{name}:{turn.text}"))
        differing += turn.n_spoken != len(other.encode_once(f"{name}:{turn.text}"))
    assert differing > 10  # so that the wrong one would be noticed


def test_only_what_is_trained_has_rows_and_a_training(taught: Path) -> None:
    for stage in ("cold_start/script", "iter_0/select", "iter_1/select", "iter_1/train_solver"):
        rows = list(read_records(taught / stage / "rows.jsonl", TrainingRow))
        assert {row.agent for row in rows} == {0}
        assert sum(row.n_retokenised for row in rows) == 0 or stage == "cold_start/script"
    assert (
        sorted(path.parent.name for path in taught.glob("*/train*/DONE.json"))
        == ["train_solver"] * 3
    )
    job = json.loads((taught / "iter_1/train_solver/job.json").read_text())
    assert job["model"]["path"] == str((taught / "iter_0/train_solver/model").resolve())
    assert job["train"]["lora"] is None


def test_servers_of_our_own_are_those_of_the_trained_policy_alone(taught: Path) -> None:
    started = [
        argv for argv in map(json.loads, (taught.parent / "fake_env/commands.jsonl").open())
        if argv[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    ]  # fmt: skip
    assert started
    assert all("--lora-modules" not in argv for argv in started)
    assert all("teacher" not in " ".join(argv) for argv in started)


def test_run_goes_on_with_the_teacher_at_another_address_and_equals_an_undisturbed_one(
    teacher: Teacher, taught: Path, keys: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    rewind(taught, copy, "iter_1/generate")
    with teaching(tmp_path) as moved:
        words = moved.words(path=str(teacher.folder))
        run(taught.parent, fake_environment(tmp_path), *words, run=str(copy))
    assert results(copy) == results(taught)


def test_status_report_and_models_speak_of_the_teacher(
    teacher: Teacher, taught: Path, tmp_path: Path
) -> None:
    status, out, err = command("optima", "status", str(taught))
    assert status == 0, err
    assert "policy solver: trained\n" in out
    assert f"policy critic: frozen, teacher at {teacher.url}" in out
    assert command("optima", "report", str(taught), "--output", str(tmp_path))[0] == 0
    (agents,) = (path.read_text() for path in tmp_path.rglob("*.csv") if "agents" in path.stem)
    assert f"Bob (critic, frozen, teacher at {teacher.url})" in agents
    found, (*_, last) = open_run(taught).models["iter_1"], find_models(taught)
    assert isinstance(found, TeamRef)
    assert isinstance(found.member("critic"), EndpointRef)
    assert last.ref == found


def test_dry_run_asks_the_endpoint_and_starts_nothing(
    teacher: Teacher, keys: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    status, out, err = attempt(tmp_path, environment, *teacher.words(), "--dry-run")
    assert status == 0, err
    assert f"endpoint {teacher.url} serves teacher, as policy critic" in out
    assert f"policy     critic: frozen, teacher at {teacher.url}" in out
    assert "train solver from cold_start\n" in out
    assert not [argv for argv in commands(environment) if "vllm" in " ".join(argv[:2])]


def test_evaluation_asks_the_teacher_again(
    teacher: Teacher, taught: Path, keys: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment, before = fake_environment(tmp_path), len(teacher.asked())
    status, out, err = command(
        "optima-infer", "--model-root", str(taught), "--output", str(tmp_path / "out"),
        "--vllm-env", str(environment.prefix),
    )  # fmt: skip
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["cold_start", "iter_0", "iter_1"]
    assert len(teacher.asked()) > before + 3


def test_pairs_of_the_teacher_have_no_row(
    teacher: Teacher, keys: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = (*teacher.words(), "cold_start=null", "iterations=1")
    run(tmp_path, fake_environment(tmp_path), *words, method="sft_dpo")
    folder = tmp_path / "run/iter_0_dpo"
    pairs = [json.loads(line)["chosen"]["agent"] for line in (folder / "pairs/pairs.jsonl").open()]
    assert set(pairs) == {0, 1}
    rows = [
        row
        for name in ("rows.jsonl", "eval_rows.jsonl")
        for row in read_records(folder / "pairs" / name, PreferenceRow)
    ]
    assert [row.agent for row in rows] == [0] * pairs.count(0)


def test_endpoint_that_gives_no_token_ids_still_plays(
    keys: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with teaching(tmp_path, "--no-token-ids") as plain:
        words = (*plain.words(model=""), "iterations=1", "cold_start=null")
        run(tmp_path, fake_environment(tmp_path), *words)
    ids = {turn.token_ids is None for name, turn in turns_of(tmp_path / "run") if name == "Bob"}
    assert ids == {True}


@pytest.mark.parametrize("is_dry", [False, True])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "judge"}, "serves teacher, and not judge; set policies.critic.model"),
        ({"endpoint": "http://127.0.0.1:1"}, "policies.critic.endpoint: http://127.0.0.1:1: "),
        ({"path": "nowhere"}, "policies.critic.path=nowhere: no such directory and not a hub id"),
    ],
)
def test_endpoint_that_cannot_play_is_told_with_its_field(
    teacher: Teacher, keys: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str], said: str,
    is_dry: bool,
) -> None:  # fmt: skip
    words = (*teacher.words(**changes), "serving.start_timeout_s=2", "serving.max_attempts=1")
    status, _, err = attempt(
        tmp_path, fake_environment(tmp_path), *words, *(["--dry-run"] if is_dry else [])
    )
    assert status != 0
    assert len(err.strip().splitlines()[-1:]) == 1
    if is_dry or "path" in changes:
        assert status == 2
        assert said in err
    else:
        assert "policies.critic.endpoint: http://127.0.0.1" in err


def test_key_of_another_is_refused_with_where_it_is_read_from(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTIMA_API_KEY_CRITIC", "wrong")
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), *teacher.words(), "--dry-run")
    assert status == 2
    assert "the API key is refused: Unauthorized; the key is read from OPTIMA_API_KEY" in err


def test_key_of_other_servers_is_not_sent_to_the_endpoint_of_a_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPTIMA_API_KEY", KEY)
    monkeypatch.delenv("OPTIMA_API_KEY_CRITIC", raising=False)
    assert (endpoint_key("critic"), endpoint_key()) == ("", KEY)
    monkeypatch.setenv("OPTIMA_API_KEY_CRITIC", "its own")
    assert endpoint_key("critic") == "its own"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{endpoint: 'http://host:1'}", "policies.critic.frozen: false: what http://host:1 serves"),
        ("{endpoint: 'host:1', frozen: true}", "policies.critic.endpoint: 'host:1' must be a URL"),
        ("{model: x}", "policies.critic.model: x is the name of what an endpoint serves"),
    ],
)
def test_endpoint_that_cannot_be_is_refused_as_a_recipe(
    tmp_path: Path, words: str, said: str
) -> None:
    status, _, err = attempt(
        tmp_path, fake_environment(tmp_path), AGENTS, f"policies={{critic: {words}}}"
    )
    assert status == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
