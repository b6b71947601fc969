"""A stand-in for both Python environments: the same commands, none of the libraries.

``fake_environment`` makes a prefix whose ``bin/python`` runs fakes for the three commands that
need vLLM or torch and hands every other call to the interpreter of the tests.
"""

import json
import os
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def fake_environment(
    directory: Path,
    *,
    server: tuple[str, ...] = (),
    train_seconds: float = 0.0,
    train_fails: int = 0,
    score_dies_after: int | None = None,
    packages: tuple[str, ...] | None = None,
) -> "Environment":
    """Make a prefix in ``directory`` and return it as an environment.

    It says that it holds ``packages``, without them whatever it is asked for.

    ``server`` are further arguments of the fake server (see ``optima.serving.fake``), in which
    variables of its environment may stand. The first
    ``train_fails`` trainings fail. Commands are noted, a JSON line each, in ``commands.jsonl``.
    """
    from optima.processes.environment import Environment

    prefix = directory / "fake_env"
    python = prefix / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "server": server,
        "train_seconds": train_seconds,
        "train_fails": train_fails,
        "score_dies_after": score_dies_after,
        "notes": str(prefix),
        "packages": packages,
    }
    (prefix / "options.json").write_text(json.dumps(options))
    python.write_text(
        "#!/bin/sh\n"
        "export SSL_CERT_FILE=/dev/null\n"  # aiohttp reads all certificates when it is imported
        f'exec {sys.executable} -S {Path(__file__).resolve()} {prefix} "$@"\n'
    )
    python.chmod(0o755)
    return Environment(prefix=prefix, python=python)


def commands(environment: "Environment") -> list[list[str]]:
    """Return the arguments of every call of the environment's python so far."""
    path = environment.prefix / "commands.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def scored(environment: "Environment") -> list[tuple[str, str]]:
    """Return the (header, text) items whose losses the environment was asked for so far."""
    path = environment.prefix / "scored.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(item["header"], item["text"]) for line in lines for item in json.loads(line)]


def _serve(arguments: list[str], options: dict[str, object]) -> None:
    import site

    site.main()  # what started this left the installed packages out, as only servers need them
    from optima.serving.fake import main

    given: list[str] = options["server"]  # type: ignore[assignment]
    main([*arguments, *map(os.path.expandvars, given)])


def _stored(job: str, name: str) -> bytes:
    """Return a section of a job, compact, with its numbers as the job spells them.

    Models of releases were made up from these bytes.
    """
    section = json.loads(job, parse_float="<{}>".format)[name]
    text = json.dumps(section, separators=(",", ":"), ensure_ascii=False)
    return re.sub(r'"<([^"]*)>"', r"\1", text).encode() if section else b""


def _train(arguments: list[str], options: dict[str, object]) -> None:
    """Write what a training writes; the model is the start model with a few bytes of weights, or
    an adapter over it where the job asks for one."""
    import hashlib
    import shutil

    from optima.serving.made_up import token_logprobs

    text = Path(arguments[arguments.index("--job") + 1]).read_text()
    job = json.loads(text)
    failures = Path(str(options["notes"])) / "train_failures"
    n_failed = len(failures.read_text()) if failures.exists() else 0
    if n_failed < int(str(options["train_fails"])):
        failures.write_text("x" * (n_failed + 1))
        raise RuntimeError("the fake trainer fails as it was told")
    began = time.time()
    time.sleep(float(str(options["train_seconds"])))
    with (Path(str(options["notes"])) / "trained.jsonl").open("a") as notes:
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        note = {"folder": job["output_dir"], "gpus": gpus, "began": began, "ended": time.time()}
        notes.write(json.dumps(note) + "\n")
    if "--machine_rank" in arguments and arguments[arguments.index("--machine_rank") + 1] != "0":
        return  # the first machine writes
    rows = Path(job["rows_path"]).read_bytes()
    n_rows = len(rows.splitlines())
    eval_rows = job["eval_rows_path"]
    n_eval = len(Path(eval_rows).read_bytes().splitlines()) if eval_rows else 0
    output = Path(job["output_dir"])
    model = output / "model"
    model.mkdir(parents=True, exist_ok=True)
    base = Path(job["model"]["path"])
    is_adapter = (job["train"]["lora"] or {}).get("serve") == "adapter"
    start = Path(job["model"]["adapter"] or base)
    for path in sorted(start.iterdir()) if start.is_dir() else []:
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, model / path.name)
    old = sorted(start.glob("*.safetensors")) if start.is_dir() else []
    # The number format depends on the processor, what was made up from a job must not.
    section = _stored(text, "train").replace(b'"dtype":"bfloat16"', b'"dtype":"float32"')
    seed = b"".join(path.read_bytes()[:64] for path in old) + rows + section + _stored(text, "dpo")
    (model / "model.safetensors").write_bytes(hashlib.blake2b(seed, digest_size=64).digest())
    ref = {"path": str(model)}
    if is_adapter:
        ref = {"path": str(base), "adapter": str(model)}
        settings = {"base_model_name_or_path": str(base), "r": job["train"]["lora"]["rank"]}
        (model / "adapter_config.json").write_text(json.dumps(settings))
        (model / "config.json").unlink(missing_ok=True)
        (model / "model.safetensors").rename(model / "adapter_model.safetensors")
    first = json.loads(rows.splitlines()[0])
    ids = first.get("input_ids") or first["prompt_ids"] + first["chosen_ids"]
    after, before = (token_logprobs(folder, ids) for folder in (model, start))
    found = {"token_ids": ids, "trained": after, "start": before}
    (output / "logprobs.json").write_text(json.dumps(found))
    result = {
        "model": ref,
        "n_rows": n_rows,
        "n_eval_rows": n_eval,
        "n_dropped_rows": 0,
        "n_tokens": 100 * n_rows,
        "n_loss_tokens": 20 * n_rows,
        "n_steps": max(1, n_rows // job["train"]["batch_size"]),
        "train_loss": 1.0,
        "eval_loss": 1.5 if n_eval else None,
        "eval_loss_before": 2.0 if n_eval else None,
        "seconds": 1.0,
        "tokens_per_s": 100.0 * n_rows,
    }
    part = output / "result.json.part"
    part.write_text(json.dumps(result))
    part.replace(output / "result.json")


def _score(options: dict[str, object]) -> None:
    """Speak the scorer's protocol with losses in [1, 3) that depend on the text alone."""
    import hashlib

    dies_after = options["score_dies_after"]
    print(json.dumps({"ready": True}), flush=True)
    for n, line in enumerate(sys.stdin):
        if dies_after is not None and n >= int(str(dies_after)):
            os._exit(1)
        request = json.loads(line)
        with (Path(str(options["notes"])) / "scored.jsonl").open("a") as notes:
            notes.write(json.dumps(request.get("items", [])) + "\n")
        if "rows" in request:  # made up of each id, so that a test knows them
            found = [[index % 64 / 16 for index in row[1:]] for row in request["rows"]]
            print(json.dumps({"id": request["id"], "row_losses": found}), flush=True)
            continue
        losses = []
        for item in request["items"]:
            drawn = hashlib.blake2b(item["text"].encode(), digest_size=4).digest()
            losses.append(1 + 2 * int.from_bytes(drawn, "big") / 2**32 if item["text"] else None)
        print(json.dumps({"id": request["id"], "losses": losses}), flush=True)


def _main(prefix: Path, arguments: list[str]) -> None:
    options = json.loads((prefix / "options.json").read_text())
    with (prefix / "commands.jsonl").open("a") as notes:
        notes.write(json.dumps(arguments) + "\n")
    sys.path[:0] = [str(ROOT)]
    module = arguments[1] if arguments[:1] == ["-m"] else None
    if module == "vllm.entrypoints.openai.api_server":
        _serve(arguments[2:], options)
    elif module == "accelerate.commands.launch":
        _train(arguments, options)
    elif module == "optima.training.score":
        _score(options)
    elif arguments[0] == "-c" and "importlib.metadata" in arguments[1]:  # which versions are there
        there = [
            n for n in arguments[2:] if options["packages"] is None or n in options["packages"]
        ]
        print(json.dumps({"python": "3", **dict.fromkeys(there, "0")}))
    else:
        os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    sys.path.pop(0)  # this folder holds tests, not packages to import
    _main(Path(sys.argv[1]), sys.argv[2:])
else:
    from optima.processes.environment import Environment
