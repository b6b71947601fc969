"""Rules over several fields of a recipe; each raises ValueError: ``key: what is wrong; remedy``.

The key is that of one of the fields, relative to the section that is checked.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optima.recipe.data import DataSection
    from optima.recipe.schema import (
        AgentsSection,
        LoraSection,
        Recipe,
        SamplingSection,
        SelectSection,
        ServingSection,
    )
    from optima.recipe.section import Section

MAX_SERVED_RANK = 512  # of vLLM
_URL = re.compile(r"https?://([^/\s?#@:\[\]]+|\[[^/\s\]]+\])(:(?P<port>\d{1,5}))?(/[^\s?#]*)?")
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")  # what stands before "=", a space or a "."
_SECOND = re.compile(r"^[^{\[\"']*\s--[A-Za-z]")  # another option, and not inside of JSON
_ROUTE = re.compile(r"/v1/.+|/(health|metrics|completions)$")
# Options of a vLLM server that are set for it, and what says the same in a recipe. An abbreviation
# counts as well: the server's parser takes it. Each is refused, with what to do instead.
_OWN_OPTIONS = {
    "--model": "set model.path",
    "--tokenizer": "set model.tokenizer",
    "--revision": "set model.revision",
    "--dtype": "set model.dtype",
    "--max-model-len": "set model.max_model_len",
    "--trust-remote-code": "set model.trust_remote_code",
    "--port": "set serving.port",
    "--max-num-seqs": "set serving.max_num_seqs",
    "--gpu-memory-utilization": "set serving.gpu_memory_utilization",
    "--tensor-parallel-size": "set serving.tensor_parallel",
    "-tp": "set serving.tensor_parallel",
    "--enforce-eager": "set serving.enforce_eager",
    "--generation-config": "set sampling.temperature and sampling.top_p",
    "--override-generation-config": "set sampling.temperature and sampling.top_p",
    "--enable-lora": "set train.lora",
    "--max-loras": "set train.lora",
    "--max-lora-rank": "set train.lora.rank",
    "--lora-modules": "set train.lora",
    "--served-model-name": "remove it: servers are asked by a name of our own",
    "--host": "remove it: servers listen on 127.0.0.1 only; others stand in serving.endpoints",
    "--api-key": "remove it: each start draws a key of its own",
    "--uds": "remove it: servers are asked over 127.0.0.1",
    "--ssl-keyfile": "remove it: servers are asked over 127.0.0.1, without TLS",
    "--ssl-certfile": "remove it: servers are asked over 127.0.0.1, without TLS",
    "--headless": "remove it: every server answers requests",
    "--config": "write the file's options here, one element each",
}


def check_texts(section: "Section") -> None:
    """A text that is given says something; leaving it out is how to say nothing."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, str) and not value.strip():
            raise ValueError(f'{name}: is the empty text "{value}"; give it a value or remove it')


def check_data(data: "DataSection") -> None:
    """Rows come from one place."""
    for name in ("train_file", "test_file"):
        if getattr(data, name) is not None and data.path is None:
            raise ValueError(f"{name}: is looked for below path, which is not set; set path")
    for name in ("hub_id", "hub_revision", "hub_configs", "train_split", "test_split"):
        if getattr(data, name) is not None and data.path is not None:
            raise ValueError(f"{name}: contradicts path={data.path}; remove one of them")


def check_sampling(sampling: "SamplingSection") -> None:
    """Formats of one's own are drawn from."""
    if sampling.format_pool_path is not None and not sampling.format_pool:
        raise ValueError(
            "format_pool_path: is read by nothing while format_pool=False; remove one of them"
        )


def check_lora(lora: "LoraSection") -> None:
    """An adapter that is served as it is has a rank that servers take."""
    if lora.serve == "adapter" and lora.rank > MAX_SERVED_RANK:
        raise ValueError(
            f"rank: {lora.rank} is above {MAX_SERVED_RANK}, the most that servers take of an "
            "adapter; lower it, or write serve: merged"
        )


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
                f"names: {name!r} must be one word that begins with a letter; rename it"
            )


def check_select(select: "SelectSection") -> None:
    """A range of ranks is kept, and it is large enough for the least share."""
    if select.keep_from >= select.keep_to:
        raise ValueError(
            f"keep_from: {select.keep_from} must be less than keep_to={select.keep_to}; lower it"
        )
    if select.min_share > select.keep_to - select.keep_from:
        raise ValueError(
            f"min_share: {select.min_share} is more than is kept from keep_from={select.keep_from} "
            f"to keep_to={select.keep_to}, so every run would stop; lower it"
        )


def check_serving(serving: "ServingSection") -> None:
    """Endpoints are addresses, further options are not ours, and GPUs make whole groups."""
    for endpoint in serving.endpoints:
        _check_endpoint(endpoint)
    _check_extra_args(serving.extra_args)
    group = serving.tensor_parallel
    if serving.gpus is not None and len(serving.gpus) % group:
        raise ValueError(
            f"gpus: {list(serving.gpus)} must be a multiple of tensor_parallel={group} GPUs; "
            "list more or fewer"
        )


def _check_endpoint(endpoint: str) -> None:
    if "@" in endpoint:
        raise ValueError(
            "endpoints: a password in a URL would stand in recipes and logs; write "
            "http://host:port and set OPTIMA_API_KEY"
        )
    url = _URL.fullmatch(endpoint)
    if url is None or not 0 < int(url["port"] or 80) < 2**16:
        raise ValueError(f"endpoints: {endpoint!r} must be a URL; write http://host:port")
    if _ROUTE.search(endpoint):
        raise ValueError(
            f"endpoints: {endpoint!r} names a route; write what stands before it, http://host:port"
        )


def _check_extra_args(arguments: "tuple[str, ...]") -> None:
    """Each element is one word of a command line, and none sets what a field sets."""
    if arguments and not arguments[0].startswith("-"):
        raise ValueError(
            f"extra_args: {arguments[0]!r} follows no option; write --option before its value"
        )
    for argument in arguments:
        if not argument or "\0" in argument:
            raise ValueError(f"extra_args: {argument!r} is no argument; remove it")
        option = _OPTION.match(argument)
        name = option[0].replace("_", "-").replace("--no-", "--", 1) if option else "a value"
        own = next((own for own in _OWN_OPTIONS if own.startswith(name)), None)
        if own is not None:
            raise ValueError(f"extra_args: {argument!r} sets {own}; {_OWN_OPTIONS[own]}")
        is_joined = option is not None and argument[option.end() :][:1].isspace()
        if is_joined or _SECOND.search(argument):
            words = ", ".join(argument.split())
            raise ValueError(
                f"extra_args: {argument!r} holds more than one argument; write one element each: "
                f"[{words}]"
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
    if recipe.method == "dpo" and recipe.initialise is not False and recipe.iterations == 1:
        raise ValueError(
            "iterations: 1 is the SFT that initialises a dpo run and leaves none of preferences; "
            "write 2 or more, or initialise: false"
        )
    if recipe.method == "dpo":
        _check_unread(recipe)
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


def _check_unread(recipe: "Recipe") -> None:
    """Refuse what an iDPO run has no use for."""
    train = recipe.train
    if train.start != "auto":
        raise ValueError(
            f"train.start: {train.start} is not read with method=dpo, whose iterations each go on "
            "from the last; remove it"
        )
    has_sft = recipe.initialise is not False or recipe.cold_start is not None
    if train.batching != "length_grouped" and not has_sft:
        raise ValueError(
            f"train.batching: {train.batching} is of SFT, of which there is none with "
            "initialise=false and no cold_start; remove it: pairs are trained on as they come"
        )
