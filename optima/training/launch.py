"""Starts a training in the training environment and waits for it; imports no torch.

Before a run it says what would stop its trainings: trackers, logins, layers to adapt.

A finished training with the same inputs is not repeated; what an earlier one with other inputs
left in the directory is moved aside first, never mistaken for this one's.
"""

import configparser
import contextlib
import hashlib
import json
import logging
import netrc
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from optima.conversation.loading import HUB_TIMEOUT_S
from optima.errors import ProcessError, RecipeError, StageError
from optima.processes.devices import Devices, free_port
from optima.processes.environment import Environment
from optima.processes.managed import ManagedProcess
from optima.progress import PROGRESS_FILE, Bar, read_progress
from optima.recipe.schema import ModelSection, Recipe
from optima.recipe.sections import TrainSection
from optima.records import disk_errors, move_aside
from optima.training.jobs import (
    CHECKPOINTS_DIR,
    ERROR_MARK,
    JOB_FILE,
    LOGPROBS_FILE,
    MODEL_DIR,
    RESULT_FILE,
    Machines,
    Others,
    TrainJob,
    TrainResult,
    accelerate_config,
    n_processes,
)

logger = logging.getLogger(__name__)
# Makes the trackers' callbacks as the trainer will, which is where missing packages are noticed.
_TRACKERS_SCRIPT = """
import sys
from transformers.integrations import get_reporting_integration_callbacks as callbacks
try: [make() for make in callbacks(sys.argv[1:])]
except (ImportError, RuntimeError, ValueError) as error: sys.exit(" ".join(str(error).split()))
"""
_TRACKERS_TIMEOUT_S = 300.0
ACCELERATE_FILE = "accelerate.json"
_DIGEST_FILE = "inputs.sha256"
_POLL_S = 0.5
_N_LINES_OF_LAUNCHER = 400  # a traceback of each process


def training_argv(
    env: Environment, output_dir: Path, *, kind: str, port: int, machines: Machines | None = None
) -> tuple[str, ...]:
    """Return the command that runs the job and the accelerate configuration in ``output_dir``."""
    shared: tuple[str, ...] = ()
    if machines is not None:
        shared = (
            *("--num_machines", str(machines.n), "--machine_rank", str(machines.rank)),
            *("--main_process_ip", machines.address),
        )
    return (
        str(env.python),
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(output_dir / ACCELERATE_FILE),
        "--main_process_port",
        str(port),
        *shared,
        "-m",
        f"optima.training.{kind}",
        "--job",
        str(output_dir / JOB_FILE),
    )


def check_trackers(names: Sequence[str], env: Environment) -> None:
    """Raise RecipeError when a tracker of ``train.report_to`` cannot be used in ``env``, or has no
    login.

    Without it a run would find out at its first training, after all of its generation.
    """
    if not names:
        return
    try:
        done = subprocess.run(
            [str(env.python), "-c", _TRACKERS_SCRIPT, *names],
            env=env.environ(),
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_TRACKERS_TIMEOUT_S,
        )
        said = done.stderr.decode(errors="replace") if done.returncode else None
    except subprocess.TimeoutExpired:
        said = f"no answer in {_TRACKERS_TIMEOUT_S:.0f} s"
    if said is not None:
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        raise RecipeError(
            f"train.report_to: [{', '.join(names)}] cannot be used in {env.prefix}: {reason}; "
            "install what is missing there, or take it off the list"
        )
    check_logins(names)


def check_target_modules(recipe: Recipe) -> None:
    """Raise RecipeError when a name in ``train.lora.target_modules`` is not a layer of the model.

    A name is meant as adapters take it: a module's whole name, or the last parts of it. A model
    whose weights are not listed (other than safetensors, or not reached) is left to the training.
    """
    lora = recipe.train.lora
    if lora is None or lora.target_modules == "all-linear":
        return
    layers = _layers(recipe.model)
    if not layers:
        return
    for name in lora.target_modules:
        if not any(f".{layer}".endswith(f".{name}") for layer in layers):
            there = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
            raise RecipeError(
                f"train.lora.target_modules: {name!r} is not a layer of {recipe.model.path}; name "
                f"some of {there}, or write all-linear"
            )


def _layers(model: ModelSection) -> list[str]:
    """Return the modules of a model that hold a matrix; empty where no file or hub lists them."""
    names = (name for name, shape in _shapes(model).items() if len(shape) > 1)
    layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    # Weights that are tied to the embeddings' are written once.
    return [*layers, "lm_head"] if layers and "lm_head" not in layers else layers


def _shapes(model: ModelSection) -> dict[str, Sequence[int]]:
    """Return the shape of each tensor that the model's files list, here or on the hub."""
    from huggingface_hub import HfApi, snapshot_download

    folder, revision, files = Path(model.path), model.revision, []
    is_here = folder.is_dir()
    with contextlib.suppress(Exception):  # a damaged file is left to the training
        from huggingface_hub import parse_local_safetensors_file_metadata  # of 2.0 and later

        if not is_here:
            found = snapshot_download(model.path, revision=revision, local_files_only=True)
            folder = Path(found)
        paths = sorted(folder.glob("*.safetensors"))
        files = [parse_local_safetensors_file_metadata(path) for path in paths]
    if not files and not is_here:
        with contextlib.suppress(Exception):  # and so is what its HTTP library raises
            listed = HfApi().get_safetensors_metadata(
                model.path, revision=revision, timeout=HUB_TIMEOUT_S
            )
            files = list(listed.files_metadata.values())
    return {name: tensor.shape for file in files for name, tensor in file.tensors.items()}


def run_training(
    job: TrainJob,
    *,
    env: Environment,
    devices: Devices,
    log_path: Path,
    others: Others | None = None,
    is_given_up: threading.Event | None = None,
) -> TrainResult:
    """Train, or return the result that is there already; ``others`` take part.

    Raises StageError when the training says why it cannot go on or ``is_given_up`` is set, and
    ProcessError, with the end of the log, when it fails otherwise or passes its deadline.
    """
    if job.train.dtype == "bfloat16" and not devices.has_bfloat16:
        logger.info("training: in float32, as this processor has no instructions for bfloat16")
        train = job.train.model_copy(update={"dtype": "float32"})
        job = job.model_copy(update={"train": train})
    output = Path(job.output_dir)
    digest, digest_path = _input_digest(job), output / _DIGEST_FILE
    if digest_path.is_file() and digest_path.read_text("utf-8").strip() == digest:
        result = _read(job.result_path)
        if result is not None and (output / MODEL_DIR).is_dir():
            return result
    else:  # first the result: without it nothing else counts
        for name in (RESULT_FILE, LOGPROBS_FILE, MODEL_DIR, CHECKPOINTS_DIR):
            if (path := output / name).exists():
                with disk_errors(path):
                    aside = move_aside(path)
                logger.warning("%s: of a training with other inputs; moved to %s", path, aside.name)
    machines = others.machines if others is not None else None
    n_machines = machines.n if machines is not None else 1
    devices = training_devices(job.train, devices, n_machines)
    config = accelerate_config(job.train, n_machines * n_devices(devices), kind=job.kind)
    config["num_machines"] = n_machines
    config["use_cpu"] = devices.kind == "cpu"
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        (output / PROGRESS_FILE).unlink(missing_ok=True)
        written = {
            ACCELERATE_FILE: json.dumps(config, indent=1, sort_keys=True),
            JOB_FILE: job.model_dump_json(indent=1),
            _DIGEST_FILE: digest,
        }
        for name, text in written.items():
            (output / name).write_text(f"{text}\n", encoding="utf-8")
    port = free_port() if machines is None else free_port(machines.address)
    process = ManagedProcess(
        training_argv(env, output, kind=job.kind, port=port, machines=machines),
        name="training",
        log_path=log_path,
        env=env.environ(training_variables(devices)),
    )
    with contextlib.ExitStack() as stack:
        if others is not None:
            stack.callback(others.stop)
            others.start(output, job.kind, port)
        stack.enter_context(process)
        try:
            _follow(process, output, job.train.timeout_s, others, is_given_up)
        except ProcessError as error:
            raise _explained(process) or error from error
    result = _read(job.result_path)
    if result is None:
        raise ProcessError(f"training: ended without a result; {process.log_excerpt()}")
    return result


def training_variables(devices: Devices) -> dict[str, str]:
    """Return the environment variables by which a training is held to its devices."""
    variables = {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": devices.mask()}
    if devices.kind == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
        # accelerate would otherwise set it to 1
        n_cores = len(os.sched_getaffinity(0))
        variables["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(n_cores))
    return variables


def _read(path: Path) -> TrainResult | None:
    """Return what a training wrote; None where there is nothing, or only a part of it."""
    with contextlib.suppress(OSError, ValidationError):
        return TrainResult.model_validate_json(path.read_bytes())
    return None


def n_devices(devices: Devices) -> int:
    """Return how many devices a training can be spread over."""
    return len(devices.gpus) if devices.kind == "cuda" else 1


def training_devices(train: TrainSection, devices: Devices, n_machines: int = 1) -> Devices:
    """Return the devices that a training sees: one process would put a step on every GPU it sees,
    and so take as many times the rows of a batch.
    """
    if devices.kind == "cuda" and n_processes(train, n_machines * len(devices.gpus)) == 1:
        return replace(devices, gpus=devices.gpus[:1])
    return devices


def _follow(
    process: ManagedProcess,
    output: Path,
    timeout_s: float,
    others: Others | None,
    is_given_up: threading.Event | None,
) -> None:
    """Wait for the process while showing its progress; StageError when one of the others fails."""
    deadline = time.monotonic() + timeout_s
    with Bar("training", leave=False) as bar:
        while (left_s := deadline - time.monotonic()) > 0:
            if process.has_ended_within(min(_POLL_S, left_s)):
                break
            if others is not None and (failure := others.failure()) is not None:
                raise StageError(f"training: {failure}; its log here: {process.log_path}")
            if is_given_up is not None and is_given_up.is_set():
                raise StageError(f"training: given up; its log: {process.log_path}")
            if (progress := read_progress(output)) is not None:
                bar.show(progress)
    process.check(max(0.0, deadline - time.monotonic()))


def _explained(process: ManagedProcess) -> StageError | None:
    """Return what the training itself said before it ended; its launcher says more after it."""
    lines = process.log_tail(_N_LINES_OF_LAUNCHER)
    said = next((line for line in lines if line.startswith(ERROR_MARK)), None)
    if said is None:
        return None
    return StageError(f"{said.removeprefix(ERROR_MARK)}; its log: {process.log_path}")


def _input_digest(job: TrainJob) -> str:
    """Identify what the training computes from: rows by content, not by place."""
    fields = job.model_dump_json(exclude={"output_dir", "rows_path", "eval_rows_path"})
    digest = hashlib.sha256(fields.encode())
    for path in filter(None, (job.rows_path, job.eval_rows_path)):
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()


WANDB_HOST = "https://api.wandb.ai"


@dataclass(frozen=True, slots=True)
class Login:
    """How a tracker is given its key: a variable, a file below the home folder, or a mode without.

    ``modes`` are values of variables with which it asks for no key.
    """

    variables: tuple[str, ...]
    files: tuple[str, ...]
    modes: Mapping[str, tuple[str, ...]]
    remedy: str


# Those of transformers' trackers that talk to a service that wants a key (its 5.x).
LOGINS: dict[str, Login] = {
    "wandb": Login(
        ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"), (),
        {"WANDB_MODE": ("offline", "disabled", "dryrun"), "WANDB_DISABLED": ("true", "1")},
        "run `wandb login`, set WANDB_API_KEY, or keep its log here with WANDB_MODE=offline",
    ),
    "comet_ml": Login(
        ("COMET_API_KEY",), (".comet.config",),
        {"COMET_MODE": ("OFFLINE", "DISABLED"), "COMET_START_ONLINE": ("0", "false")},
        "run `comet login`, set COMET_API_KEY, or keep its log here with COMET_START_ONLINE=0",
    ),
    "neptune": Login(
        ("NEPTUNE_API_TOKEN",), (), {"NEPTUNE_MODE": ("offline", "debug")},
        "set NEPTUNE_API_TOKEN, or keep its log here with NEPTUNE_MODE=offline",
    ),
    "clearml": Login(
        ("CLEARML_API_ACCESS_KEY", "TRAINS_API_ACCESS_KEY", "CLEARML_CONFIG_FILE"),
        ("clearml.conf",), {"CLEARML_OFFLINE_MODE": ("1", "true")},
        "run `clearml-init`, or keep its log here with CLEARML_OFFLINE_MODE=1",
    ),
    "swanlab": Login(
        ("SWANLAB_API_KEY",), (".swanlab/.netrc",),
        {"SWANLAB_MODE": ("local", "offline", "disabled")},
        "run `swanlab login`, set SWANLAB_API_KEY, or keep its log here with SWANLAB_MODE=local",
    ),
}  # fmt: skip


def check_logins(names: Sequence[str]) -> None:
    """Raise RecipeError for a tracker that has no login."""
    for name in names:
        login = LOGINS.get(name)
        if login is None or _is_known(login) or (name == "wandb" and _knows_wandb()):
            continue
        raise RecipeError(
            f"train.report_to: {name}: has no login, for which the first training would wait; "
            f"{login.remedy}"
        )


def _is_known(login: Login) -> bool:
    return (
        any(os.environ.get(variable) for variable in login.variables)
        or any(
            os.environ.get(variable, "").lower() in map(str.lower, values)
            for variable, values in login.modes.items()
        )
        or any((Path.home() / file).is_file() for file in login.files)
    )


def _knows_wandb() -> bool:
    """Tell whether its settings say offline, or a netrc file has an entry for its host."""
    config = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    settings: dict[str, str] = {}
    for path in (config / "settings", Path("wandb") / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
            settings |= parser["default"] if parser.has_section("default") else {}
        except (configparser.Error, ValueError):
            continue
    if settings.get("mode") in LOGINS["wandb"].modes["WANDB_MODE"]:
        return True
    base = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or WANDB_HOST
    named = os.environ.get("NETRC")
    files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_has_entry(path, urlsplit(base).hostname or base) for path in files)


def _has_entry(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
