"""The plan of a training run, as data: its iterations, and every stage that it will have.

Both follow from the recipe alone. The loop walks ``iterations``; the dry run, the footprint and the
status read ``plan``, so that none of them can tell of another run than the one that happens.

sft       M_0 = the base model or the cold start's; every iteration is an SFT
dpo       iteration one is the SFT that initialises (``initial``), the others are DPO (paper Alg. 3)
sft_dpo   an SFT, then a DPO from its model, in turn

An SFT starts from the model before it in information exchange and from M_0 in debate (paper
Alg. 1), or as ``train.start`` says; a DPO always from the model whose trees it learns from.

A mixture has the stages of each of its tasks in a folder of that name (``placed``), whose rows are
put together (``mix``) for one training an iteration.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from optima.errors import UsageError
from optima.recipe.schema import PolicySection, Recipe
from optima.tasks import get_task

Training = Literal["sft", "dpo"]
PROBLEMS, MIX = "problems", "mix"
_OF_ALL = ("train", MIX)  # kinds of stages that a mixture has once, not for each of its tasks
BASE, COLD_START, INITIAL = "base", "cold_start", "initial"


@dataclass(frozen=True, slots=True)
class Step:
    """One stage of a run, in the directory ``name``.

    ``model`` is the label of the model that speaks, is judged or is made, ``start`` that of the one
    a training starts from, and ``policy`` the one of several that it trains. ``n_conversations``
    are generated in it at most, and its file has ``n_lines`` in the end; both are 0 where nothing
    is generated or no problems are counted.
    """

    name: str
    model: str
    start: str = ""
    n_conversations: int = 0
    n_lines: int = 0
    policy: str = ""

    @property
    def kind(self) -> str:
        """What is done: the last part of the name, without that of a policy."""
        return kind_of(self.name)

    @property
    def is_trial(self) -> bool:
        """Whether it is a part of a selection by influence, whose models are not kept."""
        return "/influence/" in self.name


def kind_of(stage: str) -> str:
    """Return what a stage does by its name: ``train`` of ``iter_0/train_solver``."""
    folder, _, last = stage.rpartition("/")
    return folder if folder == PROBLEMS else last.partition("_")[0]


def placed(stage: str, member: str) -> str:
    """Return the name that a stage of a recipe of one task has as that of a task of a mixture.

    ``iter_0/arc/rank`` of ``iter_0/rank``. Trainings and what they train on are of all tasks.
    """
    if not member or kind_of(stage) in _OF_ALL:
        return stage
    folder, _, last = stage.rpartition("/")
    return f"{folder}/{member}/{last}" if folder else f"{last}/{member}"


def unplaced(stage: str, member: str) -> str | None:
    """Return the name of ``placed`` for a task of a mixture, None for a stage of another task."""
    if not member or kind_of(stage) in _OF_ALL:
        return stage
    *folders, last = stage.split("/")
    names = [*folders[:-1], last] if folders[-1:] == [member] else folders if last == member else []
    return "/".join(names) if names and placed("/".join(names), member) == stage else None


def by_policy(recipe: Recipe, training: Step) -> tuple[Step, ...]:
    """Return the trainings that make a model: itself, or one for each policy that is trained."""
    return tuple(
        replace(training, name=f"{training.name}_{name}", policy=name)
        for name in trained_policies(recipe)
    ) or (training,)


def trained_policies(recipe: Recipe) -> tuple[str, ...]:
    """Return the policies that are trained, none where one plays all agents."""
    names = dict.fromkeys(recipe.agents.policies)
    return tuple(n for n in names if n not in recipe.policies or not recipe.policies[n].frozen)


def trained_agents(recipe: Recipe) -> tuple[int, ...]:
    """Return the agents whose words are trained on."""
    policies, trained = recipe.agents.policies, trained_policies(recipe)
    n_agents = len(recipe.agents.names)
    return tuple(k for k in range(n_agents) if not policies or policies[k] in trained)


def describe_policies(recipe: Recipe) -> dict[str, str]:
    """Return what becomes of each of several policies, in words, by their names."""
    trained, said = trained_policies(recipe), {}
    for name in dict.fromkeys(recipe.agents.policies):
        section = recipe.policies.get(name, PolicySection())
        what = ["trained" if name in trained else "frozen"]
        if section.endpoint is not None:
            what.append(" at ".join(filter(None, (section.model, section.endpoint))))
        elif section.path is not None:
            what.append(f"from {section.path}")
        said[name] = ", ".join(what)
    return said


def describe_agents(recipe: Recipe) -> dict[str, str]:
    """Return the policy of each agent, where there are several, and what it is if not trained."""
    said = describe_policies(recipe)
    whole = {name: f"{name}, {text}" if "frozen" in text else name for name, text in said.items()}
    agents = recipe.agents
    return {name: whole[p] for name, p in zip(agents.names, agents.policies, strict=False)}


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration to come: the model called ``label``, made by SFT or by DPO.

    ``speaker`` generates what it learns from, ``start`` is what is trained, both by label; ``t``
    counts from 0 and is what the iteration's draws depend on.
    """

    label: str
    speaker: str
    start: str
    training: Training
    t: int

    def step(self, kind: str, n_conversations: int = 0, n_lines: int = 0) -> Step:
        """Return one of its stages; the speaker's, or the training of its model."""
        if kind in _OF_ALL:
            start = self.start if kind == "train" else ""
            return Step(f"{self.label}/{kind}", self.label, start=start)
        return Step(f"{self.label}/{kind}", self.speaker, "", n_conversations, n_lines)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many problems there are to train on, and how many the evaluations ask."""

    n_train: int
    n_test: int


def iterations(recipe: Recipe) -> tuple[Iteration, ...]:
    """Return the iterations of a run in order."""
    first = last = COLD_START if recipe.cold_start else BASE
    found = []
    is_initialised = recipe.method == "dpo" and recipe.initialise is not False
    if is_initialised:
        found.append(Iteration(INITIAL, last, last, "sft", 0))
        last = INITIAL
    for t in range(recipe.iterations - is_initialised):
        for training in _TRAININGS[recipe.method]:
            label = f"iter_{t}_{training}" if recipe.method == "sft_dpo" else f"iter_{t}"
            begin = last if training == "dpo" or _builds_on_previous(recipe) else first
            found.append(Iteration(label, last, begin, training, t))
            last = label
    return tuple(found)


def _builds_on_previous(recipe: Recipe) -> bool:
    """Tell whether an SFT starts from the model before it; paper: in information exchange only.

    A mixture with a task of information exchange does.
    """
    start = recipe.train.start
    tasks = [get_task(one.task) for one in recipe.members().values()] if start == "auto" else []
    return any(task.builds_on_previous for task in tasks) or start == "previous"


_TRAININGS: dict[str, tuple[Training, ...]] = {
    "sft": ("sft",),
    "dpo": ("dpo",),
    "sft_dpo": ("sft", "dpo"),
}


def plan(recipe: Recipe, *counts: Counts) -> tuple[Step, ...]:
    """Return the stages of a run, roughly in order: an evaluation is judged later than it stands.

    Without ``counts``, one for each task, nothing is counted. Raises UsageError when influence has
    no problem to be measured on.
    """
    members = recipe.members()
    planners = [
        _Planner(one, count, name)
        for (name, one), count in zip(members.items(), counts or [None] * len(members), strict=True)
    ]
    return tuple(_steps(recipe, planners))


def _steps(recipe: Recipe, planners: "Sequence[_Planner]") -> Iterator[Step]:
    """Yield the stages of all tasks, and the trainings, which they share."""

    def each(steps: "Callable[..., Iterator[Step]]", *of: object) -> Iterator[Step]:
        for one in planners:
            yield from (
                replace(step, name=placed(step.name, one.member)) for step in steps(one, *of)
            )

    def trained(training: Step) -> Iterator[Step]:
        if recipe.tasks:
            yield Step(f"{training.name.rpartition('/')[0]}/{MIX}", training.model)
        yield from by_policy(recipe, training)
        yield from each(_Planner.evaluation, "evaluate", training.model)

    yield from each(lambda _: iter([Step(PROBLEMS, "")]))
    if recipe.evaluation.base:
        yield from each(_Planner.evaluation, "evaluate", BASE)
    if recipe.cold_start:
        yield from each(_Planner.cold_start)
        yield from trained(Step("cold_start/train", COLD_START, start=BASE))
    for iteration in iterations(recipe):
        yield from each(_Planner.iteration, iteration)
        yield from trained(iteration.step("train"))


@dataclass(frozen=True, slots=True)
class _Planner:
    """The stages of one task: all but the trainings."""

    recipe: Recipe
    counts: Counts | None
    member: str

    def cold_start(self) -> Iterator[Step]:
        if self.recipe.cold_start:
            n_scripts = taken(self.recipe.cold_start.n_problems, self._n_train())
            yield Step("cold_start/script", BASE, n_lines=n_scripts)

    def iteration(self, iteration: Iteration) -> Iterator[Step]:
        return self._sft(iteration) if iteration.training == "sft" else self._dpo(iteration)

    def _sft(self, iteration: Iteration) -> Iterator[Step]:
        n = self._n_problems() * self.recipe.sampling.n_samples
        yield iteration.step("generate", n, n)
        if self.recipe.reward.lambda_loss > 0:
            yield iteration.step("score")
        yield iteration.step("rank")
        yield iteration.step("select")

    def _dpo(self, iteration: Iteration) -> Iterator[Step]:
        search = self.recipe.search
        assert search is not None
        n_probe = taken(search.n_probe, self._n_train())
        yield iteration.step("probe", n_probe, n_probe)
        n_rounds = self._n_trees() * search.n_rounds
        yield iteration.step("search", n_rounds * search.n_rollouts, n_rounds)
        yield iteration.step("pairs")
        yield from self._influence(iteration)

    def _influence(self, iteration: Iteration) -> Iterator[Step]:
        """Yield the stages of selection by influence; of few problems it makes fewer groups."""
        assert self.recipe.pairs is not None
        if self.recipe.pairs.strategy != "influence":
            return
        name = f"{iteration.label}/influence"
        n = self._n_validation() * self.recipe.evaluation.n_samples
        yield from self._evaluated(f"{name}/before", iteration.speaker, n)
        for g in range(self.recipe.pairs.influence.n_groups):
            group = f"{name}/group_{g}"
            yield Step(f"{group}/rows", iteration.speaker)
            yield Step(f"{group}/train", group, start=iteration.start)
            yield from self._evaluated(group, group, n)
        yield Step(f"{name}/selected", iteration.speaker)

    def evaluation(self, folder: str, label: str) -> Iterator[Step]:
        n_test = self.counts.n_test if self.counts else 0
        n = taken(self.recipe.data.n_test, n_test) * self.recipe.evaluation.n_samples
        yield from self._evaluated(f"{folder}/{label}", label, n)

    def _evaluated(self, name: str, label: str, n: int) -> Iterator[Step]:
        yield Step(f"{name}/talk", label, n_conversations=n, n_lines=n)
        if self.recipe.reward.lambda_loss > 0:
            yield Step(f"{name}/score", label)
        yield Step(f"{name}/rank", label)

    def _n_train(self) -> int:
        return self.counts.n_train if self.counts else 0

    def _n_problems(self) -> int:
        return taken(self.recipe.data.n_train, self._n_train())

    def _n_trees(self) -> int:
        assert self.recipe.search is not None
        return taken(self.recipe.search.n_problems or self.recipe.data.n_train, self._n_train())

    def _n_validation(self) -> int:
        assert self.recipe.pairs is not None
        n_left = self._n_train() - self._n_trees()
        if self.counts is not None and n_left < 1:
            raise UsageError(
                f"pairs.strategy: influence: all {self._n_train()} problems of the train split get "
                "a tree, so none is left to measure influence on; lower search.n_problems"
            )
        return min(n_left, self.recipe.pairs.influence.n_problems)


def taken(n: int | None, there: int) -> int:
    """Return how many of the problems ``there`` are taken where ``n`` are asked for, None all."""
    return there if n is None else min(n, there)


def check_trainable(recipe: Recipe) -> None:
    """Raise UsageError for fields that evaluations alone understand."""
    if recipe.model.tokenizer is not None:
        raise UsageError(
            f"model.tokenizer: {recipe.model.tokenizer}: a model is trained with the tokenizer in "
            "its own directory; put it there and leave model.tokenizer out"
        )
    if recipe.agents.policies:
        _check_team(recipe)


def _check_team(recipe: Recipe) -> None:
    """Raise UsageError for what a run of several policies cannot do."""
    pairs = recipe.pairs
    if pairs is not None and pairs.strategy == "influence":
        raise UsageError(
            "pairs.strategy: influence tries trainings of one policy and there are several; take "
            "value or random"
        )
    if pairs is not None and pairs.path is not None:
        raise UsageError(
            f"pairs.path: {pairs.path} does not say which of several policies its preferences "
            "are for; remove it"
        )
