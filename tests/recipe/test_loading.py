"""What a recipe file or an override may say, and what the messages tell."""

from pathlib import Path

import pytest

from optima.errors import RecipeError
from optima.recipe.layers import Layers
from optima.recipe.loading import build_recipe, dump_recipe, load_recipe
from optima.recipe.schema import Recipe, ServingSection

BASE = "method: sft\ntask: hotpot_qa\nmodel: {path: m}\n"


def load(tmp_path: Path, text: str = "", *overrides: str, base: str = BASE) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(base + text)
    return load_recipe(path, overrides)


def refusal(tmp_path: Path, text: str = "", *overrides: str, base: str = BASE) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides, base=base)
    return str(caught.value).replace(str(tmp_path / "r.yaml"), "r.yaml")


def test_unknown_key_names_the_nearest_one(tmp_path: Path) -> None:
    message = refusal(tmp_path, "reward: {lamda_token: 0.5}\n")
    assert message == "r.yaml:4: reward.lamda_token: unknown key (did you mean lambda_token?)"


def test_float_that_yaml_reads_as_text_is_explained(tmp_path: Path) -> None:
    message = refusal(tmp_path, "train: {learning_rate: 1e-6}\n")
    assert "r.yaml:4: train.learning_rate: " in message
    assert message.endswith("write 1.0e-6")


def test_on_is_no_number(tmp_path: Path) -> None:
    message = refusal(tmp_path, "iterations: on\n")
    assert "r.yaml:4: iterations: true must be a whole number" in message
    assert "YAML reads on" in message


def test_all_problems_are_reported_one_line_each(tmp_path: Path) -> None:
    message = refusal(tmp_path, "seed: x\niterations: 0\nserving: {gpu: [1]}\n")
    assert sorted(line.partition(": ")[0] for line in message.splitlines()) == [
        "r.yaml:4", "r.yaml:5", "r.yaml:6",
    ]  # fmt: skip


SECTIONS = """\
train:
  # a comment, and an empty line

  epochs: 2.0
  lora:
    rank: many
serving:
  gpus:
    - 0
    - x
  endpoints: [localhost:8000]
model:
  tokenizer: t
"""


def test_line_of_each_key_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, SECTIONS, base="method: sft\ntask: arc\n")
    assert [line.partition(": ")[0] for line in message.splitlines()] == [
        "r.yaml:14",  # the section that the key is missing from
        "r.yaml:8",
        "r.yaml:12",  # the element of a list
    ]
    text = SECTIONS.replace("many", "8").replace("- x", "- 1").replace("tokenizer", "path")
    message = refusal(tmp_path, text, base="method: sft\ntask: arc\n")
    assert message.startswith("r.yaml:13: serving.endpoints: 'localhost:8000' must be a URL")


def test_line_of_a_section_is_that_of_its_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, "cold_start:\n  n_problems: 8\n  epochs: 2.0\n", "task=arc")
    assert message.startswith("r.yaml:4: cold_start: arc has no gold evidence")


def test_line_is_that_of_what_an_anchor_brought_in_and_of_what_goes_over_it(tmp_path: Path) -> None:
    text = "train: &t\n  epochs: x\n  lora:\n    rank: y\ncold_start:\n  epochs: z\n  <<: *t\n"
    message = refusal(tmp_path, text)
    assert {line.partition(" must")[0].partition(": unk")[0] for line in message.splitlines()} == {
        'r.yaml:5: train.epochs: "x"',
        'r.yaml:7: train.lora.rank: "y"',
        'r.yaml:9: cold_start.epochs: "z"',
        "r.yaml:6: cold_start.lora",
    }


def test_whole_number_does_for_a_float(tmp_path: Path) -> None:
    assert load(tmp_path, "train: {epochs: 3}\n").train.epochs == 3.0


def test_key_given_twice_is_refused(tmp_path: Path) -> None:
    assert "r.yaml:5: seed: given twice" in refusal(tmp_path, "seed: 1\nseed: 2\n")


def test_text_that_is_no_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    assert refusal(tmp_path, "seed: [1\n").startswith("r.yaml:")


def test_python_objects_are_not_constructed(tmp_path: Path) -> None:
    message = refusal(tmp_path, "seed: !!python/object/apply:os.getpid []\n")
    assert message.startswith("r.yaml:4: seed: not a !!python/object/apply:os.getpid")


# What a recipe says -> the whole message: place, value, rule, remedy.
CONTRADICTIONS = {
    "select: {keep_from: 0.9}": "select.keep_from: 0.9 must be less than keep_to=0.7; lower it",
    "dpo: {beta: 0.1}": "dpo: contradicts method=sft; remove the section",
    "initialise: true": "initialise: contradicts method=sft; remove it",
    "serving: {gpus: [0, 1, 2], tensor_parallel: 2}": (
        "serving.gpus: [0, 1, 2] must be a multiple of tensor_parallel=2 GPUs; list more or fewer"
    ),
    "serving: {endpoints: [localhost:8000]}": (
        "serving.endpoints: 'localhost:8000' must be a URL; write http://localhost:8000"
    ),
    "serving: {nodes: auto, endpoints: ['http://host:8000']}": (
        "serving.nodes: cannot stand beside endpoints, which serve the start model only; remove one"
    ),
    "serving: {training_nodes: 2}": (
        "serving.training_nodes: 2: needs nodes, the folder by which they are found; write nodes: "
        "auto"
    ),
    "serving: {ray: auto}": (
        "serving.ray: needs nodes, the folder by which they are told what to do; write nodes: auto"
    ),
    "serving: {nodes: auto, ray: 'ray://head:10001'}": (
        "serving.ray: 'ray://head:10001' must be auto, or HOST:PORT of the head of a Ray cluster"
    ),
    "serving: {endpoints: ['http://host:80000']}": (
        "serving.endpoints: 'http://host:80000' must be a URL; write http://host:port"
    ),
    "serving: {endpoints: ['http://host/v1/completions']}": (
        "serving.endpoints: 'http://host/v1/completions' names a route; write what stands before "
        "it, http://host:port"
    ),
    "serving: {endpoints: ['http://me:secret@host']}": (
        "serving.endpoints: a password in a URL would stand in recipes and logs; write "
        "http://host:port and set OPTIMA_API_KEY"
    ),
    "serving: {extra_args: [--max-model-len 2048]}": (
        "serving.extra_args: '--max-model-len 2048' sets --max-model-len; set model.max_model_len"
    ),
    "serving: {extra_args: [--block-size 32]}": (
        "serving.extra_args: '--block-size 32' holds more than one argument; write one element "
        "each: [--block-size=32]"
    ),
    "serving: {extra_args: [--block-size=32 --async-scheduling]}": (
        "serving.extra_args: '--block-size=32 --async-scheduling' holds more than one argument; "
        "write one element each: [--block-size=32, --async-scheduling]"
    ),
    "serving: {extra_args: ['32', --block-size]}": (
        "serving.extra_args: '32' is not an option; write --option before its value"
    ),
    "serving: {extra_args: [--block-size, '']}": (
        "serving.extra_args: '' is not an argument; remove it"
    ),
    "agents: {names: [Al ice, Bob]}": (
        "agents.names: 'Al ice' must be one word that begins with a letter; rename it"
    ),
    "agents: {names: [Bob, Bob]}": (
        "agents.names: [Bob, Bob] must differ from each other; rename one"
    ),
    "agents: {names: [alice, Alice]}": (
        "agents.names: [alice, Alice] must differ in more than case, or who speaks cannot be told; "
        "rename one"
    ),
    "agents: {names: [Straße, Bob, STRASSE]}": (
        "agents.names: [Straße, Bob, STRASSE] must differ in more than case, or who speaks cannot "
        "be told; rename one"
    ),
    "agents: {names: [Bob, Ｂob]}": (
        "agents.names: [Bob, Ｂob] must differ in more than case, or who speaks cannot be told; "
        "rename one"
    ),
    "serving: {endpoints: ['http://a:1', 'http://b:1', 'http://a:1']}": (
        "serving.endpoints: 'http://a:1' is named twice; remove one"
    ),
    "serving: {endpoints: ['http://a:1', 'http://A:1/v1/']}": (
        "serving.endpoints: 'http://A:1/v1/' is named twice; remove one"
    ),
    "serving: {endpoints: ['https://a', 'https://a:443']}": (
        "serving.endpoints: 'https://a:443' is named twice; remove one"
    ),
    "serving: {gpus: [0, 1, 0]}": "serving.gpus: 0 is named twice; remove one",
    "train: {report_to: [wandb, wandb]}": "train.report_to: 'wandb' is named twice; remove one",
    "data: {hub_id: a/b, hub_configs: [x, x]}": (
        "data.hub_configs: 'x' is named twice; remove one"
    ),
    "train: {lora: {target_modules: [q_proj, q_proj]}}": (
        "train.lora.target_modules: 'q_proj' is named twice; remove one"
    ),
    "data: {train_file: x.json}": (
        "data.train_file: is looked for below path, which is not set; set path"
    ),
    "data: {path: d, hub_id: a/b}": "data.hub_id: contradicts path=d; remove one of them",
}


@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_contradictory_values_are_refused_with_what_to_do(text: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, f"{text}\n") == f"r.yaml:4: {CONTRADICTIONS[text]}"


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("--host=0.0.0.0", "remove it: servers listen on 127.0.0.1, those of nodes"),
        ("--port", "set serving.port"),
        ("--model", "set model.path"),
        ("--api-key", "remove it: each start draws a key"),
        ("--served-model-name", "remove it: "),
        ("--served_model_name", "remove it: "),  # the server's parser takes both
        ("--trust-remote-code", "set model.trust_remote_code"),
        ("--no-trust-remote-code", "set model.trust_remote_code"),
        ("--tensor-parallel", "set serving.tensor_parallel"),  # and what is cut short
        ("-tp=2", "set serving.tensor_parallel"),
        ("--override-generation-config.top_k", "set sampling.temperature"),
        ("--config", "write the file's options here"),
    ],
)
def test_server_option_that_a_field_sets_is_refused_with_the_field(
    argument: str, remedy: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path, f"serving: {{extra_args: ['{argument}']}}\n")
    assert f"serving.extra_args: '{argument}' sets --" in message.replace("sets -tp", "sets --")
    assert remedy in message


@pytest.mark.parametrize(
    "arguments",
    [
        ("--api-server-count=3",),
        ("--kv-cache-memory-bytes", "8G"),
        ("--hf-overrides", '{"a": "b --c"}'),
        ('--compilation-config={"level": 3}',),
        ("--model-impl", "auto"),
        ("--seed", "-1"),
        ("-O3",),
    ],
)
def test_other_server_options_are_taken_as_they_are(arguments: tuple[str, ...]) -> None:
    assert ServingSection(extra_args=arguments).extra_args == arguments


def test_fields_that_a_dpo_run_has_no_use_for_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "train: {start: base}\n", "method=dpo") == (
        "override method=dpo: train.start: base is not read with method=dpo, whose iterations "
        "each go on from the last; remove it"
    )
    given = ("method=dpo", "initialise=false")
    assert refusal(tmp_path, "train: {batching: packing}\n", *given).endswith(
        "train.batching: packing applies to SFT, and there is none with initialise=false and no "
        "cold_start; remove it: pairs are trained on as they come"
    )


def test_dpo_run_without_an_iteration_of_preferences_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "", "method=dpo", "iterations=1") == (
        "override iterations=1: iterations: 1 is the SFT that initialises a dpo run, and no "
        "training on preferences follows; write 2 or more, or initialise: false"
    )


def test_turn_that_fills_the_context_window_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "", "model.max_model_len=1024") == (
        "override model.max_model_len=1024: conversation.max_turn_tokens: 2000 leaves no room for "
        "a prompt in model.max_model_len=1024; lower it"
    )


def test_override_of_any_field_of_a_contradiction_is_its_place(tmp_path: Path) -> None:
    text = "select: {keep_from: 0.5}\n"
    for override in ("select.keep_to=0.4", "select.keep_from=0.8"):
        message = refusal(tmp_path, text, override)
        assert message.startswith(f"override {override}: select.keep_from: ")
    message = refusal(tmp_path, "", "search.n_rounds=3")
    assert message.startswith("override search.n_rounds=3: search: contradicts method=sft")


@pytest.mark.parametrize("value", [".inf", ".nan", "-.inf"])
def test_numbers_are_finite(value: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, "", f"train.learning_rate={value}")
    assert message.startswith(f"override train.learning_rate={value}: train.learning_rate: ")
    assert message.endswith("is refused: input should be a finite number")


def test_value_that_yaml_makes_a_date_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, "", "data.hub_revision=2024-01-01")
    assert message.startswith("override data.hub_revision=2024-01-01: data.hub_revision: 2024")
    assert message.endswith("""is a date to YAML; write 'data.hub_revision="2024-01-01"'""")


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        load_recipe(tmp_path / "r.yaml")


def test_key_that_is_a_list_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, "? [a]\n: b\n").startswith("r.yaml:4: key that is a list")


def test_override_is_the_place_of_its_error(tmp_path: Path) -> None:
    message = refusal(tmp_path, "", "seed=x")
    assert message.startswith("override seed=x: seed: ")


def test_overrides_set_scalars_lists_nulls_and_absent_sections(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, "data: {n_train: 5}\n",
        "train.lora.rank=8", "cold_start.n_problems=8", "serving.gpus=[0, 1]", "data.n_train=null",
        "agents.names=[Ada, Ben, Cy]",
    )  # fmt: skip
    assert recipe.train.lora is not None
    assert recipe.train.lora.rank == 8
    assert recipe.cold_start is not None
    assert recipe.cold_start.n_problems == 8
    assert recipe.serving.gpus == (0, 1)
    assert recipe.data.n_train is None
    assert recipe.agents.names == ("Ada", "Ben", "Cy")


@pytest.mark.parametrize("override", ["seed", "=1", "a..b=1", "seed.x=1"])
def test_malformed_override_is_refused(override: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, "seed: 1\n", override).startswith(f"override {override}: ")


def test_task_is_checked_and_the_original_spelling_taken(tmp_path: Path) -> None:
    assert load(tmp_path, "", "task=trival_qa").task == "trivia_qa"
    assert refusal(tmp_path, "", "task=gsm8") == (
        "override task=gsm8: task: 'gsm8' is not a task (did you mean gsm8k?)"
    )


def test_cold_start_needs_evidence(tmp_path: Path) -> None:
    message = refusal(tmp_path, "", "task=arc", "cold_start.n_problems=8")
    assert "arc has no gold evidence" in message


def test_resolved_recipe_loads_back_equal(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, "train: {learning_rate: 1.0e-6, lora: {}}\nreward: {fault_total: -10}\n"
    )
    text = dump_recipe(recipe)
    assert "learning_rate: 1.0e-06" in text
    assert load(tmp_path, base=text) == recipe


def test_section_of_influence_may_be_null_as_earlier_runs_stored_it() -> None:
    tree = {"method": "dpo", "task": "arc", "model": {"path": "m"}, "pairs": {"influence": None}}
    recipe = build_recipe(Layers("recipe.yaml", tree))
    assert recipe.pairs is not None
    assert recipe.pairs.influence.n_groups == 4


@pytest.mark.parametrize(
    ("task", "line", "reason"),
    [
        ("trivia_qa", "data: {paragraphs: lead_sentence}", "only hotpot_qa, mwh_qa do"),
        ("gsm8k", "data: {paragraphs: lead_sentence}", "only hotpot_qa, mwh_qa do"),
        ("cbt", "data: {passages: document}", "only trivia_qa do"),
        (
            "arc",
            "data: {max_context_words: 100}",
            "only hotpot_qa, mwh_qa, trivia_qa, cbt, two_hop",
        ),
        ("math", "data: {max_context_words: 100}", "math does not read it"),
        ("hotpot_qa", "conversation: {choice_answer: letter}", "only arc, mmlu do"),
        ("two_hop", "data: {path: DIR}", "made by code"),
        ("two_hop", "data: {hub_revision: abc}", "made by code"),
        ("two_hop", "data: {max_malformed: 0.5}", "made by code"),
    ],
)
def test_a_value_that_the_task_does_not_read_is_refused(
    task: str, line: str, reason: str, tmp_path: Path
) -> None:
    key = line.replace(": {", ".").partition(":")[0]
    message = refusal(
        tmp_path, f"{line}\n", base=f"method: sft\ntask: {task}\nmodel: {{path: m}}\n"
    )
    assert message.startswith(f"r.yaml:4: {key}: {task}")
    assert reason in message
    assert message.endswith("; remove it")


def test_a_default_that_the_task_does_not_read_is_taken(tmp_path: Path) -> None:
    base = "method: sft\ntask: gsm8k\nmodel: {path: m}\n"
    load(tmp_path, "data: {paragraphs: whole, max_context_words: null}\n", base=base)
    stored = dump_recipe(load(tmp_path, base=base))
    assert load(tmp_path, base=stored) == load(tmp_path, base=base)


@pytest.mark.parametrize(
    "override",
    ["data.path=", "data.path='  '", "data.test_file=", "model.tokenizer=", "data.hub_id=''",
     "conversation.prompts=", "model.path="],
)  # fmt: skip
def test_an_empty_text_is_refused_where_it_stands(override: str, tmp_path: Path) -> None:
    key = override.partition("=")[0]
    assert refusal(tmp_path, "", override).startswith(f"override {override}: {key}: ")


def test_a_pool_that_is_off_reads_no_formats(tmp_path: Path) -> None:
    message = refusal(tmp_path, "sampling: {format_pool: false, format_pool_path: DIR}\n")
    assert message.startswith("r.yaml:4: sampling.format_pool_path: is not read while")


def test_an_adapter_that_no_server_takes_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    served = "train: {lora: {serve: adapter, rank: RANK}}\n"
    message = refusal(tmp_path, served.replace("RANK", "513"))
    assert message.startswith("r.yaml:4: train.lora.rank: 513 is above 512, the most that servers")
    load(tmp_path, served.replace("RANK", "512"))
    load(tmp_path, served.replace("RANK", "513").replace("adapter", "merged"))


@pytest.mark.parametrize("key", ["train_split", "test_split", "hub_configs", "hub_id"])
def test_names_of_the_hub_contradict_a_path(key: str, tmp_path: Path) -> None:
    value = "[x]" if key == "hub_configs" else "x"
    message = refusal(tmp_path, f"data: {{path: DIR, {key}: {value}}}\n")
    assert message.startswith(f"r.yaml:4: data.{key}: contradicts path=DIR")


def test_text_of_several_lines_and_gpus_of_a_cpu_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, 'conversation: {prompts: "a\\nb"}\n')
    assert message == "r.yaml:4: conversation.prompts: 'a\\nb' has a line break; remove it"
    message = refusal(tmp_path, "serving: {device: cpu, gpus: [0, 1]}\n")
    assert message.startswith("r.yaml:4: serving.gpus: [0, 1] are not used with device=cpu")
    load(tmp_path, "serving: {device: cuda, gpus: [0, 1]}\n")


@pytest.mark.parametrize("key", ["model.path", "sampling.format_pool_path", "model.loss_path"])
def test_home_is_written_out_in_paths(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    section, _, name = key.partition(".")
    recipe = load(tmp_path, "", f"{key}=~/it")
    assert getattr(getattr(recipe, section), name) == "/home/me/it"
