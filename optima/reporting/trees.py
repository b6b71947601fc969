"""The dialogue trees of some runs as a page draws them: nodes with values, rollouts, pairs.

A growing search is read from its finished rounds. Values are computed from the rollouts, as
everywhere. Which pairs were trained on is what the run stored, not computed again.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson

from optima.recipe.schema import SearchSection
from optima.reporting.archive import Archive
from optima.runs.files import TREES, parsed, raw_lines
from optima.search.pairs import sibling_pairs
from optima.search.tree import Tree
from optima.seeding import digest
from optima.types import TreeRound

_Pair = tuple[int, str]  # a parent, and the digest of the chosen utterance
T = TypeVar("T")


@dataclass(slots=True)
class _Grown:
    """Where a tree's record or those of its rounds begin; nodes and best reward by round."""

    offsets: list[int] = field(default_factory=list)
    rounds: dict[int, tuple[int, float | None]] = field(default_factory=dict)


class _Place(NamedTuple):
    """A tree: its search, its problem, where its records begin, and how far it has grown."""

    search: int
    problem_id: str
    offsets: tuple[int, ...]
    n_rounds: int
    n_nodes: int
    best: float | None

    @classmethod
    def of(cls, search: int, problem_id: str, grown: _Grown) -> "_Place":
        """Return a few numbers of what has grown: there may be a hundred thousand trees."""
        rounds = _complete(grown.rounds)
        best = max((best for _, best in rounds if best is not None), default=None)
        n_nodes = sum(n_nodes for n_nodes, _ in rounds)
        return cls(search, problem_id, tuple(grown.offsets), len(rounds), n_nodes, best)


class Trees:
    """The trees of the runs of ``archive``; with ``n_most``, the first so many of each search."""

    def __init__(self, archive: Archive, *, n_most: int | None = None) -> None:
        self._archive = archive
        self._searches = [(i, one) for i, run in enumerate(archive.runs) for one in run.searches]
        self._places: list[_Place] = []
        self.n_left_out = 0
        for index, (_, search) in enumerate(self._searches):
            places, n_others = _places(index, search.grown, n_most)
            self.n_left_out += n_others
            self._places += places
        self._pairs: dict[int, dict[str, set[_Pair]]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def lines(self) -> list[dict[str, Any]]:
        """Return a line per tree: where it grew, its problem, how many nodes and pairs it has."""
        return [self._line(i) for i in range(len(self))]

    def tree(self, number: int) -> bytes:
        """Return a tree as JSON: its problem, nodes with values, rollouts, and pairs."""
        place = self._places[number]
        run, _ = self._searches[place.search]
        rounds = [
            TreeRound.model_validate_json(orjson.dumps(stored))
            for stored in self._stored_rounds(place)
        ]
        tree = Tree(self._archive.runs[run].recipe.search or SearchSection(), rounds)
        expanded = defaultdict(list)
        for finished in rounds:
            expanded[finished.expanded].append(finished.number)
        nodes = [
            {
                "id": node.node_id,
                "parent": node.parent.node_id if node.parent else None,
                "name": node.turn.name if node.turn else "",
                "agent": node.turn.agent if node.turn else -1,
                "text": node.text,
                "answer": node.turn.answer if node.turn else None,
                "n_tokens": node.turn.n_tokens if node.turn else 0,
                "value": node.value,
                "n_rollouts": node.n_rollouts,
                "faults": node.faults,
                "rounds": expanded[node.node_id],
            }
            for node in tree.nodes
        ]
        rollouts = [
            {
                "n": rollout.n,
                "node": rollout.node_id,
                "stop_reason": rollout.stop_reason,
                "task": rollout.reward.task,
                "total": rollout.reward.total,
            }
            for finished in rounds
            for rollout in finished.rollouts
        ]
        problems = self._archive.problems
        index = problems.index_by_id.get(place.problem_id)
        return orjson.dumps(
            {
                "run": run,
                "problem": problems.read(index) if index is not None else None,
                "nodes": nodes,
                "rollouts": rollouts,
                "pairs": list(self._pair_lines(place, tree)),
            }
        )

    def _line(self, number: int) -> dict[str, Any]:
        place = self._places[number]
        run, search = self._searches[place.search]
        problems = self._archive.problems
        index = problems.index_by_id.get(place.problem_id)
        return {
            "run": run,
            "label": search.label,
            "problem": index,
            "title": problems.titles[index] if index is not None else place.problem_id,
            "rounds": place.n_rounds,
            "nodes": place.n_nodes,
            "best": place.best,
            "pairs": len(self._trained_on(place)),
        }

    def _stored_rounds(self, place: _Place) -> list[dict[str, Any]]:
        """Return the rounds of a tree in order, up to the first that is missing."""
        path = self._searches[place.search][1].grown
        lines = []
        with path.open("rb") as file:
            for offset in place.offsets:
                file.seek(offset)
                lines.append(parsed(file.readline(), path))
        rounds = lines[0]["rounds"] if path.name == TREES else lines
        return _complete({stored["number"]: stored for stored in rounds})

    def _pair_lines(self, place: _Place, tree: Tree) -> Iterator[dict[str, Any]]:
        """Yield every best and worst sibling, and whether the run trained on them."""
        trained = self._trained_on(place)
        for pair in sibling_pairs(tree, place.problem_id):
            id_by_text = {child.text: child.node_id for child in tree.nodes[pair.parent].children}
            yield {
                "parent": pair.parent,
                "chosen": id_by_text[pair.chosen.text],
                "rejected": id_by_text[pair.rejected.text],
                "is_trained": (pair.parent, digest(pair.chosen.text)) in trained,
            }

    def _trained_on(self, place: _Place) -> set[_Pair]:
        """Return which pairs of a tree were trained on; those of its search are read once."""
        if place.search not in self._pairs:
            shown = {one.problem_id for one in self._places if one.search == place.search}
            found: dict[str, set[_Pair]] = defaultdict(set)
            run, search = self._searches[place.search]
            if f"{search.label}/pairs" in self._archive.runs[run].metrics:
                for pair in self._archive.runs[run].pairs(search.label):
                    if pair.problem_id in shown:
                        found[pair.problem_id].add((pair.parent, digest(pair.chosen.text)))
            self._pairs[place.search] = found
        return self._pairs[place.search].get(place.problem_id, set())


def _complete(by_number: Mapping[int, T]) -> list[T]:
    """Return what is there of each round in order, up to the first that is missing."""
    return [by_number[number] for number in takewhile(by_number.__contains__, count())]


def _places(search: int, path: Path, n_most: int | None) -> tuple[list[_Place], int]:
    """Return the trees that a search has grown of the first problems, and how many others it has.

    Read in one pass; the lines of whole trees that are not shown are only counted.
    """
    found: dict[str, _Grown] = defaultdict(_Grown)
    places: list[_Place] = []
    others: set[str] = set()
    is_whole = path.name == TREES
    n_counted = 0
    for offset, line in raw_lines(path):
        is_full = n_most is not None and len(found) + len(places) >= n_most
        if is_full and is_whole:
            n_counted += 1
            continue
        record = parsed(line, path)
        if is_full and record["problem_id"] not in found:
            others.add(record["problem_id"])
            continue
        grown = found[record["problem_id"]]
        grown.offsets.append(offset)
        for finished in record["rounds"] if is_whole else (record,):
            totals = (rollout["reward"]["total"] for rollout in finished["rollouts"])
            best = max((total for total in totals if total is not None), default=None)
            grown.rounds[finished["number"]] = (len(finished["nodes"]), best)
        if is_whole:
            places.append(_Place.of(search, record["problem_id"], found.pop(record["problem_id"])))
    places += [_Place.of(search, key, grown) for key, grown in found.items()]
    return places, n_counted + len(others)
