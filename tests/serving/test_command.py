"""The command lines of the servers."""

import json
from pathlib import Path

from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.recipe.schema import LoraSection, ModelSection, Recipe, ServingSection, TrainSection
from optima.serving.client import served_name
from optima.serving.command import gpu_groups, server_argv, server_environ
from optima.types import ModelRef

ENV = Environment(prefix=Path("/envs/vllm"), python=Path("/envs/vllm/bin/python"))
EIGHT = Devices("cuda", tuple(range(8)))


def recipe(serving: ServingSection, model: ModelSection | None = None) -> Recipe:
    return Recipe(
        method="sft", task="arc", model=model or ModelSection(path="org/model"), serving=serving
    )


def option(argv: tuple[str, ...], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_eight_gpus_in_groups_of_two_make_four_servers() -> None:
    of_two = recipe(ServingSection(tensor_parallel=2, gpu_memory_utilization=0.8))
    groups = gpu_groups(of_two, EIGHT)
    assert groups == ((0, 1), (2, 3), (4, 5), (6, 7))
    model = ModelRef(path="org/model")
    argv = server_argv(model, recipe=of_two, devices=EIGHT, env=ENV, port=4000)
    assert argv[:3] == ("/envs/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server")
    assert option(argv, "--host") == "127.0.0.1"
    assert option(argv, "--port") == "4000"
    assert option(argv, "--model") == "org/model"
    assert option(argv, "--tensor-parallel-size") == "2"
    assert option(argv, "--gpu-memory-utilization") == "0.8"
    assert "--enforce-eager" not in argv
    assert "--trust-remote-code" not in argv
    masks = [
        server_environ(model, recipe=of_two, devices=EIGHT, gpus=gpus, api_key="k")[
            "CUDA_VISIBLE_DEVICES"
        ]
        for gpus in groups
    ]
    assert masks == ["0,1", "2,3", "4,5", "6,7"]


def test_cpu_host_gets_one_eager_server_that_sees_no_gpu(tmp_path: Path) -> None:
    on_cpu = recipe(ServingSection(device="cpu", cpu_kv_cache_gb=3))
    cpu = Devices("cpu")
    assert gpu_groups(on_cpu, cpu) == ((),)
    model = ModelRef(path=str(tmp_path))
    argv = server_argv(model, recipe=on_cpu, devices=cpu, env=ENV, port=1)
    assert "--enforce-eager" in argv
    assert "--no-enable-chunked-prefill" in argv
    assert option(argv, "--block-size") == "32"
    assert "--gpu-memory-utilization" not in argv
    environ = server_environ(model, recipe=on_cpu, devices=cpu, gpus=(), api_key="k")
    assert environ["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert environ["CUDA_VISIBLE_DEVICES"] == ""
    assert environ["HF_HUB_OFFLINE"] == "1"


def test_hub_is_reached_for_a_tokenizer_from_there_beside_a_local_model(tmp_path: Path) -> None:
    def variables(tokenizer: str | None, path: str = str(tmp_path)) -> dict[str, str]:
        section = ModelSection(path=path, tokenizer=tokenizer)
        return server_environ(
            ModelRef(path=path), recipe=recipe(ServingSection(), section), devices=EIGHT,
            gpus=(0,), api_key="k",
        )  # fmt: skip

    assert variables(None)["HF_HUB_OFFLINE"] == "1"
    assert variables(str(tmp_path))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in variables("org/tokens")
    assert "HF_HUB_OFFLINE" not in variables(None, "org/model")


def test_key_is_in_the_environment_and_never_on_the_command_line() -> None:
    one = recipe(ServingSection())
    model = ModelRef(path="org/model")
    environ = server_environ(model, recipe=one, devices=EIGHT, gpus=(0,), api_key="secret")
    assert environ["VLLM_API_KEY"] == "secret"
    argv = server_argv(model, recipe=one, devices=EIGHT, env=ENV, port=1)
    assert not any("secret" in part or "key" in part for part in argv)


def test_adapter_is_served_over_its_base_with_a_rank_vllm_takes(tmp_path: Path) -> None:
    lora = recipe(ServingSection()).model_copy(
        update={"train": TrainSection(lora=LoraSection(rank=20))}
    )
    model = ModelRef(path="org/model", adapter=str(tmp_path))
    argv = server_argv(model, recipe=lora, devices=EIGHT, env=ENV, port=1)
    assert option(argv, "--model") == "org/model"
    assert option(argv, "--lora-modules") == f"{served_name(model)}={tmp_path}"
    assert option(argv, "--served-model-name") == "policy" != served_name(model)
    assert option(argv, "--max-lora-rank") == "32"
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 64, "rank_pattern": {}}))
    argv = server_argv(model, recipe=lora, devices=EIGHT, env=ENV, port=1)
    assert option(argv, "--max-lora-rank") == "64"


def test_revision_and_further_arguments_are_passed_on() -> None:
    section = ModelSection(path="org/model", revision="abc", max_model_len=4096)
    one = recipe(ServingSection(extra_args=("--swap-space", "1")), section)
    argv = server_argv(ModelRef(path="org/model"), recipe=one, devices=EIGHT, env=ENV, port=1)
    assert option(argv, "--revision") == "abc"
    assert option(argv, "--max-model-len") == "4096"
    assert argv[-2:] == ("--swap-space", "1")
    trained = server_argv(ModelRef(path="/run/model"), recipe=one, devices=EIGHT, env=ENV, port=1)
    assert "--revision" not in trained


def test_a_tokenizer_of_its_own_is_handed_to_the_server() -> None:
    named = recipe(ServingSection(), ModelSection(path="org/model", tokenizer="org/tokens"))
    model = ModelRef(path="org/model")
    argv = server_argv(model, recipe=named, devices=EIGHT, env=ENV, port=1)
    assert option(argv, "--tokenizer") == "org/tokens"
    plain = server_argv(model, recipe=recipe(ServingSection()), devices=EIGHT, env=ENV, port=1)
    assert "--tokenizer" not in plain
