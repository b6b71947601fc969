"""One SFT and one DPO by every way to share GPUs, on the same rows: do they agree, how fast?

    python bench/training.py --model models/smollm2-135m-instruct
    python bench/training.py --model M --ways none --rows 8 --device cpu     # a rehearsal

Rows are scripted conversations of the built-in task; DPO prefers each of them to another problem's.
Prints a Markdown table; starting and loading are in ``wall`` and not in ``tokens/s``. All ways
train on the same rows in batches of one size: losses more than 5 % apart are exit status 1.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from optima.conversation.dialogue import Speaker
from optima.conversation.loading import load_codec
from optima.processes.devices import Devices, detect_devices
from optima.processes.environment import resolve_environment
from optima.prompts.rendering import PromptStyle
from optima.prompts.scripts import scripted_utterances
from optima.recipe.schema import (
    DataSection,
    DpoSection,
    LoraSection,
    ServingSection,
    TrainSection,
)
from optima.records import write_records
from optima.search.pairs import preference_row
from optima.stages.context import speakers_of
from optima.tasks import get_task
from optima.tasks.loading import load_problems
from optima.training.jobs import TrainJob, TrainResult
from optima.training.launch import run_training
from optima.trainset import conversation_rows
from optima.types import ModelRef, PreferencePair, PreferenceRow, TrainingRow, Turn

NAMES = ("Alice", "Bob")
TOLERANCE = 0.05  # of the loss of the first way; what rounding and the order of rows do is 1 %
Way = Literal["none", "ddp", "zero3", "fsdp"]
WAYS: tuple[Way, ...] = get_args(Way)


def make_rows(model: str, n: int) -> tuple[list[TrainingRow], list[PreferenceRow]]:
    """Return n SFT rows, and n preferences for a last utterance over another problem's."""
    codec, task = load_codec(model), get_task("two_hop")
    style = PromptStyle(task.setting, task.answer_style, NAMES)
    problems = load_problems(task, DataSection(n_train=n), "train", n_agents=2, seed=0).problems
    rows: list[TrainingRow] = []
    talks: list[tuple[Turn, ...]] = []
    speakers_N: list[tuple[Speaker, ...]] = []
    for problem in problems[:n]:
        texts = scripted_utterances(
            problem, answer_style=task.answer_style, names=NAMES,
            is_terse=False, seed=0,
        )  # fmt: skip
        turns = tuple(
            Turn(
                agent=i % 2, name=NAMES[i % 2], text=text, answer=None, n_prompt_tokens=0,
                n_tokens=0, finish_reason="stop", seconds=0.0,
            )
            for i, text in enumerate(texts)
        )  # fmt: skip
        talks.append(turns)
        speakers_N.append(speakers_of(style, (codec,) * len(NAMES), problem))
        rows += conversation_rows(problem.problem_id, 0, turns, speakers_N[-1])
    preferences = []
    for problem, turns, other, speakers in zip(
        problems, talks, talks[1:] + talks[:1], speakers_N, strict=False
    ):
        last = turns[-1]
        pair = PreferencePair(
            problem_id=problem.problem_id,
            parent=len(turns) - 1,
            history=turns[:-1],
            chosen=last,
            rejected=last.model_copy(update={"text": other[-1].text}),
            chosen_value=1.0,
            rejected_value=0.0,
        )
        preferences.append(preference_row(pair, speakers))
    return rows[:n], preferences


def train(
    kind: str, way: Way, options: argparse.Namespace, folder: Path, devices: Devices
) -> tuple[TrainResult, float]:
    section = TrainSection(
        learning_rate=1e-5, epochs=1.0, batch_size=options.batch_size, micro_batch_size=4,
        parallelism=way, gradient_checkpointing=False, batching="plain", max_length=1024,
        lora=LoraSection(rank=options.lora) if options.lora else None,
    )  # fmt: skip
    dpo = DpoSection(
        learning_rate=1e-5, batch_size=options.batch_size, micro_batch_size=4, max_length=1024
    )
    used = devices if way != "none" or devices.kind == "cpu" else Devices("cuda", devices.gpus[:1])
    job = TrainJob(
        model=ModelRef(path=str(Path(options.model).resolve())),
        rows_path=str(folder / f"{kind}.jsonl"),
        output_dir=str(folder / f"{kind}_{way}"),
        train=section,
        dpo=dpo if kind == "dpo" else None,
        seed=0,
        device=used.kind,
    )
    started = time.perf_counter()
    result = run_training(
        job,
        env=resolve_environment(options.train_env, "train"),
        devices=used,
        log_path=folder / f"{kind}_{way}.log",
    )
    return result, time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--kinds", default="sft,dpo")
    parser.add_argument("--lora", type=int, help="rank; default: full fine-tuning")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--train-env")
    options = parser.parse_args(argv)
    devices = detect_devices(ServingSection(device=options.device))
    sft_rows, dpo_rows = make_rows(options.model, options.rows)
    print("| training | GPUs shared by | steps | loss | tokens/s | wall |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_records(folder / "sft.jsonl", sft_rows)
        write_records(folder / "dpo.jsonl", dpo_rows)
        for kind in options.kinds.split(","):
            losses = []
            for way in options.ways.split(","):
                result, wall = train(kind, way, options, folder, devices)
                print(
                    f"| {kind} | {way} | {result.n_steps} | {result.train_loss:.4f} "
                    f"| {result.tokens_per_s:,.0f} | {wall:.0f} s |",
                    flush=True,
                )
                losses.append(result.train_loss)
            if any(abs(loss / losses[0] - 1) > TOLERANCE for loss in losses):
                sys.exit(f"{kind}: the losses differ by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
