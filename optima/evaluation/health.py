"""Whether a model converses at all: shares of what goes wrong in conversations, and what helps.

Small models copy, speak for their partner, repeat themselves, never mark an answer, or give one
answer to everything. Scores alone do not tell which; these shares do, before anything is trained.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, lgamma

from optima.reward import has_repeated_utterance
from optima.tasks.texts import normalise_text
from optima.types import Conversation, Problem

COLLAPSED_SHARE = 0.5  # of the problems with one and the same answer
MIN_PROBLEMS = 10  # fewer agree on an answer by chance
MUTE_SHARE = 0.9  # of the conversations with an utterance that says nothing
FEW_MARKS = 0.1  # of the share that an earlier model marked
ENDLESS_SHARE = 0.5  # of the conversations with a turn that is cut, after training
ENDED_SHARE = 0.1  # of them, at most, with one before it
BY_CHANCE = 0.01  # a difference as likely as this between two models that are equal is none
POOR_SHARE = 0.3  # of conversations with a fault above which its remedy is named


@dataclass(frozen=True, slots=True)
class Remedies:
    """What a recipe leaves to try: advice names nothing that is done already or cannot be.

    ``temperature`` is the field that the conversations were sampled by, ``roles`` the other value
    of ``model.roles``, None where the model's template refuses it, ``shown`` the answer of the
    worked example, if there is one.
    """

    temperature: str
    roles: str | None
    can_show_example: bool
    can_cold_start: bool
    shown: str | None = None

    def marking(self) -> str:
        """Return what helps a model that marks no answer."""
        ways = {
            "show one with conversation.worked_example=true": self.can_show_example,
            "help with cold_start": self.can_cold_start,
            "write prompts of your own (conversation.prompts)": True,
        }
        return _either(way for way, is_left in ways.items() if is_left)

    def talking(self, *others: str) -> str:
        """Return what helps a model that confuses who speaks, ``others`` among it."""
        roles = () if self.roles is None else (f"try model.roles={self.roles}",)
        return _either((*roles, *others, "write prompts of your own (conversation.prompts)"))


@dataclass(frozen=True, slots=True)
class TalkHealth:
    """Shares in [0, 1] of conversations, ``n`` in all; ``top_share`` is one of problems.

    ``agreed``: an answer was confirmed, or given by an agent alone. ``leaked``: a speaker's label
    began in an utterance. ``cut``: a turn reached its token limit or the window was full.
    ``repeated``: an utterance stands there twice. ``empty``: an utterance says nothing.
    ``top_answer`` is the commonest answer, ``top_gold_share`` how often it is right.
    """

    n: int
    marked: float
    agreed: float
    leaked: float
    cut: float
    repeated: float
    empty: float
    top_answer: str
    top_share: float
    top_gold_share: float
    n_problems: int

    @property
    def has_collapsed(self) -> bool:
        """Whether most problems get one answer that is right for far fewer of them."""
        return (
            self.n_problems >= MIN_PROBLEMS
            and self.top_share >= COLLAPSED_SHARE
            and self.top_share > 2 * self.top_gold_share
        )

    def metrics(self) -> dict[str, float]:
        """Return the shares under their names in metrics.jsonl."""
        names = ("marked", "agreed", "leaked", "cut", "repeated", "empty", "top_share")
        shares = {f"health/{name}": float(getattr(self, name)) for name in names}
        return {**shares, "health/collapsed": float(self.has_collapsed)}

    def advice(self, remedies: Remedies) -> Iterator[str]:
        """Yield what is bad and which field of the recipe to change, one line each."""
        left = remedies
        if self.marked < 1 - POOR_SHARE:
            yield f"{_percent(1 - self.marked)} of the conversations mark no answer: " + (
                left.marking()
            )
        if self.marked - self.agreed > POOR_SHARE:
            yield (
                f"{_percent(self.marked - self.agreed)} mark an answer that nobody confirms: lower "
                f"{left.temperature}, or conversation.max_turns so that less is spent on it"
            )
        if self.leaked > POOR_SHARE:
            yield f"{_percent(self.leaked)} begin to speak for a partner: {left.talking()}"
        if self.cut > POOR_SHARE:
            yield (
                f"{_percent(self.cut)} have a turn that is cut: raise conversation.max_turn_tokens "
                f"(and model.max_model_len), or lower {left.temperature}"
            )
        warmer = left.talking(f"raise {left.temperature}")
        if self.repeated > POOR_SHARE:
            yield f"{_percent(self.repeated)} repeat an utterance: {warmer}"
        if self.empty > POOR_SHARE:
            yield f"{_percent(self.empty)} have an utterance that says nothing: {warmer}"
        if self.has_collapsed:
            yield self.collapse(left.shown)

    def collapse(self, shown: str | None) -> str:
        """Say which answer most problems get, and what helps; ``shown`` is the example's."""
        said = f"{_percent(self.top_share)} of the problems get the answer {self.top_answer!r}"
        if shown is not None and normalise_text(shown) == self.top_answer:
            return (
                f"{said}, which is that of the worked example: the model copies it, so take "
                "conversation.worked_example=false"
            )
        return (
            f"{said}, which is right for {_percent(self.top_gold_share)}: if the model was "
            "trained, lower train.learning_rate or train.epochs, or go back to an earlier model; "
            "if not, write prompts of your own (conversation.prompts)"
        )


@dataclass(slots=True)
class HealthCount:
    """Counts conversations one by one, so that none is kept."""

    problems: Mapping[str, Problem]
    _counts: Counter[str] = field(default_factory=Counter)
    _answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, conversation: Conversation) -> None:
        """Count a conversation."""
        turns = conversation.turns
        found = {
            "n": True,
            "marked": conversation.answer is not None,
            "agreed": conversation.stop_reason == "agreement"
            or (conversation.stop_reason == "alone" and conversation.answer is not None),
            "leaked": "role_leakage" in conversation.faults
            or any(turn.finish_reason == "label" for turn in turns),
            "cut": "overflow" in conversation.faults,
            "repeated": has_repeated_utterance(conversation),
            "empty": any(not turn.text.strip() for turn in turns),
        }
        self._counts.update(name for name, is_so in found.items() if is_so)
        if conversation.answer is not None:
            answer = normalise_text(conversation.answer)
            self._answers[conversation.problem_id][answer] += 1

    def health(self) -> TalkHealth:
        """Return the shares of what was counted."""
        n = max(1, self._counts["n"])
        chosen = Counter(counts.most_common(1)[0][0] for counts in self._answers.values())
        answer, n_top = chosen.most_common(1)[0] if chosen else ("", 0)
        n_problems = max(1, len(self.problems))
        n_right = sum(
            answer in map(normalise_text, _accepted(problem)) for problem in self.problems.values()
        )
        names = ("marked", "agreed", "leaked", "cut", "repeated", "empty")
        return TalkHealth(
            n=self._counts["n"],
            **{name: self._counts[name] / n for name in names},
            top_answer=answer,
            top_share=n_top / n_problems,
            top_gold_share=n_right / n_problems,
            n_problems=len(self.problems),
        )


def examine(conversations: Iterable[Conversation], problems: Sequence[Problem]) -> TalkHealth:
    """Return the shares of ``conversations`` about ``problems``."""
    count = HealthCount({problem.problem_id: problem for problem in problems})
    for conversation in conversations:
        count.add(conversation)
    return count.health()


def find_loss_of_speech(before: Mapping[str, float], after: Mapping[str, float]) -> str | None:
    """Say how a trained model lost what one before it could: to speak, to end, to mark answers.

    Both are metrics of conversations about the same problems; None where it did not, and where so
    few conversations differ by chance.
    """
    marked, empty = after.get("health/marked", 1.0), after.get("health/empty", 0.0)
    had, was_empty = before.get("health/marked", 0.0), before.get("health/empty", 0.0)
    cut, was_cut = after.get("health/cut", 0.0), before.get("health/cut", 1.0)
    n, n_before = (round(metrics.get("conversations", 0.0)) for metrics in (after, before))

    def has_risen(was: float, share: float) -> bool:
        return _chance_of_rise(round(was * n_before), n_before, round(share * n), n) <= BY_CHANCE

    is_mute = empty >= MUTE_SHARE > was_empty and marked <= 1 - MUTE_SHARE
    if is_mute and has_risen(was_empty, empty):
        return f"{_percent(empty)} of its conversations hold an utterance that says nothing"
    if cut >= ENDLESS_SHARE and was_cut <= ENDED_SHARE and has_risen(was_cut, cut):
        return (
            f"{_percent(cut)} of its conversations hold a turn that does not end by itself, of "
            f"{_percent(was_cut)} before"
        )
    if marked < FEW_MARKS * had and has_risen(1 - had, 1 - marked):
        return f"{_percent(marked)} of its conversations mark an answer, of {_percent(had)} before"
    return None


def _chance_of_rise(n_was: int, n_before: int, n_is: int, n_after: int) -> float:
    """Return how likely equal models differ so: Fisher's exact test, one-sided, in [0, 1].

    Of ``n_before`` conversations ``n_was`` hold what is counted, of ``n_after`` those ``n_is``.
    """
    n_found = n_was + n_is
    of_all = _log_comb(n_before + n_after, n_found)
    return sum(
        exp(_log_comb(n_after, k) + _log_comb(n_before, n_found - k) - of_all)
        for k in range(n_is, min(n_after, n_found) + 1)
    )


def _log_comb(n: int, k: int) -> float:
    """Return the logarithm of n over k, which itself has thousands of digits for many talks."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def _accepted(problem: Problem) -> Iterator[str]:
    """Yield the answers that are right: the golds, and of choices their texts."""
    for gold in problem.golds:
        yield gold
        place = ord(gold) - ord("A") if len(gold) == 1 else -1
        if 0 <= place < len(problem.choices):
            yield problem.choices[place]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _either(ways: Iterable[str]) -> str:
    *others, last = ways
    return f"{', '.join(others)}, or {last}" if others else last
