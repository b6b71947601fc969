"""Rules over several fields of a recipe; each raises ValueError: ``key: what is wrong; remedy``.

The key is that of one of the fields, relative to the section that is checked.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optima.recipe.schema import AgentsSection, DataSection, Recipe, ServingSection

_URL = re.compile(r"https?://[^/\s]+(/\S*)?")


def check_data(data: "DataSection") -> None:
    """Rows come from one place."""
    for name in ("train_file", "test_file"):
        if getattr(data, name) is not None and data.path is None:
            raise ValueError(f"{name}: is looked for below path, which is not set; set path")
    for name in ("hub_id", "hub_revision"):
        if getattr(data, name) is not None and data.path is not None:
            raise ValueError(f"{name}: contradicts path={data.path}; remove one of them")


def check_agents(agents: "AgentsSection") -> None:
    """Agents have names that a conversation can tell apart."""
    if not agents.names:
        raise ValueError("names: [] has nobody who could speak; name one agent or more")
    if len(set(agents.names)) != len(agents.names):
        shown = ", ".join(agents.names)
        raise ValueError(f"names: [{shown}] must differ from each other; rename one")
    for name in agents.names:
        if not name.isidentifier():
            raise ValueError(
                f"names: {name!r} must be a single word of letters and digits; rename it"
            )


def check_serving(serving: "ServingSection") -> None:
    """Endpoints are addresses, and GPUs make whole groups."""
    for endpoint in serving.endpoints:
        if not _URL.fullmatch(endpoint):
            raise ValueError(f"endpoints: {endpoint!r} must be a URL; write http://host:port")
    group = serving.tensor_parallel
    if serving.gpus is not None and len(serving.gpus) % group:
        raise ValueError(
            f"gpus: {list(serving.gpus)} must be a multiple of tensor_parallel={group} GPUs; "
            "list more or fewer"
        )


def check_recipe(recipe: "Recipe", needed: frozenset[str]) -> None:
    """The method has the sections it needs (``needed`` of search, pairs, dpo) and no others."""
    for name in ("search", "pairs", "dpo"):
        if getattr(recipe, name) is not None and name not in needed:
            raise ValueError(f"{name}: contradicts method={recipe.method}; remove the section")
        if getattr(recipe, name) is None and name in needed:
            raise ValueError(f"{name}: is missing, method={recipe.method} needs it; add it")
    if recipe.initialise is not None and recipe.method != "dpo":
        raise ValueError(f"initialise: contradicts method={recipe.method}; remove it")
    if len(recipe.agents.names) == 1 and recipe.method != "sft":
        raise ValueError(
            "agents.names: has one agent, which makes no dialogue: method must be sft; name two"
        )
    most, window = recipe.conversation.max_turn_tokens, recipe.model.max_model_len
    if window is not None and most >= window:
        raise ValueError(
            f"conversation.max_turn_tokens: {most} leaves no room for a prompt in "
            f"model.max_model_len={window}; lower it"
        )
