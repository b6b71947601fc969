"""What a message says to write helps when it is written."""

import re
import shlex
from pathlib import Path

import pytest

from optima.errors import RecipeError
from optima.recipe.loading import load_recipe

BASE = "method: sft\ntask: hotpot_qa\nmodel: {path: m}\n"

# A wrong line of a file -> what its message says to write, and the line that says so.
LINES = {
    "train: {learning_rate: 1e-6}": ("write 1.0e-6", "train: {learning_rate: 1.0e-6}"),
    "train: {learning_rate: 2E5e}": ("must be a number", "train: {learning_rate: 0.1}"),
    'train: {epochs: "3"}': ("write 3.0", "train: {epochs: 3.0}"),
    "data: {n_train: 1e3}": ("write 1000", "data: {n_train: 1000}"),
    "data: {n_train: 1.0e+3}": ("write 1000", "data: {n_train: 1000}"),
    "data: {n_train: 5.0}": ("write 5", "data: {n_train: 5}"),
    'data: {n_train: "1,000"}': ("write 1000", "data: {n_train: 1000}"),
    "data: {n_train: 089}": ("write 89", "data: {n_train: 89}"),
    "data: {n_train: 0100}": ("write 64", "data: {n_train: 64}"),
    "seed: on": ("write a number", "seed: 1"),
    "model: {revision: 1234567}": ("put it in quotes", 'model: {revision: "1234567"}'),
    "model: {revision: 0123456}": ("put it in quotes", 'model: {revision: "0123456"}'),
    "model: {revision: 2026-01-01}": ("put it in quotes", 'model: {revision: "2026-01-01"}'),
    "agents: {names: [Ada, No]}": ("put it in quotes", 'agents: {names: [Ada, "No"]}'),
    'reward: {exclude_faults: "true"}': ("remove the quotes", "reward: {exclude_faults: true}"),
    "serving: {endpoints: [h:80]}": ("write http://h:80", "serving: {endpoints: [http://h:80]}"),
    "serving: {extra_args: --seed 1}": ("write [--seed=1]", "serving: {extra_args: [--seed=1]}"),
    "serving: {extra_args: [--seed 1]}": (
        "element each: [--seed=1]", "serving: {extra_args: [--seed=1]}"
    ),
    "serving: {gpus: 3}": ("write [3]", "serving: {gpus: [3]}"),
    "serving: {gpus: null}\ntrain: {report_to: null}": ("write []", "train: {report_to: []}"),
    "serving: {endpoints: http://h:1}": ("write [http://h:1]", "serving: {endpoints: [http://h:1]}"),
    "reward: 3": ("such as lambda_token", "reward: {lambda_token: 0.5}"),
    "reward.lambda_token: 1": (
        "write it as a section: reward: {lambda_token: ...}", "reward: {lambda_token: 1}"
    ),
    "reward: {lamda_token: 1}": ("did you mean lambda_token?", "reward: {lambda_token: 1}"),
    "n_samples: 4": ("did you mean sampling.n_samples?", "sampling: {n_samples: 4}"),
    "sampling: {temperature: 3}": ("less than or equal to 2", "sampling: {temperature: 2}"),
    "serving: {port: 70000}": ("less than or equal to 65535", "serving: {port: 65535}"),
    "train: {timeout_s: 1.0e+12}": (
        "less than or equal to 31536000", "train: {timeout_s: 31536000}"
    ),
    "select: {keep_from: 0.9}": ("lower it", "select: {keep_from: 0.1}"),
    "agents: {names: [1a, Bob]}": ("begins with a letter; rename it", "agents: {names: [a1, B]}"),
    "agents: {names: [a1, a b]}": ("begins with a letter; rename it", "agents: {names: [a1, b]}"),
    "task: {a: b}": ("put it in quotes", None),
    "seed:\n\t- 1": ("put spaces in place of the tab", None),
    "data: {path: a: b}": ("mend brackets, quotes, indentation", 'data: {path: "a: b"}'),
    "data: {path: @x}": ("put the text in quotes", 'data: {path: "@x"}'),
    "data: {path: %x}": ("put the text in quotes", 'data: {path: "%x"}'),
    "data: {path: *x}": ("put the text in quotes", 'data: {path: "*x"}'),
    "seed:1\n": ("put a space after each `:`", "seed: 1"),
}  # fmt: skip


def load(tmp_path: Path, line: str, *overrides: str) -> None:
    path = tmp_path / "r.yaml"
    text = BASE if not line.startswith(("model:", "task:")) else "method: sft\n"
    if line.startswith("model:"):
        text += "task: hotpot_qa\n"
        line = line.replace("{", "{path: m, ", 1)
    if line.startswith("task:"):
        text += "model: {path: m}\n"
    path.write_text(f"{text}{line}\n")
    load_recipe(path, overrides)


@pytest.mark.parametrize("line", LINES)
def test_line_mended_as_its_message_says_is_taken(line: str, tmp_path: Path) -> None:
    remedy, mended = LINES[line]
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, line)
    assert remedy in str(caught.value)
    if mended is not None:
        load(tmp_path, mended)


# A wrong override, whose message says what to write instead: KEY=VALUE for a shell, or a value.
OVERRIDES = (
    "data.n_train=1e3", "data.n_train=1.0e+3", "data.n_train=7.0", "data.n_train=0100",
    "data.n_train=0x10", "data.n_train=1:30", "data.n_train='9'", "data.n_train=1,000",
    "train.learning_rate=1e-6", "train.learning_rate='0.5'", "train.epochs=3e0",
    "model.revision=0123", "model.revision=12", "model.revision=1.5", "model.revision=off",
    "model.revision=2026-01-02", "model.revision=a #b", "data.path=@x", "agents.names=[Ada, on]",
    "serving.gpus=3", "serving.gpus=0,1", "train.report_to=wandb", "data.path=*x", "data.path=&x",
    "model.revision=1.50", "model.revision=+5", "model.revision=.nan", "model.revision=!!int 5",
    "train.learning_rate=0,5", "data.n_test=1,000", "tasks.arc.reward.lambda_token=0.5",
    "data.path=!x", "data.path=%x", "data.path=[x", "data.path={x", "data.path=- x",
)  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES)
def test_override_mended_as_its_message_says_is_taken(override: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, "", override)
    message = str(caught.value)
    # of "write 8, or write 'KEY="010"'" the first is meant for a number, the second for a text
    cut = message.partition if override.startswith("data.n_train") else message.rpartition
    (text,) = shlex.split(cut("write ")[2].split(", or ")[0]) or [""]
    said = text if re.match(r"[a-z_.]+=", text) else f"{override.partition('=')[0]}={text}"
    load(tmp_path, "", said)
