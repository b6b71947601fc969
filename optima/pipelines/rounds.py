"""The rounds of growing trees on disk: appended as they end, read again tree by tree.

Rounds of thousands of trees lie in one file in the order in which they ended. In memory are only
their places in it, so neither growing on nor gathering holds more than one tree.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from optima.records import atomic_writer, disk_errors, parse_record, repair_tail
from optima.types import TreeRound


class StoredRounds(Mapping[str, tuple[TreeRound, ...]]):
    """The rounds of each tree in their order, by problem id; read from ``path`` when asked for.

    A round that is there twice counts once, the first time. Raises StageError for a line that is
    no round.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, dict[int, int]] = defaultdict(dict)
        place = 0
        with path.open("rb") as file:
            for n, line in enumerate(file, start=1):
                finished = parse_record(line, TreeRound, f"{path}:{n}")
                self._places[finished.problem_id].setdefault(finished.number, place)
                place += len(line)

    def __getitem__(self, problem_id: str) -> tuple[TreeRound, ...]:
        places = self._places.get(problem_id)
        if places is None:
            raise KeyError(problem_id)
        rounds = []
        with self._path.open("rb") as file:
            for number in sorted(places):
                file.seek(places[number])
                rounds.append(TreeRound.model_validate_json(file.readline()))
        return tuple(rounds)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def n_rounds(self, problem_id: str) -> int:
        """Return how many rounds of a tree there are."""
        return len(self._places.get(problem_id, ()))


def keep_sound_rounds(path: Path, count_lost: Callable[[int], None]) -> StoredRounds:
    """Return the rounds that stand: of each tree those before the first failed or missing one.

    All others leave the file, and ``count_lost`` is told the tokens of each. A failed round is one
    with a failed rollout.
    """
    repair_tail(path)
    path.touch()
    stored = StoredRounds(path)
    with disk_errors(path), atomic_writer(path) as new:
        for rounds in stored.values():
            is_sound = True
            for number, finished in enumerate(rounds):
                is_sound = is_sound and finished.number == number and not has_failed(finished)
                if is_sound:
                    new.write(finished.model_dump_json() + "\n")
                else:
                    count_lost(finished.n_tokens)
    return StoredRounds(path)


def has_failed(finished: TreeRound) -> bool:
    """Tell whether a rollout of the round ended in an error."""
    return any(rollout.stop_reason == "error" for rollout in finished.rollouts)
