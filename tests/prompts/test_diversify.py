"""New formats from a small local server that speaks chat completions."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from optima.errors import ServerError, UsageError
from optima.prompts.diversify import diversify
from optima.prompts.rendering import Format, load_formats

KEY = "a key"
PROPOSALS = (
    "- Draw a timeline with years left of a colon and events right of it.",
    "- Write musical notation where each note stands for one known entity.",
    "- Use only emoji for verbs and plain nouns for everything else.",
    "- Write chess moves, one square for each thing that you mention.",
)


class ChatServer:
    """Answers the k-th request with the k-th reply, the last one for ever after."""

    def __init__(self, replies: list[str | int | dict[str, object]]) -> None:
        self.replies = replies
        self.requests: list[dict[str, object]] = []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                index = min(len(chat.requests), len(chat.replies) - 1)
                chat.requests.append(body)
                reply = chat.replies[index]
                if self.headers["Authorization"] != f"Bearer {KEY}":
                    reply = 401
                if self.path != "/v1/chat/completions":
                    reply = 404
                status, answer = (reply, {"error": {"message": "no"}}), {}
                if isinstance(reply, str):
                    message = {"role": "assistant", "content": reply}
                    choice = {"index": 0, "message": message, "finish_reason": "stop"}
                    answer = {
                        "id": "1",
                        "object": "chat.completion",
                        "created": 0,
                        "model": body["model"],
                        "choices": [choice],
                    }
                if isinstance(reply, dict):
                    answer = reply
                data = json.dumps(answer or status[1]).encode()
                self.send_response(reply if isinstance(reply, int) else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


Serve = Callable[..., ChatServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[ChatServer] = []

    def start(*replies: str | int | dict[str, object]) -> ChatServer:
        started.append(ChatServer(list(replies)))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def ask(out_dir: Path, server: ChatServer, n: int, key: str = KEY) -> tuple[Format, ...]:
    return diversify(out_dir, n=n, model="m", base_url=server.url, api_key=key, seed=3)


def test_new_formats_are_written_one_file_each_and_can_be_loaded(
    tmp_path: Path, serve: Serve
) -> None:
    server = serve("\n".join(PROPOSALS[:2]), "\n".join(PROPOSALS[2:]))
    made = ask(tmp_path / "pool", server, 3)
    assert [found.text for found in made] == [text[2:] for text in PROPOSALS[:3]]
    assert len(server.requests) == 2
    assert {path.stem for path in (tmp_path / "pool").iterdir()} == {f.format_id for f in made}
    assert set(load_formats(tmp_path / "pool")) == {*load_formats(), *made}


def test_near_duplicates_of_the_pool_of_earlier_files_and_of_each_other_are_left_out(
    tmp_path: Path, serve: Serve
) -> None:
    (tmp_path / "own.txt").write_text(PROPOSALS[0][2:], encoding="utf-8")
    known = load_formats()[0].text
    reply = "\n".join([f"1. {known.upper()}", PROPOSALS[0], PROPOSALS[1], PROPOSALS[1] + "!"])
    made = ask(tmp_path, serve(reply, PROPOSALS[2]), 2)
    assert [found.text for found in made] == [PROPOSALS[1][2:], PROPOSALS[2][2:]]


def test_chatter_thoughts_and_fragments_of_a_reply_are_no_formats(
    tmp_path: Path, serve: Serve
) -> None:
    thoughts = f"<think>\n{PROPOSALS[3]}\n</think>"
    spoilt = f"{PROPOSALS[2]} \ud83d\n{PROPOSALS[2]}\x00"  # half a character, which JSON can hold
    reply = f"{thoughts}\nHere are some formats for you to use:\n- too short\n{spoilt}"
    reply += f"\n{PROPOSALS[0]}"
    made = ask(tmp_path, serve(reply), 1)
    assert [found.text for found in made] == [PROPOSALS[0][2:]]


def test_the_same_seed_sends_the_same_requests(tmp_path: Path, serve: Serve) -> None:
    servers = [serve(*PROPOSALS), serve(*PROPOSALS)]
    for index, server in enumerate(servers):
        ask(tmp_path / str(index), server, 2)
    assert servers[0].requests[0] == servers[1].requests[0]
    assert servers[0].requests[0]["seed"] != servers[0].requests[1]["seed"]


def test_a_model_that_repeats_itself_is_an_error_and_what_it_gave_is_kept(
    tmp_path: Path, serve: Serve
) -> None:
    server = serve(PROPOSALS[0])
    with pytest.raises(ServerError, match="only 1 new formats of 2 in 6 requests"):
        ask(tmp_path, server, 2)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_server_that_refuses_is_named(tmp_path: Path, serve: Serve) -> None:
    server = serve(PROPOSALS[0])
    with pytest.raises(ServerError, match=r"127\.0\.0\.1.*AuthenticationError"):
        ask(tmp_path, server, 1, key="wrong")


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"message": {"role": "assistant", "content": 17}}]},
        {"choices": [{"message": None}]},
        {"choices": 3},
        {"choices": ["text"]},
    ],
)
def test_an_answer_of_another_type_is_named(
    answer: dict[str, object], tmp_path: Path, serve: Serve
) -> None:
    with pytest.raises(ServerError, match="answered with no chat completion"):
        ask(tmp_path, serve(answer), 1)


def test_a_busy_server_is_asked_again(tmp_path: Path, serve: Serve) -> None:
    assert len(ask(tmp_path, serve(503, PROPOSALS[0]), 1)) == 1


def test_no_format_at_all_is_refused(tmp_path: Path, serve: Serve) -> None:
    with pytest.raises(UsageError, match="n=0"):
        ask(tmp_path, serve(PROPOSALS[0]), 0)
