"""A completion server that takes no time: it answers with one of many made-up utterances at once.

``python -m bench.instant --port 8123 --model models/smollm2-135m-instruct``

It reads of a request no more than its length and its seed, and has its answers ready as bytes, so
that what a benchmark measures is the side that asks. The utterances are 32,768 different ones of up
to 20 words. Two of three mark one of four answers, so that conversations end after some turns; the
ids are those of the model's tokenizer.
"""

import argparse
import asyncio
import random
import re
from pathlib import Path

import orjson

from optima.conversation.loading import load_codec

N_ANSWERS = 32_768
WORDS = ("so", "the", "lamp", "Ada", "gave", "is", "in", "Riga", "or", "Lyon", "we", "both", "know")
CITIES = ("Riga", "Lyon", "Oslo", "Graz")
N_PROMPT_TOKENS = 400
_LENGTH = re.compile(rb"[Cc]ontent-[Ll]ength: *(\d+)")
_SEED = re.compile(rb'"seed":(\d+)')


def make_answers(model: str) -> list[bytes]:
    """Return whole HTTP answers of one completion each."""
    codec, generator = load_codec(model), random.Random(0)
    answers = []
    for index in range(N_ANSWERS):
        said = generator.choices(WORDS, k=generator.randrange(16))
        marked = f"it is <A>{generator.choice(CITIES)}</A>." if index % 3 else "do you know?"
        text = " ".join(["", *said, f"by note {index}", marked])
        ids = [*codec.encoder.encode_once(text), codec.end_token]
        choice = {"index": 0, "text": text, "finish_reason": "stop", "token_ids": ids}
        usage = {"prompt_tokens": N_PROMPT_TOKENS, "completion_tokens": len(ids)}
        body = orjson.dumps({"id": "cmpl", "choices": [choice], "usage": usage})
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        answers.append(head % len(body) + body)
    return answers


class InstantServer(asyncio.Protocol):
    """One connection."""

    def __init__(self, answers: list[bytes]) -> None:
        self._answers, self._received = answers, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request once it is whole; a GET asks whether the server is there."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._received, 0, end)
        if len(self._received) < end + 4 + (int(length[1]) if length else 0):
            return
        seed = _SEED.search(self._received, end)
        self._transport.write(self._answers[int(seed[1]) % N_ANSWERS if seed else 0])
        self._received = b""


async def serve(answers: list[bytes], port: int) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: InstantServer(answers), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


def main() -> None:
    """Make the answers and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    asyncio.run(serve(make_answers(str(options.model)), options.port))


if __name__ == "__main__":
    main()
