"""Worker that computes losses under one model; runs in the training environment.

``python -m optima.training.score --model M --device cpu|cuda:0 --batch-tokens N``. After a line
``{"ready": true}`` it answers each line ``{"id": 0, "items": [{"header": …, "text": …}]}`` on
standard input with ``{"id": 0, "losses": […]}``: nats per token of ``text`` after ``header``,
null where the text is empty or the loss is not finite; ``{"id": 0, "error": …}`` if it cannot.
A line ``{"id": 0, "rows": [[…]]}`` of token ids is answered with ``{"id": 0, "row_losses":
[[…]]}``: the loss of every token of a row after its first, in nats, null where it is not finite.

Texts are sorted by length and padded to batches of at most N tokens. The output layer, which is
wide and most of the work for a small model, is applied to the text's positions only, in chunks.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

CHUNK_LOGITS = 2**26  # logits held at once: 256 MiB in float32


@dataclass(frozen=True)
class Encoded:
    """Token ids of item ``index``, header and text; the text begins at token ``first``."""

    index: int
    ids: tuple[int, ...]
    first: int


def encode(tokenizer: Any, items: Sequence[tuple[str, str]]) -> list[Encoded]:
    """Tokenise each header and text as one string; items without scorable tokens are left out.

    A token counts to the text when it reaches beyond the header. The first token of a sequence
    is predicted from nothing and never counts.
    """
    wholes = [header + text for header, text in items]
    if not wholes:
        return []
    batch = tokenizer(wholes, add_special_tokens=False, return_offsets_mapping=True)
    encoded = []
    rows = zip(items, batch["input_ids"], batch["offset_mapping"], strict=True)
    for index, ((header, text), ids, offsets) in enumerate(rows):
        begin = len(header)
        first = next((at for at, (_, end) in enumerate(offsets) if end > begin), len(ids))
        first = max(first, 1)
        if text and first < len(ids):
            encoded.append(Encoded(index, tuple(ids), first))
    return encoded


def batches(encoded: Sequence[Encoded], max_tokens: int) -> Iterator[list[Encoded]]:
    """Yield groups of similar length, longest first, each of at most ``max_tokens`` padded."""
    ordered = sorted(encoded, key=lambda item: (-len(item.ids), item.index))
    group: list[Encoded] = []
    for item in ordered:
        if group and (len(group) + 1) * len(group[0].ids) > max_tokens:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


class Scorer:
    """A model that computes losses; ``device`` as torch names it."""

    def __init__(
        self, model: str, *, device: str, dtype: torch.dtype, adapter: str | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        self._device = torch.device(device)
        self._tokenizer = AutoTokenizer.from_pretrained(model, **options)
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **options)
        if adapter is not None:
            from peft import PeftModel  # takes seconds, which R_loss need not wait for

            loaded = PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
        self._model = loaded.to(self._device).eval()
        self._head = self._model.get_output_embeddings()
        self._backbone = self._model.base_model
        self._scale = _logit_transform(self._model.config.get_text_config())

    @torch.inference_mode()
    def losses(self, items: Sequence[tuple[str, str]], batch_tokens: int) -> list[float | None]:
        """Return the mean loss of each text given its header, in the order of ``items``."""
        losses: list[float | None] = [None] * len(items)
        pending: list[tuple[list[Encoded], torch.Tensor]] = []
        for group in batches(encode(self._tokenizer, items), batch_tokens):
            pending.append((group, self._group_losses(group)))
        for group, means in pending:  # read at the end: the device need not wait for the host
            for item, mean in zip(group, means.tolist(), strict=True):
                losses[item.index] = mean if math.isfinite(mean) else None
        return losses

    @torch.inference_mode()
    def row_losses(self, rows: Sequence[Sequence[int]]) -> list[list[float | None]]:
        """Return the loss of every token after the first of each row, one forward a row."""
        losses: list[list[float | None]] = []
        for row in rows:
            ids = torch.tensor(row, dtype=torch.long, device=self._device)
            hidden = self._backbone(input_ids=ids[None], use_cache=False)[0][0]
            each = self._token_losses(hidden[:-1], ids[1:]).tolist()
            losses.append([one if math.isfinite(one) else None for one in each])
        return losses

    def _group_losses(self, group: Sequence[Encoded]) -> torch.Tensor:
        """Mean loss of each row of a batch [B]."""
        width = len(group[0].ids)
        ids = torch.zeros((len(group), width), dtype=torch.long)
        is_real = torch.zeros((len(group), width), dtype=torch.long)
        is_text = torch.zeros((len(group), width), dtype=torch.bool)
        for row, item in enumerate(group):
            n = len(item.ids)
            ids[row, :n] = torch.tensor(item.ids)
            is_real[row, :n] = 1
            is_text[row, item.first : n] = True
        row_of_token = is_text.nonzero()[:, 0].to(self._device)
        before = is_text.roll(-1, 1).flatten().nonzero()[:, 0].to(self._device)  # first is never 0
        targets = ids[is_text].to(self._device)
        is_padded = len(group[-1].ids) != width
        hidden = self._backbone(
            input_ids=ids.to(self._device),
            attention_mask=is_real.to(self._device) if is_padded else None,
            use_cache=False,
        )[0]
        needed = hidden.flatten(0, 1).index_select(0, before)
        losses = self._token_losses(needed, targets)
        sums = torch.zeros(len(group), dtype=torch.float32, device=self._device)
        sums.index_add_(0, row_of_token, losses)
        counts = torch.bincount(row_of_token, minlength=len(group))
        return sums / counts

    def _token_losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihood of each target [T] after its hidden state [T, H]."""
        n_chunk = max(1, CHUNK_LOGITS // self._head.weight.shape[0])
        parts = []
        for at in range(0, len(targets), n_chunk):
            logits = self._scale(self._head(hidden[at : at + n_chunk])).float()
            parts.append(
                functional.cross_entropy(logits, targets[at : at + n_chunk], reduction="none")
            )
        return torch.cat(parts)


def _logit_transform(config: Any) -> Any:
    """Return what some families do to logits between the output layer and the softmax."""
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
    scale = getattr(config, "logit_scale", None)  # Cohere
    divisor = getattr(config, "logits_scaling", None)  # Granite

    def transform(logits: torch.Tensor) -> torch.Tensor:
        if scale is not None:
            logits = logits * scale
        if divisor is not None:
            logits = logits / divisor
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return transform


def _serve(scorer: Scorer, batch_tokens: int, out: Any) -> None:
    def answer(record: dict[str, Any]) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    answer({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "rows" in request:
                answer({"id": request["id"], "row_losses": scorer.row_losses(request["rows"])})
                continue
            items = [(item["header"], item["text"]) for item in request["items"]]
            answer({"id": request["id"], "losses": scorer.losses(items, batch_tokens)})
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            answer(
                {
                    "id": request["id"],
                    "error": f"out of GPU memory with batches of {batch_tokens} tokens; lower "
                    "serving.scorer_batch_tokens",
                }
            )


def main() -> int:
    """Serve requests until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", help="directory of a LoRA adapter over the model")
    parser.add_argument("--revision")
    parser.add_argument("--device", required=True, help="cpu, cuda or cuda:0")
    parser.add_argument("--batch-tokens", type=int, required=True)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    options = parser.parse_args()
    # Whatever libraries print must not get between the answers.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    dtype = torch.float32 if options.dtype == "float32" else torch.bfloat16
    scorer = Scorer(
        options.model,
        device=options.device,
        dtype=dtype,
        adapter=options.adapter,
        revision=options.revision,
        trust_remote_code=options.trust_remote_code,
    )
    _serve(scorer, options.batch_tokens, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
