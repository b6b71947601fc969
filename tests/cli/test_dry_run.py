"""--dry-run of the training commands: the plan, and what stops it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optima.cli import doctor, training
from optima.cli.training import sft as main
from optima.conversation.loading import ModelFiles, context_window
from optima.errors import RecipeError, UsageError
from optima.plan import Counts
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.recipe.loading import load_recipe
from optima.stages.context import Places, split_devices
from optima.stages.room import check_disk, footprint, n_parameters
from optima.studies.dry_run import dry_runs
from optima.training.launch import check_trackers
from tests.fakes import commands, fake_environment
from tests.hub import fake_hub
from tests.templates import CHATML
from tests.tokenizers import tiny_tokenizer, write_tokenizer

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def write_model(model: Path) -> None:
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    (model / "chat_template.jinja").write_text(CHATML)
    (model / "model.safetensors").write_bytes(b"weights")
    write_tokenizer(model)


def arguments(folder: Path, *overrides: str, method: str = "sft") -> list[str]:
    model = folder / "model"
    if not model.exists():
        write_model(model)
    python = str(fake_environment(folder).python)
    recipe = RECIPES / method / "quickstart.yaml"
    argv = ["--config", str(recipe), "--dry-run", "--run-dir", str(folder / "run"), "--quiet"]
    argv += ["--vllm-env", python, "--train-env", python]
    set_here = (f"model.path={model}", "serving.device=cpu")
    asked = {word.partition("=")[0] for word in overrides}
    return [*argv, *(word for word in set_here if word.partition("=")[0] not in asked), *overrides]


def test_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, "data.n_train=5", "sampling.n_samples=3", "iterations=2")) == 0
    out = capsys.readouterr().out
    by = "conversations by cold_start"
    assert f"  iter_0: generate 15 {by} (5 problems x 3), score, rank, select, train from " in out
    assert "select, train from iter_0\n" in out
    assert "vllm.entrypoints.openai.api_server" in out
    assert "optima.training.sft --job" in out
    assert not (tmp_path / "run").exists()


def test_dry_run_imports_none_of_what_takes_longest(tmp_path: Path) -> None:
    code = (
        "import sys; from optima.cli.training import sft; status = sft(sys.argv[1:])\n"
        "heavy = {'aiohttp', 'numpy', 'matplotlib', 'pyarrow', 'huggingface_hub', 'datasets'}\n"
        "print(status, sorted(heavy & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []"


def test_dry_run_says_what_becomes_of_servers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*overrides: str) -> str:
        assert main(arguments(tmp_path, *overrides)) == 0
        return capsys.readouterr().out

    weights = "  servers take the weights of other trained models, and "
    monkeypatch.setattr("optima.stages.room.count_parameters", lambda _: 10**6)
    monkeypatch.setattr("optima.stages.room.free_memory", lambda: 2**40)
    out = said()
    assert f"{weights}stay during scoring and training (serving.keep=auto)" in out
    assert "scorer on CPU, beside the servers" in out
    monkeypatch.setattr("optima.stages.room.free_memory", lambda: 2**30)
    out = said()
    assert f"{weights}are stopped for scoring and training (serving.keep=auto)" in out
    assert "scorer on CPU, while no server runs" in out
    out = said("serving.keep=restart")
    assert "  servers are started for every model, and stopped for scoring and training" in out
    assert main(arguments(tmp_path, "serving.keep=sleep")) == 2
    assert "optima: serving.keep: sleep: servers on a CPU cannot" in capsys.readouterr().err


def _sums(folder: Path, *ks: int) -> list[str]:
    """Write rows of gsm8k as the train split, the last of them as the test split too."""
    rows = [{"question": f"{k} + 1?", "answer": f"Sum.\n#### {k + 1}"} for k in ks]
    lines = [json.dumps(row) for row in rows]
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("\n".join([*lines, "{}", lines[0]]))
    (folder / "test.jsonl").write_text(lines[-1])
    return ["task=gsm8k", f"data.path={folder}", "data.max_malformed=0.5", "cold_start=null"]


def test_dry_run_refuses_to_test_on_what_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = _sums(tmp_path / "rows", 1, 2, 3)
    assert main(arguments(tmp_path, *fields)) == 2
    err = capsys.readouterr().err
    assert "optima: data.overlap: 1 of 1 test problems stand in the train split too" in err
    assert main(arguments(tmp_path, *fields, "data.overlap=drop", "data.n_train=2")) == 0
    out = capsys.readouterr().out
    counts = "2 problems of 5 rows (1 malformed, 1 duplicate, 0 excluded)"
    assert f"data       train {counts}; test 1 problems of 1 rows" in out


def test_dry_run_refuses_a_window_the_model_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, "model.max_model_len=4096")) == 2
    assert "model.max_model_len: 4096" in capsys.readouterr().err


def test_dry_run_refuses_missing_data(tmp_path: Path) -> None:
    missing = [f"data.path={tmp_path}/none", "task=gsm8k"]
    assert main(arguments(tmp_path, *missing)) == 2


def test_plan_of_influence_counts_its_trials_and_needs_problems_without_a_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ("pairs.strategy=influence", "pairs.influence={n_groups: 3, n_problems: 8}")
    assert training.dpo(arguments(tmp_path, *some, "search.n_problems=5", method="dpo")) == 0
    out = capsys.readouterr().out  # 8 problems before and after each of 3 trainings
    assert "iter_0/influence/before: talk 8 conversations by cold_start" in out
    for g in range(3):
        made = f"iter_0/influence/group_{g}"
        assert f"{made}: rows, train from cold_start, talk 8 conversations by {made}" in out
    assert training.dpo(arguments(tmp_path, *some, "search.n_problems=9999", method="dpo")) == 2
    assert "none is left to measure influence on" in capsys.readouterr().err


def test_servers_leave_room_for_a_scorer_that_only_trees_need(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = ("reward.lambda_loss=0", "search.lambda_loss=1.0")
    assert training.dpo(arguments(tmp_path, *weights, method="dpo")) == 0
    out = capsys.readouterr().out
    assert "scorer on CPU, beside the servers" in out
    assert "4 x 3, scored while they grow)" in out


def test_plan_of_idpo_begins_with_sft_and_counts_every_rollout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (
        *("search.n_problems=5", "search.n_rounds=8", "search.n_probe=7"),
        *("iterations=3", "initialise=true"),
    )
    assert training.dpo(arguments(tmp_path, *overrides, method="dpo")) == 0
    out = capsys.readouterr().out
    assert "initial: generate" in out
    assert "select, train from cold_start" in out
    assert "iter_0: probe 7 conversations by initial, " in out
    search = "search 120 conversations by iter_0 (5 trees x 8 x 3, scored while they grow)"
    assert f"{search}, pairs, train from iter_0\n" in out
    assert "beside the servers" in out
    assert "optima.training.dpo --job" in out
    assert training.dpo(arguments(tmp_path, "initialise=false", method="dpo")) == 0
    assert "initial" not in capsys.readouterr().out.replace("initialise", "")


def test_plan_of_isft_dpo_takes_turns_from_the_model_of_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.sft_dpo(arguments(tmp_path, "iterations=2", method="sft_dpo")) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    trainings = [line.split(", ")[-2:] for line in lines if "train from" in line]
    assert trainings == [
        ["cold_start: script 44 conversations", "train from base"],
        ["select", "train from cold_start"],
        ["pairs", "train from iter_0_sft"],
        ["select", "train from iter_0_dpo"],
        ["pairs", "train from iter_1_sft"],
    ]
    assert any("optima.training.sft --job" in line for line in lines)
    assert any("optima.training.dpo --job" in line for line in lines)


def test_dry_run_reads_the_preferences_to_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "preferences.jsonl"
    path.write_text("{}\n")
    assert training.dpo(arguments(tmp_path, f"pairs.path={path}", method="dpo")) == 2
    assert "preferences.jsonl:1: is not a preference" in capsys.readouterr().err


MODEL = "org/model"
CONFIG = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
    "intermediate_size": 1536, "num_key_value_heads": 3, "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}  # fmt: skip
HUB_FILES = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer_config.json": json.dumps({"chat_template": CHATML}).encode(),
    "tokenizer.json": tiny_tokenizer().to_str().encode(),
}


def plan_of_hub_model(
    tmp_path: Path, url: str, *overrides: str
) -> "subprocess.CompletedProcess[str]":
    argv = arguments(tmp_path, f"model.path={MODEL}", *overrides)
    environ = {
        **os.environ,
        "HF_ENDPOINT": url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    return subprocess.run(
        [sys.executable, "-m", "optima.cli", "sft", *argv],
        env=environ, cwd=RECIPES.parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_disk_of_a_hub_model_is_estimated_from_the_sizes_the_hub_tells(tmp_path: Path) -> None:
    sizes = {
        "model-00001-of-00002.safetensors": 3 * 2**30,
        "model-00002-of-00002.safetensors": 2**30,
    }
    sizes |= {"pytorch_model.bin": 4 * 2**30, "original/consolidated.safetensors": 4 * 2**30}
    with fake_hub(MODEL, HUB_FILES, sizes) as url:
        done = plan_of_hub_model(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert "context 1024" in done.stdout  # what the recipe asks for, of the model's 8192
    assert "weights    4.0 GiB (as the hub says)" in done.stdout
    # 3 models and one checkpoint of 4 GiB; the conversations are small
    assert "disk       about 16.0 GiB of " in done.stdout
    assert "fetched    4.0 GiB of org/model into " in done.stdout


def test_disk_of_a_hub_model_whose_size_is_not_told_is_estimated_from_its_shape(
    tmp_path: Path,
) -> None:
    with fake_hub(MODEL, HUB_FILES, {}) as url:
        done = plan_of_hub_model(tmp_path, url)
        refused = plan_of_hub_model(tmp_path, url, "model.max_model_len=9000")
    assert done.returncode == 0, done.stderr
    assert "weights    0.3 GiB (estimated from config.json)" in done.stdout
    assert refused.returncode == 2
    assert "model.max_model_len: 9000: org/model has 8192 positions" in refused.stderr


def test_parameters_follow_from_the_shape() -> None:
    assert n_parameters(CONFIG) == 134_515_008  # SmolLM2-135M
    llama_3_8b = {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256,
    }  # fmt: skip
    assert n_parameters(llama_3_8b) == 8_030_261_248
    assert n_parameters({"hidden_size": 4096}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("serving.endpoints=[http://127.0.0.1:1]", "serving.endpoints: http://127.0.0.1:1: "),
        ("model.path=", "model.path: "),
        ("train.learning_rate=.inf", "train.learning_rate: "),
    ],
)
def test_dry_run_refuses_what_would_stop_the_run(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, change)) == 2
    assert message in capsys.readouterr().err


def test_dry_run_refuses_a_run_directory_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").touch()
    assert main(arguments(tmp_path)) == 2
    assert "is a file, not a directory; give another" in capsys.readouterr().err


def test_environment_without_the_packages_of_its_role_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(tmp_path)
    wrong = str(fake_environment(tmp_path / "wrong", packages=("torch", "trl")).python)
    for role, lacks in (("vllm", "vllm"), ("train", "transformers, accelerate, peft")):
        words = list(argv)
        words[words.index(f"--{role}-env") + 1] = wrong
        assert main(words) == 2
        assert f"lacks {lacks}; make it with" in capsys.readouterr().err
    words.remove("--dry-run")  # nor does a run start
    assert main(words) == 2
    assert not (tmp_path / "run").exists()


def test_tracker_that_the_training_environment_lacks_is_refused() -> None:
    env = Environment(prefix=Path(sys.prefix), python=Path(sys.executable))
    check_trackers((), env)
    with pytest.raises(RecipeError, match=r"train\.report_to: \[wandbx\] cannot be .*wandbx"):
        check_trackers(("wandbx",), env)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("tokenizer.json", None, "has no tokenizer.json, which conversations are tokenised with"),
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
        ("chat_template.jinja", None, "no chat_template.jinja and no chat_template in"),
        ("chat_template.jinja", CHATML.replace("<|im_end|>", ""),
         "no special token ends an assistant message"),
        ("chat_template.jinja", CHATML.replace("in messages", "in messages[-2:]"),
         "assistant messages, so a conversation cannot be put before the model"),
        ("chat_template.jinja", CHATML.replace("['content']", "['content'] | replace('tur', '')"),
         "leaves out or changes 'Bob: optima-turn 1' in the prompt of turn 3"),
        ("config.json", None, "has no config.json; fetch the model again"),
        ("config.json", "[1, 2]", "config.json cannot be read (it is not a mapping)"),
        ("config.json", "not JSON", "config.json cannot be read (Expecting value"),
        ("config.json", 9_000 * "[", "config.json cannot be read ("),
        *(
            ("config.json", f'{{"max_position_embeddings": {value}}}',
             f"model: config.json: max_position_embeddings: {said} must be a whole number of tokens"
             " from 256 to 100,000,000; correct it, or fetch the model again")
            for value, said in (
                ("-4096", "-4096"), ('"4096"', "'4096'"), ("16", "16"), ("NaN", "nan"),
                ("true", "True"), ("4096.5", "4096.5"), ("1e400", "inf"), ("[4096]", "[4096]"),
            )
        ),
        ("config.json", '{"n_positions": 0}', "config.json: n_positions: 0 must be"),
        ("config.json", '{"max_position_embeddings": 8192, "seq_length": -1}', "seq_length: -1"),
        ("config.json", '{"text_config": {"max_position_embeddings": "long"}}', "'long' must be"),
        *(
            ("config.json", f'{{"max_position_embeddings": 4096, "rope_scaling": {scaling}}}', said)
            for scaling, said in (
                ('"linear"', "rope_scaling: 'linear' must be a section or null"),
                ('{"type": "linear", "factor": -2.0}', "rope_scaling.factor: -2.0 must be a numbe"),
                ('{"rope_type": "dynamic", "factor": "two"}', "factor: 'two' must be a number of"),
                ('{"rope_type": "yarn", "factor": NaN}', "factor: nan must be a number of at leas"),
            )
        ),
        ("generation_config.json", "{", "generation_config.json cannot be read ("),
        ("model.safetensors", None, "model: has no weights (*.safetensors or *.bin); fetch the"),
        ("model.safetensors", "", "model.safetensors: is empty; fetch the model again"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9",
         "is a pointer of Git LFS, without the weights (`git lfs pull`)"),
        ("model.safetensors.index.json", 9_000 * "[", "is not an index of weights"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "part"}}', "part: is gone; fetch"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../model/config.json"}}',
         "model.safetensors.index.json: names files that are not beside it; fetch the model"),
        ("adapter_config.json", '{"r": 8}', "holds a LoRA adapter (adapter_config.json), where a"),
        ("chat_template.jinja", "{{ raise_exception('one\\ntwo') }}",
         "refuses the roles user, assistant: one two); use an"),
        ("chat_template.jinja", CHATML + "{{ [1, 2] | random }}", "No filter named 'random'"),
    ],
)  # fmt: skip
def test_model_that_cannot_be_talked_with_or_loaded_is_refused_by_doctor_dry_run_and_run_alike(
    name: str, text: str | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(tmp_path)
    path = tmp_path / "model" / name
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    environment = Environment(tmp_path / "fake_env", tmp_path / "fake_env/bin/python")
    recipe = load_recipe(RECIPES / "sft" / "quickstart.yaml", [f"model.path={tmp_path}/model"])
    findings = {f.name: f for f in doctor.examine(recipe, argv[6], argv[6])}
    assert reason in findings["model"].text
    assert not findings["model"].is_ok
    for command in (argv, [word for word in argv if word != "--dry-run"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert reason in err
        assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert not any(call[0] == "-m" for call in commands(environment))  # nothing was started


@pytest.mark.parametrize(
    ("config", "asked", "window"),
    [
        ({"max_position_embeddings": 2048}, None, 2048),
        ({"max_position_embeddings": 2048}, 1024, 1024),
        ({"max_position_embeddings": 2048, "seq_len": 1024}, None, 1024),
        ({"n_positions": 1024}, None, 1024),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, None, 131072),
        ({"text_config": {"max_position_embeddings": 4096}}, None, 4096),
        ({"vocab_size": 49_152}, 1024, 1024),
        ({"max_position_embeddings": 2048, "rope_scaling": None}, None, 2048),
        ({"max_position_embeddings": 2048,
          "rope_scaling": {"type": "linear", "factor": 4.0}}, None, 8192),
        ({"max_position_embeddings": 2048,
          "rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 4096, 4096),
        ({"max_position_embeddings": 8192,
          "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, None, 8192),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "default"}}, None, 2048),
        ({"max_position_embeddings": 2048, "model_type": "gemma3_text",
          "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}},
         None, 2048),
    ],
)  # fmt: skip
def test_context_is_what_a_server_of_the_model_takes(
    config: dict[str, object], asked: int | None, window: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_window(ModelFiles(str(tmp_path)), asked) == window


def test_model_that_tells_no_window_and_one_too_short_for_a_turn_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(tmp_path, "model.max_model_len=null")
    for config, said in (
        ('{"max_position_embeddings": null, "vocab_size": 9}',
         "config.json: max_position_embeddings: is missing, so nothing tells how long a "
         "conversation may be; set model.max_model_len, or fetch the model again"),
        ('{"max_position_embeddings": 300, "max_seq_len": 256}',
         "conversation.max_turn_tokens: 256 leaves no room for a prompt in the 256 positions of "
         f"model.path={tmp_path}/model; lower it, or take another model"),
    ):  # fmt: skip
        (tmp_path / "model/config.json").write_text(config)
        assert main([*argv, "conversation.max_turn_tokens=256"]) == 2
        assert said in capsys.readouterr().err
    assert main([*argv, "conversation.max_turn_tokens=255"]) == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("model.max_model_len=4096", "model.max_model_len: 4096: "),
        ("sampling.format_pool_path=/nowhere", "/nowhere"),
        ("seed=1", "GiB needed, "),
        ("model.revision=abc", "is a directory here, which has no commits; leave model.revision"),
    ],
)
def test_what_stops_a_dry_run_stops_the_run_before_anything_is_started(
    change: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = arguments(tmp_path, change, "sampling.format_pool=true")
    if "needed" in reason:
        with (tmp_path / "model" / "model.safetensors").open("wb") as file:
            file.truncate(2**43)  # no disk here keeps copies of it; as a file it takes no room
    environment = Environment(tmp_path / "fake_env", tmp_path / "fake_env/bin/python")
    for command in (argv, [word for word in argv if word != "--dry-run"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert reason in err
        assert err.count("\n") == 1
    assert not any(call[0] == "-m" for call in commands(environment))


def test_disk_that_a_run_has_taken_already_is_not_asked_for_again(tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / "sft" / "quickstart.yaml", [f"model.path={tmp_path}/model", "iterations=1"]
    )
    write_model(tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.truncate(2**43)
    needed = footprint(recipe, tmp_path / "run", Counts(4, 2)).n_bytes
    with pytest.raises(UsageError, match="free some or give another --run-dir"):
        check_disk(needed, tmp_path / "run")
    (tmp_path / "run").mkdir()
    for name in "abcd":  # three models and, with LoRA, one checkpoint of 8 TiB each
        with (tmp_path / "run" / name).open("wb") as file:
            file.truncate(2**43)
    needed = footprint(recipe, tmp_path / "run", Counts(4, 2)).n_bytes
    assert check_disk(needed, tmp_path / "run").startswith("disk ")


def test_disk_has_to_hold_all_runs_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(RECIPES / "sft" / "quickstart.yaml", [f"model.path={tmp_path}/model"])
    write_model(tmp_path / "model")
    environment = fake_environment(tmp_path)
    envs = {"vllm_env": environment, "train_env": environment}
    counts = Counts(n_train=2000, n_test=40)
    needed = footprint(recipe, tmp_path / "runs" / "1", counts).n_bytes
    assert needed is not None
    usage = shutil.disk_usage(tmp_path)

    def plans(free: int) -> str:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
        return dry_runs({"1": recipe, "2": recipe}, tmp_path / "runs", **envs)

    assert plans(2 * needed).splitlines()[-2] == "all runs"
    with pytest.raises(UsageError, match=f"--run-dir {tmp_path}/runs: about .* needed"):
        plans(2 * needed - 1)


def test_disk_of_adapters_is_that_of_adapters_and_not_of_whole_models(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    with (tmp_path / "model" / "model.safetensors").open("wb") as file:
        file.truncate(2**30)
    words = [f"model.path={tmp_path}/model", "iterations=2", "train.save_total_limit=2"]

    def said(*more: str) -> list[str]:
        recipe = load_recipe(RECIPES / "sft" / "quickstart.yaml", [*words, *more])
        found = footprint(recipe, tmp_path / "run", Counts(4, 2))
        return [*found.lines, check_disk(found.n_bytes, tmp_path / "run")]

    # 30 layers, rank 128: 4 maps of attention (576 + 576, twice 576 + 192, 576 + 576) and three of
    # 576 + 1536, so 10,176 x 128 x 30 float32 numbers: 0.1456 GiB
    lora = "train.lora={serve: adapter, rank: 128, target_modules: all-linear}"
    adapters = said(lora)
    assert "weights    1.0 GiB (its files)" in adapters
    assert "adapters   0.1 GiB each (rank 128)" in adapters
    # three models (the cold start's, too), and two checkpoints with two moments and float32
    assert any(line.startswith("disk       about 2.2 GiB of ") for line in adapters)
    assert any(line.startswith("disk       about 5.0 GiB of ") for line in said("train.lora={}"))
    (tmp_path / "model" / "config.json").write_text('{"max_position_embeddings": 2048}')
    assert "adapters   1.0 GiB each (rank 128)" in said(lora)  # not known: as before


def test_ports_of_all_servers_must_exist() -> None:
    gpus = Devices("cuda", (0, 1, 2, 3))
    recipe = load_recipe(
        RECIPES / "sft" / "quickstart.yaml", ["serving.port=65533", "serving.tensor_parallel=2"]
    )
    assert split_devices(recipe, gpus) == Places(gpus, gpus)
    recipe = load_recipe(RECIPES / "sft" / "quickstart.yaml", ["serving.port=65533"])
    with pytest.raises(UsageError, match=r"serving\.port: 65533: 4 servers .* at most 65532"):
        split_devices(recipe, gpus)


def test_doctor_names_the_token_that_ends_a_turn(tmp_path: Path) -> None:
    argv = arguments(tmp_path)
    recipe = load_recipe(RECIPES / "sft" / "quickstart.yaml", [f"model.path={tmp_path}/model"])
    (model,) = (f for f in doctor.examine(recipe, argv[6], argv[6]) if f.name == "model")
    assert model.is_ok
    assert model.text.endswith("chat template with roles alternate, <|im_end|> ends a turn")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"HF_ENDPOINT": "hub.example"}, "not readable from the hub (UnsupportedProtocol: "),
        ({"HF_HUB_ETAG_TIMEOUT": "soon"}, "not readable from the hub (ValueError: invalid lit"),
        ({"HF_HOME": "/dev/null"},
         "the hub's files cannot be kept: /dev/null/token: a file stands where a directory belongs;"
         " move it away (HF_HOME names it)"),
        ({"HTTPS_PROXY": "socks9://host:1"}, "not "),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "not in the local cache, and the hub cannot be "),
    ],
)  # fmt: skip
def test_variables_that_the_hub_cannot_take_are_one_line(
    variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    environ = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "1", **variables}
    words = arguments(tmp_path, "model.path=org/model")
    done = subprocess.run(
        [sys.executable, "-m", "optima.cli", "sft", *words], capture_output=True, text=True,
        env=environ, timeout=60,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()  # the library logs nothing of its own
    assert done.returncode == 2
    assert line.startswith(f"optima: model.path=org/model: {said}")


@pytest.mark.parametrize("model", ["org/na me", "org/.hidden", f"org/{'x' * 100}"])
def test_what_cannot_be_a_hub_id_is_one_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path, f"model.path={model}")) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"optima: model.path={model}: no such directory and not a hub id (")
    assert len(err.splitlines()) == 1


def test_shape_without_heads_says_no_number_of_parameters() -> None:
    assert n_parameters({**CONFIG, "num_attention_heads": 0}) is None
    assert n_parameters({**CONFIG, "vocab_size": float("inf")}) is None
