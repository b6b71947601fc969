"""Whole runs of several whole models, of other templates and tokenizers, over fakes."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from optima.conversation.codec import ChatCodec
from optima.conversation.loading import load_codec
from optima.processes.devices import Devices
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.records import read_records
from optima.runs.reader import open_run
from optima.serving.command import shares_of
from optima.studies.infer import find_models
from optima.types import Conversation, ModelRef, PreferenceRow, TeamRef, TrainingRow
from tests.commands import command
from tests.fake_runs import (
    attempt,
    finish,
    processes_of,
    results,
    rewind,
    run,
    wait_until,
    write_recipe,
)
from tests.fake_runs import start as begin
from tests.fakes import commands, fake_environment
from tests.tokenizers import write_other_tokenizer

AGENTS = "agents=[{name: Alice, policy: solver}, {name: Bob, policy: critic}]"
POLICIES, NAMES = ("solver", "critic"), ("Alice", "Bob")


@dataclass(frozen=True)
class Made:
    """A finished run and what its servers were asked."""

    root: Path
    asked: list[dict[str, Any]]

    @property
    def starts(self) -> tuple[Path, Path]:
        """The models that the policies begin as."""
        return self.root.parent / "model", self.root.parent / "other"

    def codecs(self) -> tuple[ChatCodec, ...]:
        return tuple(load_codec(str(place)) for place in self.starts)

    def servers(self) -> list[str]:
        """Return the models of the servers in the order in which they were started."""
        argvs = map(json.loads, (self.root.parent / "fake_env/commands.jsonl").open())
        served = [argv for argv in argvs if "vllm.entrypoints.openai.api_server" in argv]
        return [argv[argv.index("--model") + 1] for argv in served]


def write_other(directory: Path) -> str:
    """Write a whole model of another family; return the override that makes it the critic."""
    other = directory / "other"
    directory.mkdir(parents=True, exist_ok=True)
    write_other_tokenizer(other)
    (other / "config.json").write_text('{"max_position_embeddings": 2048}')
    (other / "model.safetensors").write_bytes(b"another start")
    return f"policies.critic.path={other}"


def make(directory: Path, *overrides: str, method: str = "sft") -> Made:
    notes = directory / "asked.jsonl"
    own = write_other(directory)
    environment = fake_environment(directory, server=("--notes", str(notes)))
    run(directory, environment, AGENTS, own, *overrides, method=method)
    asked = [json.loads(line) for line in notes.open()]
    return Made(directory / "run", [a for a in asked if "return_token_ids" in a])


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("whole"))


def rows_of(folder: Path, kind: Any) -> list[Any]:
    return [row for name in ("rows", "eval_rows") for row in read_records(
        folder / f"{name}.jsonl", kind
    )]  # fmt: skip


def whole_text(codec: ChatCodec, ids: Any) -> str:
    return str(codec.encoder._tokenizer.decode(list(ids), skip_special_tokens=False))


def test_each_policy_is_trained_from_its_own_start_and_goes_on_from_itself(team: Made) -> None:
    for policy, start in zip(POLICIES, team.starts, strict=True):
        expected = str(start.resolve())
        for label in ("cold_start", "iter_0", "iter_1"):
            folder = team.root / label / f"train_{policy}"
            job = json.loads((folder / "job.json").read_text())
            assert job["model"] == {"path": expected, "adapter": None}
            assert job["train"]["lora"] is None
            expected = str((folder / "model").resolve())


def test_rows_are_those_of_the_template_and_tokenizer_of_their_agent(team: Made) -> None:
    starts = ("<|im_start|>", "<|begin_of_text|>")
    for stage in ("cold_start", "iter_0", "iter_1"):
        for agent, (policy, codec) in enumerate(zip(POLICIES, team.codecs(), strict=True)):
            rows = rows_of(team.root / stage / f"train_{policy}", TrainingRow)
            assert {row.agent for row in rows} == {agent}
            for row in rows:
                text = whole_text(codec, row.input_ids)
                assert text.startswith(starts[agent])
                for first, stop in row.trained:
                    before = whole_text(codec, row.input_ids[:first])
                    assert before.endswith(f"{NAMES[agent]}:")
                    assert row.input_ids[stop - 1] == codec.end_token
    sampled = rows_of(team.root / "iter_1/select", TrainingRow)
    assert sum(row.n_retokenised for row in sampled) == 0


def test_turns_are_prompted_sampled_and_counted_by_their_own_tokenizer(team: Made) -> None:
    codecs = team.codecs()
    n_prompts = [0, 0]
    for asked in team.asked:
        if len(asked["prompt"]) > 3:
            texts = [whole_text(codec, asked["prompt"]) for codec in codecs]
            (agent,) = (k for k in (0, 1) if texts[k].endswith(f"{NAMES[k]}:"))
            assert asked["stop_token_ids"] == [codecs[agent].end_token]
            n_prompts[agent] += 1
    talks = (
        talk
        for path in team.root.rglob("conversations.jsonl")
        for talk in read_records(path, Conversation)
    )
    turns = [turn for talk in talks for turn in talk.turns]
    assert n_prompts == [sum(turn.agent == agent for turn in turns) for agent in (0, 1)]
    for turn in turns:
        encoder = codecs[turn.agent].encoder
        assert turn.n_spoken == len(encoder.encode_once(f"{turn.name}:{turn.text}"))
        assert turn.token_ids is not None
        assert encoder.decode(turn.token_ids).rstrip() == turn.text


def test_two_servers_run_beside_each_other_and_take_the_weights_of_the_next(team: Made) -> None:
    assert sorted(team.servers()) == sorted(str(start.resolve()) for start in team.starts)
    logs = {path.name for path in (team.root / "logs/attempt_1").glob("server_*.log")}
    assert logs == {"server_0.1.log", "server_1.1.log"}


@pytest.mark.parametrize(
    "stage", ["cold_start/train_critic", "iter_0/select", "iter_1/generate", "iter_1/train_critic"]
)
def test_rerun_from_any_stage_equals_an_undisturbed_run(
    team: Made, tmp_path: Path, stage: str
) -> None:
    copy = tmp_path / "run"
    rewind(team.root, copy, stage)
    own = f"policies.critic.path={team.starts[1]}"
    run(team.root.parent, fake_environment(tmp_path), AGENTS, own, run=str(copy))
    assert results(copy) == results(team.root)


def infer(team: Made, out: Path, *words: str) -> tuple[str, list[str]]:
    environment = fake_environment(out)
    status, text, err = command(
        "optima-infer", *words, "--output", str(out / "out"), "--vllm-env", str(environment.prefix),
        "serving.device=cpu",
    )  # fmt: skip
    assert status == 0, err
    argvs = [argv for argv in commands(environment) if "--model" in argv]
    return text, [argv[argv.index("--model") + 1] for argv in argvs]


def test_inference_takes_the_teams_of_a_run(team: Made, tmp_path: Path) -> None:
    text, served = infer(team, tmp_path, "--model-root", str(team.root))
    assert [line.split()[0] for line in text.splitlines()[2:5]] == [
        "cold_start",
        "iter_0",
        "iter_1",
    ]
    first = team.root / "cold_start"
    assert set(served) == {str((first / f"train_{p}/model").resolve()) for p in POLICIES}


def test_team_is_the_same_however_it_is_found(team: Made) -> None:
    found = open_run(team.root).models
    assert [model.ref for model in find_models(team.root)] == list(found.values())
    one = found["iter_1"]
    assert isinstance(one, TeamRef)
    assert one.member("critic") == ModelRef(
        path=str((team.root / "iter_1/train_critic/model").resolve())
    )
    assert one.place == str((team.root / "iter_1").resolve())


def test_team_is_transferred_and_one_model_of_it_plays_alone(team: Made, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    status, _, err = command(
        "optima", "transfer", "--models", str(team.root), "--tasks", "two_hop", "--vllm-env",
        str(environment.prefix), "--output", str(tmp_path / "out"), "serving.device=cpu",
    )  # fmt: skip
    assert status == 0, err
    alone = str((team.root / "iter_1/train_critic/model").resolve())
    _, served = infer(team, tmp_path / "alone", "--model", alone)
    assert served == [alone]


def test_rows_and_pairs_are_shown_and_exported_by_their_own_tokenizers(
    team: Made, tmp_path: Path
) -> None:
    status, text, err = command("optima", "rows", str(team.root), "--n", "40", "--json")
    assert status == 0, err
    shown = {row["agent"]: row for row in json.loads(text)}
    for agent, start in (("Alice", "<|im_start|>"), ("Bob", "<|begin_of_text|>")):
        assert shown[agent]["pieces"][0]["text"] == start


def test_models_of_one_base_become_two(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    run(tmp_path, environment, AGENTS)
    made = Made(tmp_path / "run", [])
    base = str((tmp_path / "model").resolve())
    first = [str((tmp_path / f"run/cold_start/train_{p}/model").resolve()) for p in POLICIES]
    assert made.servers()[0] == base
    assert sorted(made.servers()[1:]) == sorted(first)


def test_frozen_model_stays_as_it_is_beside_adapters_of_another(tmp_path: Path) -> None:
    made = make(tmp_path, "policies.critic.frozen=true", "train.lora={serve: adapter}")
    assert (
        sorted(path.parent.name for path in made.root.glob("*/train*/DONE.json"))
        == ["train_solver"] * 3
    )
    base, other = (str(start.resolve()) for start in made.starts)
    assert set(made.servers()) == {base, other}
    models = {asked["model"] for asked in made.asked}
    assert len(models) == 4  # the base, the other, and an adapter of each training
    found = open_run(made.root).models["iter_1"]
    assert isinstance(found, TeamRef)
    assert found.member("critic") == ModelRef(path=other)
    assert found.member("solver").path == base
    assert [model.ref for model in find_models(made.root)][-1] == found


def test_adapters_stand_over_the_start_of_their_own_policy(tmp_path: Path) -> None:
    made = make(tmp_path, "train.lora={serve: adapter}", "cold_start=null")
    for policy, start in zip(POLICIES, made.starts, strict=True):
        folder = made.root / f"iter_0/train_{policy}/model"
        job = json.loads((made.root / f"iter_1/train_{policy}/job.json").read_text())
        assert job["model"] == {"path": str(start.resolve()), "adapter": str(folder.resolve())}
    found = open_run(made.root).models["iter_1"]
    assert [model.ref for model in find_models(made.root)][-1] == found
    assert isinstance(found, TeamRef)
    assert len(found.parts(POLICIES)) == 2


def test_pairs_train_the_model_that_speaks_in_its_own_tokens(tmp_path: Path) -> None:
    made = make(tmp_path, "cold_start=null", "iterations=1", method="sft_dpo")
    for agent, (policy, codec) in enumerate(zip(POLICIES, made.codecs(), strict=True)):
        folder = made.root / f"iter_0_dpo/train_{policy}"
        rows = rows_of(folder, PreferenceRow)
        assert {row.agent for row in rows} == {agent}
        for row in rows:
            assert whole_text(codec, row.prompt_ids).endswith(f"{NAMES[agent]}:")
            assert row.chosen_ids[-1] == codec.end_token
            assert row.n_retokenised == 0
    status, _, err = command(
        "optima", "pairs", "--run", str(made.root), "--out", str(tmp_path / "pairs.jsonl"),
        "pairs.theta_filter=-5",
    )  # fmt: skip
    assert status == 0, err
    assert (tmp_path / "pairs.jsonl").read_text()


def test_dry_run_shows_the_servers_of_every_policy_and_what_they_weigh(tmp_path: Path) -> None:
    words = (AGENTS, write_other(tmp_path), "--dry-run")
    status, out, err = attempt(tmp_path, fake_environment(tmp_path), *words)
    assert status == 0, err
    assert f"policy     critic: trained, from {tmp_path}/other" in out
    assert "roles alternate, assistant" in out
    assert "  server 0 on CPU: " in out
    assert "  server 1 on CPU: " in out
    assert "of policy critic (its files)" in out


def test_dry_run_shows_that_models_of_one_base_become_two(tmp_path: Path) -> None:
    status, out, err = attempt(tmp_path, fake_environment(tmp_path), AGENTS, "--dry-run")
    assert status == 0, err
    assert "  server 1 on CPU" not in out.partition("once trained")[0]
    models = [f"{tmp_path}/run/cold_start/train_{policy}/model on CPU" for policy in POLICIES]
    assert f"  once trained, 2 fleets: {'; '.join(models)}\n" in out


@pytest.fixture
def shared(tmp_path: Path) -> Recipe:
    return load_recipe(write_recipe(tmp_path, "sft"), [AGENTS, write_other(tmp_path)])


@pytest.mark.parametrize(
    ("gpus", "group", "given"),
    [
        ((0, 1), 1, [((0,), 0), ((1,), 1)]),
        ((0, 1, 2), 1, [((0, 2), 0), ((1,), 2)]),
        ((0, 1, 2, 3), 2, [((0, 1), 0), ((2, 3), 1)]),
    ],
)
def test_fleets_have_gpus_of_their_own_where_there_are_enough(
    shared: Recipe, gpus: tuple[int, ...], group: int, given: list[Any]
) -> None:
    recipe = shared.changed(serving={"tensor_parallel": group})
    ref = TeamRef(path="a", member_by_policy={"critic": ModelRef(path="b")})
    shares = shares_of(ref, recipe, Devices("cuda", gpus))
    assert [share.part.path for share in shares] == ["a", "b"]
    assert [(share.devices.gpus, share.first_index) for share in shares] == given
    assert [share.recipe.serving.gpu_memory_utilization for share in shares] == [0.9, 0.9]


def test_fleets_share_the_memory_of_a_gpu(shared: Recipe) -> None:
    ref = TeamRef(path="a", member_by_policy={"critic": ModelRef(path="b")})
    shares = shares_of(ref, shared, Devices("cuda", (3,)))
    assert [(share.devices.gpus, share.first_index) for share in shares] == [((3,), 0), ((3,), 1)]
    assert [share.recipe.serving.gpu_memory_utilization for share in shares] == [0.45, 0.45]
    assert all(share.is_shared for share in shares)


def test_servers_of_all_fleets_have_ports_of_their_own(tmp_path: Path) -> None:
    status, _, err = attempt(
        tmp_path, fake_environment(tmp_path), AGENTS, write_other(tmp_path), "serving.port=65535"
    )
    assert status == 2
    assert "serving.port: 65535: 2 servers need as many ports from there, which end at 65535" in err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("weights", "policies.critic.path: "),
        ("config", "policies.critic.path="),
        ("template", "policies.critic.path="),
        ("window", "has 2048 positions; lower it"),
    ],
)
def test_model_that_a_policy_cannot_begin_as_is_refused_before_there_is_a_run(
    tmp_path: Path, change: str, said: str
) -> None:
    words = [AGENTS, write_other(tmp_path)]
    if change == "weights":
        (tmp_path / "other/model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
        (tmp_path / "other/model.safetensors.index.json").write_text("{")
    if change == "config":
        (tmp_path / "other/config.json").unlink()
    if change == "template":
        (tmp_path / "other/chat_template.jinja").unlink()
    if change == "window":
        words.append("model.max_model_len=3000")
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), *words)
    assert status == 2, err
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_failure_of_one_fleet_stops_all(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, server=("--never-ready",))
    words = (AGENTS, write_other(tmp_path), "serving.start_timeout_s=3")
    status, _, err = attempt(tmp_path, environment, *words)
    assert status == 1
    assert "not ready after 3 s (serving.start_timeout_s)" in err


def test_signal_while_fleets_start_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, server=("--never-ready",))
    process = begin(tmp_path, environment, AGENTS, write_other(tmp_path), mark="fleets")
    logs = tmp_path / "run/logs/attempt_1"
    wait_until(lambda: len(list(logs.glob("server_*.1.log"))) == 2, "both servers")
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130, err
    wait_until(lambda: not processes_of("fleets"), "all processes to end")
