"""Preference pairs: from a grown tree (paper Alg. 5), and in the format of other projects.

Of the children of a node the one of highest and the one of lowest final value are a pair when

    V(best) > theta_filter   and   V(best) - V(worst) > theta_diff

and of a problem's pairs the share ``keep_share`` with the best chosen child is kept, at least one.
The chosen child's own utterance is never faulty (role leakage, cut at the token limit).

Others' preferences come, and ours go, in the common conversational format: one JSON object a line,
with a list of messages (``role``, ``content``) under each of prompt, chosen and rejected. Other
keys are ignored on reading; a line whose sides are not one assistant message each is refused.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optima.conversation.codec import ChatCodec
from optima.conversation.dialogue import Speaker, utterance
from optima.errors import DataError
from optima.recipe.schema import PairSection, SearchSection
from optima.search.tree import Node, Tree
from optima.seeding import rng
from optima.selection import share_of
from optima.tasks.rows import read_json
from optima.types import DialogueTree, Message, PreferencePair, PreferenceRow

SIDES = ("prompt", "chosen", "rejected")


@dataclass(slots=True)
class Harvest:
    """What is selected from trees, counted while ``gather`` yields it: nothing is kept.

    ``chosen_value`` and ``rejected_value`` are sums over the ``n_chosen`` pairs; ``highest`` and
    ``widest`` (chosen value, gap) are of all ``n_found``.
    """

    n_trees: int = 0
    n_found: int = 0
    n_chosen: int = 0
    n_paired: int = 0  # trees, and so problems, with a chosen pair
    chosen_value: float = 0.0
    rejected_value: float = 0.0
    highest: float = -math.inf
    widest: float = -math.inf

    def gather(
        self,
        trees: Iterable[DialogueTree],
        search: SearchSection,
        section: PairSection,
        *,
        seed: int,
    ) -> Iterator[PreferencePair]:
        """Yield the selected pairs of trees, in their order."""
        for record in trees:
            pairs = sibling_pairs(Tree(search, record.rounds), record.problem_id)
            chosen = select_pairs(pairs, section, rng(seed, "pairs", record.problem_id))
            self.n_trees += 1
            self.n_found += len(pairs)
            self.n_chosen += len(chosen)
            self.n_paired += bool(chosen)
            for pair in pairs:
                self.highest = max(self.highest, pair.chosen_value)
                self.widest = max(self.widest, pair.chosen_value - pair.rejected_value)
            for pair in chosen:
                self.chosen_value += pair.chosen_value
                self.rejected_value += pair.rejected_value
                yield pair

    def best(self) -> str:
        """Say how far the best of all pairs was."""
        if not self.n_found:
            return "no siblings differ in value"
        return (
            f"of {self.n_found} the highest chosen value is {self.highest:.3f} and the widest gap "
            f"{self.widest:.3f}"
        )


def sibling_pairs(tree: Tree, problem_id: str) -> list[PreferencePair]:
    """Return the best and the worst child of every node where they differ, by ids of nodes."""
    pairs = []
    for parent in tree.nodes:
        valued = [(child, child.value) for child in parent.children]
        rated = [(child, value) for child, value in valued if value is not None]
        sound = [(child, value) for child, value in rated if not child.faults]
        if not sound:
            continue
        # max and min take the first of equals: the child added first.
        best, high = max(sound, key=lambda pair: pair[1])
        worst, low = min(rated, key=lambda pair: pair[1])
        if high > low:
            pairs.append(_pair(problem_id, parent, (best, high), (worst, low)))
    return pairs


def select_pairs(
    pairs: Sequence[PreferencePair], section: PairSection, generator: random.Random
) -> list[PreferencePair]:
    """Return a problem's pairs that are trained on, by the strategy of the recipe.

    ``value`` is the paper's. ``random`` draws as many from the pairs that pass the thresholds, so
    that the two differ in which pairs they take and in nothing else.
    """
    passed = [
        pair
        for pair in pairs
        if pair.chosen_value > section.theta_filter
        and pair.chosen_value - pair.rejected_value > section.theta_diff
    ]
    if not passed:
        return []
    if section.strategy == "influence":
        return sorted(passed, key=_by_chosen_value)  # what is kept is decided by trainings
    n_kept = max(1, int(share_of(section.keep_share, len(passed))))
    if section.strategy == "random":
        return sorted(generator.sample(passed, n_kept), key=_by_chosen_value)
    return sorted(passed, key=_by_chosen_value)[:n_kept]


def preference_row(pair: PreferencePair, speakers: Sequence[Speaker]) -> PreferenceRow:
    """Return the pair as its acting agent sees it: that agent's own prompt and its history."""
    speaker = speakers[pair.chosen.agent]
    messages, _ = speaker.view(pair.history)
    return PreferenceRow(
        problem_id=pair.problem_id,
        agent=speaker.agent,
        prompt=messages,
        chosen=(Message(role="assistant", content=utterance(pair.chosen)),),
        rejected=(Message(role="assistant", content=utterance(pair.rejected)),),
        prompt_ids=speaker.prompt_ids(pair.history),
        chosen_ids=speaker.continuation(pair.history, pair.chosen),
        rejected_ids=speaker.continuation(pair.history, pair.rejected),
        n_retokenised=sum(turn.token_ids is None for turn in (pair.chosen, pair.rejected)),
    )


def _pair(
    problem_id: str, parent: Node, best: tuple[Node, float], worst: tuple[Node, float]
) -> PreferencePair:
    assert best[0].turn is not None
    assert worst[0].turn is not None
    return PreferencePair(
        problem_id=problem_id,
        parent=parent.node_id,
        history=parent.history(),
        chosen=best[0].turn,
        rejected=worst[0].turn,
        chosen_value=best[1],
        rejected_value=worst[1],
    )


def _by_chosen_value(pair: PreferencePair) -> tuple[float, int]:
    return (-pair.chosen_value, pair.parent)


def to_conversational(row: PreferenceRow) -> dict[str, list[dict[str, str]]]:
    """Return the row as trainers of other projects take it."""
    tree: dict[str, Any] = row.model_dump(mode="json", include=set(SIDES))
    return {side: tree[side] for side in SIDES}


def export_lines(rows: Iterable[PreferenceRow]) -> Iterator[str]:
    """Yield one line of JSON per row, with its newline."""
    for row in rows:
        yield json.dumps(to_conversational(row), ensure_ascii=False) + "\n"


def read_conversational(path: Path, codec: ChatCodec) -> tuple[PreferenceRow, ...]:
    """Read a file of preferences and tokenise them; DataError names the first line that is none."""
    try:
        lines = path.read_bytes().split(b"\n")  # texts may hold other ends of lines, as U+2028
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check pairs.path") from error
    return tuple(
        _row(line, f"{path}:{number}", number, codec)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )


def _row(line: bytes, place: str, number: int, codec: ChatCodec) -> PreferenceRow:
    try:
        tree = read_json(line)
        prompt, chosen, rejected = (
            tuple(Message.model_validate(message) for message in _messages(tree[side]))
            for side in SIDES
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise DataError(
            f"{place}: is not a preference ({reason}); write lists of messages under prompt, "
            "chosen and rejected"
        ) from error
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if len(side) != 1 or side[0].role != "assistant":
            roles = ", ".join(f"role {message.role}" for message in side) or "no message"
            raise DataError(
                f"{place}: {name}: {roles}: a side of a preference is one assistant message"
            )
    if not prompt:
        raise DataError(f"{place}: prompt: is empty; a preference needs at least one message")
    prompt_ids, chosen_ids = codec.continuation(prompt, chosen[0])
    return PreferenceRow(
        problem_id=f"imported/{number}",
        agent=0,
        prompt=prompt,
        chosen=(chosen[0],),
        rejected=(rejected[0],),
        prompt_ids=prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=codec.continuation(prompt, rejected[0])[1],
        n_retokenised=2,
    )


def _messages(value: Any) -> list[dict[str, Any]]:
    return [{"role": message["role"], "content": message["content"]} for message in value]
