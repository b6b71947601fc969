"""The built-in task: a two-hop question whose facts lie with different agents.

    In which city does the owner of the red lamp live?
    Alice is told:  The red lamp belongs to Ada. The old boat belongs to Emil. ...
    Bob is told:    Emil lives in Oslo. Ada lives in Rome. ...                    (answer: Rome)

One agent is told who owns which thing, another who lives in which city; only together can they say
in which city the owner of a thing lives. Problems are drawn from the seed, no files are read. An
owner and a thing belong together in the train split or in the test split, never in both, whatever
the seed, so nothing can be remembered from training. Not in the paper; see docs/results.md.
"""

import random
from collections.abc import Iterator
from itertools import product

from optima.errors import UsageError
from optima.seeding import derive_seed, digest, rng
from optima.tasks.dealing import Dealing
from optima.tasks.metrics import F1
from optima.tasks.task import Task
from optima.types import Fact, Problem

N_TRAIN = 2000  # problems of a split, or more when the recipe asks for more
N_TEST = 200
N_FACTS = 4  # facts per agent: the one that matters and three that do not
TEST_SHARE = 5  # one in so many pairs of owner and thing belongs to the test split
MAX_PROBLEMS = {"train": 20_000, "test": 5_000}  # of about 35,800 and 9,000 pairs

# No name here starts an utterance: the names of agents are kept out.
PEOPLE = (
    *("Ada", "Amir", "Anya", "Boris", "Carla", "Chloe", "Cyrus", "Diego", "Dora", "Edgar"),
    *("Elena", "Emil", "Farah", "Felix", "Fiona", "Gina", "Gustav", "Hana", "Hector", "Hugo"),
    *("Ida", "Igor", "Ines", "Iris", "Ivan", "Jonas", "Julia", "Karim", "Karl", "Kira"),
    *("Lara", "Leon", "Lina", "Louis", "Lucia", "Magda", "Marco", "Maya", "Mina", "Nadia"),
    *("Nils", "Nina", "Nora", "Olga", "Omar", "Oscar", "Paula", "Pedro", "Petra", "Rafael"),
    *("Rita", "Rosa", "Ruben", "Samir", "Sara", "Simon", "Stella", "Tanya", "Theo", "Tina"),
    *("Tomas", "Ulla", "Vera", "Viktor", "Wanda", "Willa", "Xenia", "Yara", "Yusuf", "Zoe"),
)
CITIES = (
    *("Athens", "Austin", "Baghdad", "Bangkok", "Beirut", "Bergen", "Berlin", "Bern", "Bogota"),
    *("Boston", "Brussels", "Budapest", "Cairo", "Calgary", "Chicago", "Copenhagen", "Dakar"),
    *("Dallas", "Delhi", "Denver", "Dresden", "Dublin", "Durban", "Florence", "Geneva", "Genoa"),
    *("Glasgow", "Hamburg", "Hanoi", "Havana", "Helsinki", "Istanbul", "Jakarta", "Kyoto"),
    *("Lagos", "Leeds", "Lima", "Lisbon", "London", "Lyon", "Madrid", "Manila", "Melbourne"),
    *("Miami", "Milan", "Montreal", "Moscow", "Mumbai", "Munich", "Nairobi", "Naples", "Osaka"),
    *("Oslo", "Oxford", "Paris", "Porto", "Prague", "Quito", "Riga", "Rome", "Seattle"),
    *("Seoul", "Seville", "Sofia", "Sydney", "Tokyo", "Toronto", "Tunis", "Turin", "Venice"),
    *("Vienna", "Warsaw", "Zagreb", "Zurich"),
)
LOOKS = (
    *("red", "blue", "green", "yellow", "white", "black", "brown", "pink", "silver", "golden"),
    *("old", "new", "small", "large", "round", "broken"),
)
THINGS = (
    *("lamp", "violin", "bicycle", "clock", "mirror", "boat", "camera", "piano", "guitar", "drum"),
    *("kettle", "basket", "carpet", "chair", "table", "vase", "statue", "ring", "watch", "coat"),
    *("hat", "umbrella", "kite", "tent", "truck", "wagon", "ladder", "hammer", "candle", "box"),
    *("bottle", "cup", "plate", "knife", "map", "globe", "book", "radio", "telescope", "doll"),
)


def generate(split: str, n_problems: int | None, dealing: Dealing) -> Iterator[Problem]:
    """Yield the problems of a split, all different; a longer split begins like a shorter one."""
    # At least the default, so that iterations and a cold start draw from more than they take.
    n_problems = max(n_problems or 0, N_TRAIN if split == "train" else N_TEST)
    if n_problems > MAX_PROBLEMS[split]:
        raise UsageError(
            f"data.n_{split}: {n_problems} is more than the {MAX_PROBLEMS[split]} problems that "
            "two_hop can make; ask for fewer"
        )
    generator = rng(dealing.seed, "two_hop", split)
    seen: set[tuple[str, str]] = set()
    items = [f"{look} {thing}" for look, thing in product(LOOKS, THINGS)]
    while len(seen) < n_problems:
        pair = generator.choice(PEOPLE), generator.choice(items)
        if pair in seen or _split_of(*pair) != split:
            continue
        seen.add(pair)
        yield _problem(*pair, items, dealing)


def _split_of(owner: str, item: str) -> str:
    share = derive_seed("two_hop", "split", owner, item) % TEST_SHARE
    return "test" if share == 0 else "train"


def _problem(owner: str, item: str, items: list[str], dealing: Dealing) -> Problem:
    """Return the problem about one owner and thing; all else is drawn from its own name."""
    generator = rng(dealing.seed, "two_hop", "problem", owner, item)
    people = [owner, *_others(generator, PEOPLE, owner)]
    things = [item, *_others(generator, items, item)]
    cities = generator.sample(CITIES, N_FACTS)
    owns = [f"The {thing} belongs to {p}." for p, thing in zip(people, things, strict=True)]
    lives = [f"{p} lives in {city}." for p, city in zip(people, cities, strict=True)]
    # The first speaker holds the first hop, so that a short talk can be a sound one.
    facts = {0: owns, 1: lives}
    for agent in range(2, dealing.n_agents):  # who holds no hop is told about other people only
        strangers = generator.sample([p for p in PEOPLE if p not in people], N_FACTS)
        homes = generator.sample([city for city in CITIES if city not in cities], N_FACTS)
        facts[agent] = [f"{p} lives in {c}." for p, c in zip(strangers, homes, strict=True)]
    needed = {0: owns[0], 1: lives[0]}
    contexts = tuple(
        _told(generator.sample(facts[agent], N_FACTS), needed.get(agent), dealing)
        for agent in range(dealing.n_agents)
    )
    question = f"In which city does the owner of the {item} live?"
    return Problem(
        problem_id=f"two_hop-{digest(question, *owns, *lives)}",
        task="two_hop",
        question=question,
        golds=(cities[0],),
        contexts=contexts,
        evidence=(Fact(agent=0, text=owns[0]), Fact(agent=1, text=lives[0])),
    )


def _told(facts: list[str], needed: str | None, dealing: Dealing) -> str:
    """Return what an agent is told, without the last facts that are too many words and no need."""
    limit = dealing.max_context_words
    spare = [fact for fact in facts if fact != (needed or facts[0])]
    while limit is not None and spare and len(" ".join(facts).split()) > limit:
        facts.remove(spare.pop())
    return " ".join(facts)


def _others(generator: random.Random, values: tuple[str, ...] | list[str], taken: str) -> list[str]:
    place = values.index(taken)
    drawn = generator.sample(range(len(values) - 1), N_FACTS - 1)
    return [values[k + (k >= place)] for k in drawn]


TASK = Task(
    name="two_hop",
    title="Two-hop ownership (built in)",
    setting="information_exchange",
    answer_style="tag",
    metric=F1,
    has_evidence=True,
    generate=generate,
    reads=frozenset({"data.max_context_words"}),
)
