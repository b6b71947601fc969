"""YAML that a recipe cannot be: one line each, with its place and what to do, and status 2."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optima.cli.main import main
from optima.errors import RecipeError
from optima.recipe.loading import load_recipe
from optima.recipe.text import MAX_BYTES, Source, check_said_once, parse_yaml, printable

BASE = "method: sft\ntask: hotpot_qa\nmodel: {path: m}\n"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 20)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 20)
)

# What is added to BASE, whose lines are 1 to 3 -> the message without the name of the file.
REFUSED = {
    "data: &d {path: *d}\n": (
        ":4: data.path: is an alias of what holds it; write out what is meant"
    ),
    "data: &d\n  <<: *d\n": ":4: data: is an alias of what holds it; write out what is meant",
    "agents: {names: &n [*n]}\n": (
        ":4: agents.names: is an alias of what holds it; write out what is meant"
    ),
    LAUGHS: ":{line}: {key}: aliases write out too many values; write out what is meant",
    MERGES: ":{line}: {key}: aliases write out too many values; write out what is meant",
    f"seed: {'[' * 5000}\n": ":4: is nested over 20 deep, as no recipe is; remove it",
    "seed: " + "{a: " * 5000 + "\n": ":4: is nested over 20 deep, as no recipe is; remove it",
    "- " * 5000: ":4: is not valid YAML: expected <block end>, but found '-'; "
    "mend brackets, quotes, indentation",
    "seed: 2026-13-45\n": ":4: seed: 2026-13-45 is a date to YAML; put it in quotes",
    "seed: 2026-01-02 25:61:99\n": (
        ":4: seed: 2026-01-02 25:61:99 is a date to YAML; put it in quotes"
    ),
    "seed: !!int abc\n": ":4: seed: abc is not a !!int that a recipe can hold; remove the tag",
    "seed: !!float abc\n": ":4: seed: abc is not a !!float that a recipe can hold; remove the tag",
    "seed: !!bool 1\n": ":4: seed: 1 is not a !!bool that a recipe can hold; remove the tag",
    "seed: !!null 1\n": ":4: seed: 1 is not a !!null that a recipe can hold; remove the tag",
    "seed: !!int [1]\n": ":4: seed: not a !!int that a recipe can hold; remove the tag",
    "seed: !!timestamp x\n": (
        ":4: seed: x is not a !!timestamp that a recipe can hold; remove the tag"
    ),
    "seed: !!python/object:os.system {}\n": (
        ":4: seed: not a !!python/object:os.system that a recipe can hold; remove the tag"
    ),
    "seed: !!binary aG\n": ":4: seed: aG is not a !!binary that a recipe can hold; remove the tag",
    "seed: !!binary '='\n": ":4: seed: = is not a !!binary that a recipe can hold; remove the tag",
    "seed: !!set {1}\n": ":4: seed: not a !!set that a recipe can hold; remove the tag",
    "seed: !mine 1\n": ":4: seed: 1 is not a !mine that a recipe can hold; remove the tag",
    "seed: !x!y 1\n": ":4: is not valid YAML: found undefined tag handle '!x!'; remove the tag",
    f"seed: {'9' * 5000}\n": f":4: seed: {'9' * 20}... has over 40 digits; write fewer",
    f"seed: 0x{'f' * 5000}\n": f":4: seed: 0x{'f' * 18}... has over 40 digits; write fewer",
    f"seed: 1{'0' * 5000}.0\n": f":4: seed: 1{'0' * 19}... has over 40 digits; write fewer",
    "seed: 010\n": ":4: seed: 010 is 8 to YAML; write 8, or put it in quotes",
    "seed: 0x10\n": ":4: seed: 0x10 is 16 to YAML; write 16, or put it in quotes",
    "seed: 1:30\n": ":4: seed: 1:30 is 90 to YAML; write 90, or put it in quotes",
    "seed: 1:30.5\n": ":4: seed: 1:30.5 is 90.5 to YAML; write 90.5, or put it in quotes",
    "seed: 1\nseed: 2\n": ":5: seed: given twice; remove one of them",
    'train: {epochs: 1, "epochs": 2}\n': ":4: train.epochs: given twice; remove one of them",
    "seed: 1\n\tx: 2\n": (
        ":5: is not valid YAML: found character '\\t' that cannot start any token; "
        "put spaces in place of the tab"
    ),
    "1: 2\n": ":4: key 1: must be the name of a field; rename it",
    "on: 2\n": ":4: key on: must be the name of a field; rename it",
    "~: 2\n": ":4: key ~: must be the name of a field; rename it",
    "?\n: 2\n": ":4: key (empty): must be the name of a field; rename it",
    "'': 2\n": ":4: key '': must be the name of a field; rename it",
    "? [a]\n: 1\n": ":4: key that is a list or section: must be the name of a field; rename it",
    "? {a: 1}\n: 1\n": ":4: key that is a list or section: must be the name of a field; rename it",
    "data: {<<: 5}\n": ":4: data: <<: must be a section, or a list of them; name one",
    "data: {<<: [5]}\n": ":4: data: <<: must be a section, or a list of them; name one",
    "---\nseed: 1\n": (
        ":4: is not valid YAML: but found another document; "
        "keep one document and remove the others with their `---`"
    ),
    "seed: *x\n": (
        ":4: is not valid YAML: found undefined alias 'x'; "
        "define it above by `&`, or put the text in quotes"
    ),
    "seed: @x\n": (
        ":4: is not valid YAML: found character '@' that cannot start any token; "
        "put the text in quotes"
    ),
    "seed: a: b\n": (
        ":4: is not valid YAML: mapping values are not allowed here; "
        "put text with `: ` in quotes, or mend the indentation"
    ),
    "seed: [1\n": (
        ":5: is not valid YAML: expected ',' or ']', but got '<stream end>'; "
        "mend brackets, quotes, indentation"
    ),
    "data: {path: 'a\0'}\n": (
        ":4: is not valid YAML: the character #x0000 is not allowed; remove it"
    ),
    'data: {path: "a\\0"}\n': (
        ":4: data.path: holds the character #x0000, which is not allowed; remove it"
    ),
    'data: {path: "\\ud800"}\n': (
        ":4: data.path: holds the character #xd800, which is not allowed; remove it"
    ),
    '"se\\nd": 1\n': ":4: se\\nd: unknown key (did you mean seed?)",
    "reward.lambda_token: 1\n": (
        ":4: reward.lambda_token: unknown key (write it as a section: reward: {lambda_token: ...})"
    ),
    "lambda_token: 1\n": ":4: lambda_token: unknown key (did you mean reward.lambda_token?)",
}  # fmt: skip


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(str(path), "")


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:24])
def test_text_that_is_no_recipe_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes((BASE + text).encode())
    message = refusal(path)
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    pattern = REFUSED[text]
    line, _, rest = pattern.partition("{key}")
    if rest:
        assert message.endswith(rest)
        assert message[1:].partition(":")[0].isdigit()
    else:
        assert message == line


# A whole file -> the message without its name.
FILES = {
    b"": ": is empty, must be a mapping of sections, such as `task: arc`",
    b"# nothing\n": ": is empty, must be a mapping of sections, such as `task: arc`",
    b"- a\n": ": must be a mapping of sections, such as `task: arc`",
    b"a\n": ": must be a mapping of sections, such as `task: arc`",
    b"seed: 1\nname: \xe9\n": ":2: is not UTF-8 text (invalid continuation byte); save it as UTF-8",
    b"\xff\xfes\x00": ":1: is not UTF-8 text (invalid start byte); save it as UTF-8",
    b"#" * (MAX_BYTES + 1): (
        ": has over 1048576 bytes, too many for a recipe; `optima recipes` lists recipes and layers"
    ),
}


@pytest.mark.parametrize("content", FILES, ids=lambda content: repr(content[:20]))
def test_file_that_holds_no_recipe_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    assert refusal(path) == FILES[content]


def test_folder_is_no_recipe(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        ": cannot be read (Is a directory); `optima recipes` lists recipes and layers"
    )


def test_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(RecipeError, match="/dev/zero: has over 1048576 bytes"):
        load_recipe(Path("/dev/zero"))


def test_anchors_merge_keys_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = (
        "\ufeff" + BASE + "train: &t {epochs: 2, batch_size: 8}\n"
        "cold_start: {<<: *t, batch_size: 4}\ndata: {path: &p =, train_file: *p}\n"
    )
    path.write_bytes(text.encode())
    recipe = load_recipe(path)
    assert recipe.cold_start is not None
    assert (recipe.cold_start.epochs, recipe.cold_start.batch_size) == (2.0, 4)
    assert (recipe.data.path, recipe.data.train_file) == ("=", "=")


def test_first_of_several_merged_sections_wins() -> None:
    text = "{a: &a {x: 1}, b: &b {x: 2, y: 3}, c: {<<: [*a, *b]}}"
    assert parse_yaml(text, Source("p"))["c"] == {"x": 1, "y": 3}


# An override -> the message behind "override <it>: ".
OVERRIDES = {
    "seed": "must be key=value or section.key=value, such as train.learning_rate=1.0e-5",
    "=": "must be key=value or section.key=value, such as train.learning_rate=1.0e-5",
    "=1": "must be key=value or section.key=value, such as train.learning_rate=1.0e-5",
    "a..b=1": "must be key=value or section.key=value, such as train.learning_rate=1.0e-5",
    " =1": "must be key=value or section.key=value, such as train.learning_rate=1.0e-5",
    ".".join("a" * 30) + "=1": (
        "must be key=value or section.key=value, such as train.learning_rate=1.0e-5"
    ),
    "seed=": 'seed: "" must be a whole number',
    "seed==": 'seed: "=" must be a whole number',
    'seed.sub=1': 'seed: {"sub": 1} must be a whole number',
    "model.path.sub=1": "model.path is a value, not a section; remove what follows it",
    "ключ=1": "ключ: unknown key (known keys: ",
    "reward.λ=1": "reward.λ: unknown key (known keys: ",
    "train.seed=1": "train.seed: unknown key (known keys: ",
    "seed=é": 'seed: "é" must be a whole number',
    "seed=[": "is not valid YAML: expected the node content, but found '<stream end>'; "
    """mend brackets and quotes, or write 'seed="["'""",
    "model.path=[x": "is not valid YAML: expected ',' or ']', but got '<stream end>'; "
    """mend brackets and quotes, or write 'model.path="[x"'""",
    "model.path=&x": "`&` names a value in YAML, which is not used here; "
    """write 'model.path="&x"'""",
    "serving.gpus.0=1": 'serving.gpus: {"0": 1} must be a list; give the whole list, as [A, B]',
    "train.report_to=on": "train.report_to: true must be a list; write [true]",
    "seed=2026-13-45": """seed: 2026-13-45 is a date to YAML; write 'seed="2026-13-45"'""",
    "model.path=a #b": "`#` begins a comment in YAML, so what follows it is lost; "
    """write 'model.path="a #b"'""",
    "model.path=#b": "`#` begins a comment in YAML, so what follows it is lost; ",
    "model.path=7": """model.path: 7 must be a text; write 'model.path="7"'""",
    "model.revision=0123": "model.revision: 0123 is 83 to YAML; write 83, or "
    """write 'model.revision="0123"'""",
    "model.revision=off": """model.revision: false must be a text; write 'model.revision="off"'""",
    "agents.names=[Ada, On]": "agents.names.1: true must be a text; "
    """write 'agents.names=[Ada, "On"]'""",
    f"seed={'9' * 5000}": f"seed: {'9' * 20}... has over 40 digits; write fewer",
    "data=x\ny": 'data: "x y" must be a section of keys, such as path',
}  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: text[:24])
def test_override_that_says_nothing_usable_is_refused_in_one_line(
    override: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE)
    message = refusal(path, override)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"override {printable(override)}: {OVERRIDES[override]}")


def test_remedy_for_an_override_passes_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE)
    for override in ("model.revision=0123", "model.revision=off", "model.revision=a #b",
                     "model.revision=2026-01-02", "agents.names=[Ada, On]"):  # fmt: skip
        remedy = refusal(path, override).rpartition("write ")[2]
        said = subprocess.run(
            ["sh", "-c", f"printf %s {remedy}"], capture_output=True, text=True, check=True
        )
        recipe = load_recipe(path, [said.stdout])
        wanted = override.partition("=")[2]
        assert wanted in (recipe.model.revision, f"[{', '.join(recipe.agents.names)}]")


def test_command_ends_with_2_and_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "r\n.yaml"
    path.write_text(BASE + "data: &d {path: *d}\n")
    assert main(["recipes", "show", str(path)]) == 2
    assert main(["recipes", "--dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


_WORDS = st.sampled_from(
    ["seed", "data", "path", "for", "sft", "model", "<<", "&a", "*a", "!!int", "!!binary", "- ",
     ": ", "\n  ", "\n", "{", "}", "[", "]", "1", "1e3", "~", "'", '"', "\\", "#", "---\n", "? ",
     "|", ">", "%", "@", "\t", ",", "2026-13-45", "0x", ".nan", "=", "\u0085", "\ufeff", "é"]
)  # fmt: skip


def lines_of(call: Callable[[], object]) -> list[str]:
    """Return the lines of the refusal that the call ends with, none where it succeeds."""
    try:
        call()
    except RecipeError as error:
        return str(error).splitlines()
    return []


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(_WORDS, max_size=12).map("".join), st.text(max_size=40)))
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    for source in (Source("p"), Source("override k=v", "k")):
        lines = lines_of(partial(parse_yaml, text, source))
        assert len(lines) <= 1
        assert all(line.startswith(source.place) for line in lines)


_KEYS = st.sampled_from(
    ["seed", "model.path", "agents.names", "serving.gpus", "train.lora", "for", "for.sft.seed",
     "method", "task", "train.lora.target_modules", "pairs.influence", "data", "x", ""]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(_WORDS, max_size=8).map("".join), _KEYS)
def test_any_layer_and_any_override_make_a_recipe_or_lines(
    tmp_path_factory: pytest.TempPathFactory, text: str, key: str
) -> None:
    base, layer = (tmp_path_factory.getbasetemp() / name for name in ("base.yaml", "layer.yaml"))
    base.write_text(BASE)
    layer.write_text(f"{key.replace('.', ': {')}: {text}{'}' * key.count('.')}")
    for line in lines_of(partial(load_recipe, base, [f"{key}={text}"])):
        assert line.startswith(("override ", str(base)))
    for line in lines_of(partial(load_recipe, [base, layer])):
        assert line.startswith((str(layer), str(base)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("seed=1", "seed=2"),
        ("seed=1", "seed=1"),
        ("train.epochs=2.0", "train={epochs: 1.0}"),
        ("train.epochs=2.0", "train={}"),
        ("train={epochs: 1.0}", "train.epochs=2.0"),
        ("train={lora: {rank: 8}}", "train.lora.rank=4"),
        ("train={lora: null}", "train.lora.rank=4"),
        ("cold_start=null", "cold_start.n_problems=4"),
        ("cold_start.n_problems=4", "cold_start=null"),
        ("train.lora={}", "train.lora=null"),
        ("train.lora={}", "train={lora: {rank: 8}}"),
        ("tasks=[{task: arc}]", "tasks=[{task: mmlu}]"),
        ("tasks.arc.weight=2.0", "tasks=[{task: arc}]"),
    ],
)
def test_override_that_takes_back_another_is_refused(before: str, after: str) -> None:
    with pytest.raises(RecipeError) as said:
        check_said_once([before, "iterations=2", after])
    assert str(said.value) == (
        f"override {after}: takes back {before}, which stands before it; remove one of them"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.lora={}", "train.lora.rank=4"),
        ("train={epochs: 1.0}", "train.lora.rank=4"),
        ("seed=1", "train.seed=1", "train.seeds=1"),
        ("tasks=[{task: arc}]", "tasks.arc.weight=2.0", "tasks.arc.reward.lambda_token=0.1"),
        ("reward.lambda_token=0.2", "tasks.arc.reward.lambda_token=0.1"),
    ],
)
def test_overrides_of_which_each_still_holds_are_taken(overrides: tuple[str, ...]) -> None:
    check_said_once(overrides)
