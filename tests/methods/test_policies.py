"""Whole runs of several policies over fakes at the process borders."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from optima.errors import UsageError
from optima.plan import plan
from optima.recipe.loading import dump_recipe, load_recipe
from optima.records import read_records
from optima.runs.reader import open_run
from optima.serving.client import served_name
from optima.studies.baselines import control_recipe
from optima.studies.infer import find_models
from optima.types import ModelRef, PreferenceRow, TeamRef, TrainingRow
from tests.commands import command
from tests.fake_runs import attempt, results, rewind, run
from tests.fakes import commands, fake_environment
from tests.tokenizers import codec, text_of

NAMES = ("Alice", "Bob")
LORA = "train.lora={serve: adapter}"
TEAM = ("agents=[{name: Alice, policy: solver}, {name: Bob, policy: critic}]", LORA)
FROZEN = (*TEAM, "policies.critic.frozen=true")
END = codec("chatml").end_token


@dataclass(frozen=True)
class Made:
    """A finished run, what its command printed, and what its servers were asked."""

    root: Path
    table: str
    asked: list[dict[str, Any]]

    def rows(self, stage: str) -> list[TrainingRow]:
        return [
            row
            for name in ("rows.jsonl", "eval_rows.jsonl")
            for row in read_records(self.root / stage / name, TrainingRow)
        ]


def make(directory: Path, *overrides: str, method: str = "sft") -> Made:
    notes = directory / "asked.jsonl"
    environment = fake_environment(directory, server=("--notes", str(notes)))
    table = run(directory, environment, *overrides, method=method)
    asked = [json.loads(line) for line in notes.open()]
    return Made(directory / "run", table, [a for a in asked if "return_token_ids" in a])


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("team"), *TEAM)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("frozen"), *FROZEN)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("trees"), *TEAM, "cold_start=null", method="sft_dpo")


def models_asked(made: Made) -> dict[str, Counter[str]]:
    """Return, by the speaker whose label a prompt ends with, the models that were asked."""
    found = {name: Counter[str]() for name in NAMES}
    for asked in made.asked:
        text = text_of(asked["prompt"])
        for name in NAMES:
            if text.endswith(f"{name}:"):
                found[name][asked["model"]] += 1
    return found


def served(made: Made, policy: str) -> set[str]:
    """Return the names that servers had the adapters of a policy under, all in the run."""
    places = made.root.resolve().glob(f"*/train_{policy}/model")
    return {served_name(ModelRef(path="", adapter=str(place))) for place in places}


def test_team_has_a_row_a_label_and_a_training_a_policy(team: Made) -> None:
    labels = [line.split()[0] for line in team.table.splitlines()[2:6]]
    assert labels == ["base", "cold_start", "iter_0", "iter_1"]
    stages = [json.loads(line)["stage"] for line in (team.root / "metrics.jsonl").open()]
    trained = [stage for stage in stages if "/train" in stage]
    assert trained == [
        f"{label}/train_{policy}"
        for label in ("cold_start", "iter_0", "iter_1")
        for policy in ("solver", "critic")
    ]
    assert set(stages) == {step.name for step in plan(open_run(team.root).recipe)}


def test_every_turn_is_asked_of_the_policy_of_its_agent(team: Made) -> None:
    asked = models_asked(team)
    assert set(asked["Alice"]) == {"policy"} | served(team, "solver")
    assert set(asked["Bob"]) == {"policy"} | served(team, "critic")
    assert len(served(team, "solver") | served(team, "critic")) == 6
    # the base model, before there is any policy, is asked by the cold start's evaluation alone
    base = sum(len(read_turns(team.root, name)) for name in ("evaluate/base/talk",))
    assert asked["Alice"]["policy"] + asked["Bob"]["policy"] == base


def test_rows_of_a_team_are_those_of_all_its_policies(team: Made) -> None:
    status, text, err = command("optima", "rows", str(team.root), "--n", "2", "--json")
    assert status == 0, err
    shown = json.loads(text)
    assert [(row["label"], row["agent"]) for row in shown] == [
        ("iter_1", "Alice"),
        ("iter_1", "Bob"),
    ]


def read_turns(root: Path, stage: str) -> list[Any]:
    path = root / stage / "conversations.jsonl"
    return [turn for line in path.open() for turn in json.loads(line)["turns"]]


def test_servers_are_given_the_adapters_of_each_model_in_place_of_those_before(team: Made) -> None:
    environment = team.root.parent / "fake_env"
    started = [
        argv
        for argv in map(json.loads, (environment / "commands.jsonl").open())
        if "--served-model-name" in argv
    ]
    assert len(started) == 1
    assert "--enable-lora" in started[0]
    assert started[0][started[0].index("--max-loras") + 1] == "2"
    assert "--lora-modules" not in started[0]
    notes = map(json.loads, (team.root.parent / "asked.jsonl").open())
    told = [one for one in notes if "lora_name" in one]
    adapters = [
        {str(path) for path in (team.root / label).resolve().glob("train_*/model")}
        for label in ("cold_start", "iter_0", "iter_1")
    ]
    paths = [one.get("lora_path") for one in told]
    assert [set(paths[:2]), set(paths[4:6]), set(paths[8:10])] == adapters
    assert [set(paths[2:4]), set(paths[6:8])] == [{None}] * 2
    loaded, unloaded = ({one["lora_name"] for one in told[n : n + 2]} for n in (0, 2))
    assert loaded == unloaded


@pytest.mark.parametrize("label", ["iter_0", "iter_1"])
def test_policy_is_trained_on_what_its_own_agent_said_in_the_selected_conversations(
    team: Made, label: str
) -> None:
    selected = team.rows(f"{label}/select")
    found = []
    for agent, policy in enumerate(("solver", "critic")):
        rows = team.rows(f"{label}/train_{policy}")
        assert rows
        assert {row.agent for row in rows} == {agent}
        found += rows
        for row in rows:
            for first, stop in row.trained:
                before = text_of(row.input_ids[:first])
                assert before.endswith(f"{NAMES[agent]}:")
                assert row.input_ids[stop - 1] == END
        job = json.loads((team.root / label / f"train_{policy}" / "job.json").read_text())
        assert job["rows_path"] == str((team.root / label / f"train_{policy}/rows.jsonl").resolve())
    key = lambda row: (row.problem_id, row.n, row.agent)  # noqa: E731
    assert sorted(found, key=key) == sorted(selected, key=key)


def test_policy_goes_on_from_its_own_adapter(team: Made) -> None:
    before = team.root / "iter_0"
    for policy in ("solver", "critic"):
        job = json.loads((team.root / "iter_1" / f"train_{policy}" / "job.json").read_text())
        start = (before / f"train_{policy}" / "model").resolve()
        assert job["model"]["adapter"] == str(start)
        assert Path(job["model"]["path"]).name == "model"


def test_run_of_one_policy_by_name_is_the_shared_run_and_goes_on_from_it(tmp_path: Path) -> None:
    shared = make(tmp_path / "shared")
    environment, again = fake_environment(tmp_path / "again"), tmp_path / "again" / "run"
    shutil.copytree(shared.root, again)
    before = {path: path.read_bytes() for path in again.rglob("*") if path.name == "INPUTS"}
    word = "agents=[{name: Alice, policy: one}, {name: Bob, policy: one}]"
    run(shared.root.parent, environment, word, run=str(again))
    assert [c for c in commands(environment) if c[:1] == ["-m"]] == []
    assert {path: path.read_bytes() for path in before} == before
    assert not list(again.rglob("train_*"))


@pytest.mark.parametrize(
    "stage", ["cold_start/train_critic", "iter_0/train_critic", "iter_1/generate"]
)
def test_rerun_from_any_stage_equals_an_undisturbed_run(
    team: Made, tmp_path: Path, stage: str
) -> None:
    copy = tmp_path / "run"
    rewind(team.root, copy, stage)
    run(team.root.parent, fake_environment(tmp_path), *TEAM, run=str(copy))
    assert results(copy) == results(team.root)


def test_frozen_policy_speaks_as_the_base_and_is_not_trained(frozen: Made) -> None:
    assert set(models_asked(frozen)["Bob"]) == {"policy"}
    assert set(models_asked(frozen)["Alice"]) == {"policy"} | served(frozen, "solver")
    trained = sorted(path.parent.name for path in frozen.root.glob("*/train*/DONE.json"))
    assert trained == ["train_solver"] * 3
    assert {row.agent for row in frozen.rows("iter_0/train_solver")} == {0}
    (model,) = {one.path for one in open_run(frozen.root).models.values()}
    own = frozen.root / "iter_1/train_solver/model"
    assert open_run(frozen.root).models["iter_1"] == TeamRef(
        path=model,
        member_by_policy={"solver": ModelRef(path=model, adapter=str(own.resolve()))},
        folder=str((frozen.root / "iter_1").resolve()),
    )


def test_pairs_train_the_policy_that_speaks_in_them(trees: Made) -> None:
    for agent, policy in enumerate(("solver", "critic")):
        folder = trees.root / "iter_1_dpo" / f"train_{policy}"
        rows = [
            row
            for name in ("rows.jsonl", "eval_rows.jsonl")
            for row in read_records(folder / name, PreferenceRow)
        ]
        assert rows
        assert {row.agent for row in rows} == {agent}
        assert all(text_of(row.prompt_ids).endswith(f"{NAMES[agent]}:") for row in rows)
        job = json.loads((folder / "job.json").read_text())
        start = (trees.root / "iter_1_sft" / f"train_{policy}" / "model").resolve()
        assert job["model"]["adapter"] == str(start)
        assert job["dpo"] is not None


def test_policy_without_a_row_stops_the_run_with_what_to_do(tmp_path: Path) -> None:
    three = "agents=[{name: A, policy: a}, {name: B, policy: a}, {name: C, policy: c}]"
    # of two turns the third agent has none
    status, _, err = attempt(
        tmp_path, fake_environment(tmp_path), three, LORA, "conversation.max_turns=2",
        "cold_start=null",
    )  # fmt: skip
    assert status == 1
    assert (
        "stage iter_0/train_c: nothing to train on: none of the rows of iter_0/select is of C"
        in err
    )


def test_server_that_holds_other_adapters_is_found_out(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, server=("--weights", str(tmp_path / "model")))
    status, _, err = attempt(tmp_path, environment, *TEAM, "iterations=1")
    assert status == 1
    assert "cold_start/train_solver/model: server 0 serves another model" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("policies.critic.frozen=true",), "policies: critic is not read while one policy plays"),
        ((*TEAM, "policies.judge.frozen=true"), "policies: judge plays no agent; remove it"),
        (
            (*TEAM, "policies={solver: {frozen: true}, critic: {frozen: true}}"),
            "policies: all are frozen, so nothing is trained; thaw one",
        ),
        ((*TEAM, "serving.nodes=auto"), "serving.nodes: other nodes serve one model, not a policy"),
        ((*TEAM, "policies.critic.frozn=true"), "policies.critic.frozn: unknown key (did you mean"),
        (("agents=[{name: Alice, polcy: a}, {name: Bob}]",), "item 1 of the list is no agent"),
        (("agents={names: [Alice, Bob], policies: [a]}",), "1 of 2 agents have one; name one for"),
        (("agents=[{name: Alice, policy: a b}, {name: Bob}]",), "'a b' must be one word"),
    ],
)
def test_team_that_cannot_be_is_refused_at_the_start(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), *words)
    assert status == 2, err
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pairs.strategy=influence", "search.n_problems=3"), "pairs.strategy: influence tries"),
        (("pairs.path=mine.jsonl",), "pairs.path: mine.jsonl does not say which of several"),
    ],
)
def test_preferences_of_nobody_are_refused_at_the_start(
    tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), *TEAM, *words, method="sft_dpo")
    assert status == 2
    assert said in err


def test_status_and_dry_run_know_the_trainings_of_policies(team: Made, tmp_path: Path) -> None:
    status, out, _ = command("optima", "status", str(team.root))
    n_stages = len(plan(open_run(team.root).recipe))
    assert status == 0
    assert f"done, {n_stages} of {n_stages} stages done" in out
    assert attempt(tmp_path, fake_environment(tmp_path), *TEAM, "--dry-run")[0] == 0
    out = attempt(tmp_path, fake_environment(tmp_path), *TEAM, "--dry-run")[1]
    assert "train solver from cold_start, train critic from cold_start\n" in out
    assert f"{tmp_path}/run/iter_0/train_solver/job.json" in out


def test_report_says_which_policy_an_agent_has_and_what_each_was_trained_on(
    team: Made, tmp_path: Path
) -> None:
    status, out, err = command("optima", "report", str(team.root), "--output", str(tmp_path))
    assert status == 0, err
    tables = {path.stem: path.read_text() for path in tmp_path.rglob("*.csv")}
    (agents,) = (text for name, text in tables.items() if "agents" in name)
    assert "Alice (solver)" in agents
    assert "Bob (critic)" in agents
    (policies,) = (text for name, text in tables.items() if "policies" in name)
    lines = [line.split(",")[:3] for line in policies.splitlines()]
    rows = len((team.root / "iter_1/train_critic/rows.jsonl").read_text().splitlines())
    assert lines[0] == ["model", "policy", "rows"]
    assert lines[-1] == ["iter_1", "critic", str(rows)]
    assert len(lines) == 7
    assert Path(out.strip()).is_file()


def test_order_of_speaking_holds_in_trees_and_talks_of_three_policies(tmp_path: Path) -> None:
    names = "[{name: Ann, policy: a}, {name: Ben, policy: b}, {name: Cleo, policy: a}]"
    made = make(
        tmp_path, f"agents={names}", LORA, "conversation.order=random", "cold_start=null",
        "iterations=1", method="sft_dpo",
    )  # fmt: skip
    by_problem: dict[str, dict[int, set[str]]] = {}
    for line in (made.root / "iter_0_dpo/search/trees.jsonl").open():
        tree = json.loads(line)
        nodes = [node for one in tree["rounds"] for node in one["nodes"]]
        depth = {0: 0}
        for node in nodes:
            depth[node["node_id"]] = depth[node["parent"]] + 1
            at = by_problem.setdefault(tree["problem_id"], {})
            at.setdefault(depth[node["node_id"]], set()).add(node["turn"]["name"])
    assert all(len(found) == 1 for levels in by_problem.values() for found in levels.values())
    assert {levels[2].copy().pop() for levels in by_problem.values()} == {"Ben", "Cleo"}
    rows = made.rows("iter_0_sft/train_a")
    assert {row.agent for row in rows} == {0, 2}


def test_order_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), "conversation.order=hub")
    assert status == 2
    assert "conversation.order: hub is round_robin for 2 agents; remove it, or name three" in err


def test_cost_of_a_model_is_that_of_all_its_policies(team: Made) -> None:
    found = open_run(team.root)
    assert [cost.label for cost in found.costs] == ["cold_start", "iter_0", "iter_1"]
    trained = [
        found.metrics[f"cold_start/train_{p}"]["tokens/trained"] for p in ("solver", "critic")
    ]
    assert found.costs[0].n_trained == sum(trained) > max(trained)


def infer(team: Made, directory: Path, *words: str) -> tuple[int, str, str, Counter[str]]:
    """Return what optima-infer did and printed, and the models that it asked."""
    notes = directory / "asked.jsonl"
    environment = fake_environment(directory, server=("--notes", str(notes)))
    argv = ["--vllm-env", str(environment.prefix), "--output", str(directory / "out"), *words]
    status, out, err = command("infer", *argv)
    asked = map(json.loads, notes.open()) if notes.exists() else ()
    names = Counter(one["model"] for one in asked if "return_token_ids" in one)
    return status, out, err, names


def test_inference_takes_the_teams_of_a_run(team: Made, tmp_path: Path) -> None:
    status, out, err, asked = infer(team, tmp_path, "--model-root", str(team.root))
    assert status == 0, err
    labels = [line.split()[0] for line in out.splitlines()[2:5]]
    assert labels == ["cold_start", "iter_0", "iter_1"]
    assert set(asked) == {"policy"} | served(team, "solver") | served(team, "critic")
    assert asked["policy"] == 1  # the server's first token, before it is asked anything


def test_team_is_a_model_once_all_of_its_policies_are_trained(
    team: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "run"
    rewind(team.root, copy, "iter_1/train_critic")
    assert list(open_run(copy).models) == ["cold_start", "iter_0"]
    assert [model.label for model in find_models(copy)] == ["cold_start", "iter_0"]
    assert "iter_1: left out, as critic of it is not trained yet" in caplog.text
    with pytest.raises(UsageError, match="holds a team only some of whose policies are trained"):
        find_models(copy / "iter_1")


@pytest.mark.parametrize("place", ["", "iter_1"])
def test_team_is_named_by_its_run_or_its_folder(team: Made, tmp_path: Path, place: str) -> None:
    status, _, err, asked = infer(team, tmp_path, "--model", str(team.root / place))
    assert status == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["model"] for one in results["models"]] == [str((team.root / "iter_1").resolve())]
    assert [cost["label"] for cost in results["costs"]] == ["model"]
    assert len(set(asked) - {"policy"}) == 2


def test_adapter_of_one_policy_by_itself_plays_all_agents(team: Made, tmp_path: Path) -> None:
    folder = team.root / "iter_1/train_solver/model"
    status, _, err, asked = infer(team, tmp_path, "--model", str(folder))
    assert status == 0, err
    assert set(asked) == {served_name(ModelRef(path="", adapter=str(folder)))}


def test_team_whose_policies_play_nobody_is_refused(team: Made, tmp_path: Path) -> None:
    words = ("--model-root", str(team.root), "agents=[{name: Alice}, {name: Bob}]")
    status, _, err, _ = infer(team, tmp_path, *words)
    assert status == 2
    assert "cold_start: is a team, and solver of it plays none of the agents Alice, Bob" in err


def test_baselines_are_not_asked_of_a_team(team: Made, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    status, _, err = command(
        "optima", "baselines", "--model", str(team.root), "--vllm-env", str(environment.prefix),
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert status == 2
    assert "--model: is a team" in err


def test_team_is_transferred_to_another_task(team: Made, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, server=("--notes", str(tmp_path / "asked.jsonl")))
    status, _, err = command(
        "optima", "transfer", "--models", str(team.root), "--tasks", "two_hop", "--vllm-env",
        str(environment.prefix), "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert status == 0, err
    asked = {json.loads(line)["model"] for line in (tmp_path / "asked.jsonl").open()}
    assert len((served(team, "solver") | served(team, "critic")) & asked) == 2


def test_control_of_a_team_is_one_agent_without_policies(frozen: Made) -> None:
    made = control_recipe(open_run(frozen.root).recipe)
    path = frozen.root.parent / "control.yaml"
    path.write_text(dump_recipe(made))
    assert load_recipe(path).agents.policies == ()


def test_frozen_policy_may_be_an_adapter_of_another_run(team: Made, tmp_path: Path) -> None:
    critic = team.root / "iter_1/train_critic/model"
    words = (*FROZEN, f"policies.critic.path={critic}", f"model.path={team.root.parent / 'model'}")
    made = make(tmp_path, *words, "iterations=1")
    assert set(models_asked(made)["Bob"]) == {served_name(ModelRef(path="", adapter=str(critic)))}
    assert set(models_asked(made)["Alice"]) == {"policy"} | served(made, "solver")
    found = open_run(made.root).models["iter_0"]
    assert isinstance(found, TeamRef)
    own = made.root / "iter_0/train_solver/model"
    assert found.adapters == (str(own.resolve()), str(critic))
    (model,) = (one for one in find_models(made.root) if one.label == "iter_0")
    assert model.ref == found
    status, _, err, asked = infer(made, tmp_path / "infer", "--model", str(made.root))
    assert status == 0, err
    assert len(set(asked) - {"policy"}) == 2


def test_policy_goes_on_from_an_adapter_of_its_own(team: Made, tmp_path: Path) -> None:
    solver = team.root / "iter_0/train_solver/model"
    words = (*TEAM, f"policies.solver.path={solver}", f"model.path={team.root.parent / 'model'}")
    made = make(tmp_path, *words, "iterations=1", "cold_start=null")
    jobs = [
        json.loads((made.root / "iter_0" / f"train_{policy}" / "job.json").read_text())
        for policy in ("solver", "critic")
    ]
    assert [job["model"]["adapter"] for job in jobs] == [str(solver), None]
    assert set(models_asked(made)["Alice"]) == {
        served_name(ModelRef(path="", adapter=str(solver))),
        *served(made, "solver"),
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "no such directory and not a hub id; give the directory of a model"),
        ("whole", "has no config.json; fetch the model again"),
        ("rank", "has rank 8, which it keeps when it is trained, and train.lora.rank is 16; set"),
        ("base", "is an adapter over elsewhere/base, and model.path is"),
        ("empty", "has no weights; put them back from a copy"),
    ],
)
@pytest.mark.parametrize("is_dry", [False, True])
def test_adapter_that_no_policy_can_begin_as_is_refused(
    tmp_path: Path, change: str, said: str, is_dry: bool
) -> None:
    base, folder = tmp_path / "model", tmp_path / "adapter"
    folder.mkdir()
    settings: dict[str, object] = {"base_model_name_or_path": str(base), "r": 16}
    if change == "rank":
        settings["r"] = 8
    if change == "base":
        settings["base_model_name_or_path"] = "elsewhere/base"
    if change not in ("missing", "whole"):
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    if change == "whole":
        (folder / "config.json").write_text("{}")
    if change != "empty":
        (folder / "adapter_model.safetensors").write_bytes(b"adapter")
    path = tmp_path / "nowhere" if change == "missing" else folder
    words = (*TEAM, f"policies.solver.path={path}", *(["--dry-run"] if is_dry else []))
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), *words)
    assert status == 2, err
    assert (
        f"policies.solver.path{'=' if change in ('missing', 'whole') else ': '}{path}: {said}"
        in err
    )
    assert not (tmp_path / "run").exists()
