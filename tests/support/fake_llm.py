"""A provider on loopback that OpenCode talks to: OpenAI chat completions as server-sent events, scripted.

The last user message that holds `[[script:NAME]]` or `[[script:NAME:ARGUMENT]]` picks the script; the number of
assistant messages after it picks the step. Without one the answer is a plain line.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HELLO = "Hello from the fake model. All good."
USAGE = {
    "prompt_tokens": 1000,
    "completion_tokens": 50,
    "total_tokens": 1050,
    "prompt_tokens_details": {"cached_tokens": 600},
    "completion_tokens_details": {"reasoning_tokens": 10},
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One LLM call: text and tool calls, or an HTTP error."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, dict[str, str]], ...] = ()
    delay_s: float = 0.0
    """Between two words."""
    status: int = 200


def bash(command: str) -> tuple[str, dict[str, str]]:
    return "bash", {"command": command, "description": "a command"}


def task(prompt: str) -> tuple[str, dict[str, str]]:
    return "task", {"description": "Look around", "prompt": prompt, "subagent_type": "general"}


def wait_for(path: str) -> str:
    """A command that ends when the file is there, or when nobody can make it any more."""
    return f"until [ -e {path} ] || [ ! -d $(dirname {path}) ]; do sleep 0.1; done"


def steps_of(name: str, argument: str) -> tuple[Answer, ...]:
    """The steps of a script, in order; the last one repeats."""
    number = int(argument) if argument.isdigit() else 0
    scripts: dict[str, tuple[Answer, ...]] = {
        "hello": (Answer(HELLO),),
        "second": (Answer("Second answer: I remember the first turn."),),
        "tools": (
            Answer("Let me look.", calls=(bash("echo hi-from-bash && ls"),)),
            Answer(calls=(bash("echo oops >&2; exit 3"),)),
            Answer(calls=(("read", {"filePath": argument or "README.md"}),)),
            Answer(calls=(("read", {"filePath": "missing.txt"}),)),
            Answer("Done: one worked, one failed, one read, one missing."),
        ),
        "parallel": (Answer(calls=(bash("echo one"), bash("echo two"))), Answer("Both calls finished.")),
        "task": (
            Answer("I will delegate.", calls=(task("[[script:sub]] look around"),)),
            Answer("The subagent is done."),
        ),
        "sub": (Answer(calls=(bash("echo inside-subagent"),)), Answer("Subagent report: nothing strange.")),
        "reason": (Answer("The answer is 42.", reasoning="Let me think. Six times seven."),),
        "unicode": (Answer("Grüße 🌍 日本語 \u202eRTL\u202c zero\u200bwidth 👨‍👩‍👧‍👦 line\u2028separator."),),
        "big_tool": (Answer(calls=(bash("yes xxxxxxxxxxxxxxxxxxx | head -c 1000000"),)), Answer("That was a lot.")),
        "long": (Answer("x" * (number or 1)),),
        "slow": (Answer("word " * (number or 200), delay_s=0.05),),
        "slowtool": (Answer(calls=(bash("sleep 20; echo end"),)), Answer("ok")),
        # A tool that ends when somebody makes this file.
        "await": (Answer(calls=(bash(wait_for(argument)),)), Answer("It is there.")),
        "http401": (Answer("Incorrect API key provided", status=401),),
    }
    return scripts.get(name, (Answer(f"no script {name}"),))


def choose(body: dict[str, Any]) -> Answer:
    """The answer to a request for a completion."""
    messages: list[dict[str, Any]] = body.get("messages", [])
    system = "\n".join(text_of(message) for message in messages if message["role"] == "system").lower()
    if "title generator" in system or "generate a title" in system:
        return Answer("A Fake Generated Title")
    if "context summarization" in system or "summarizing conversations" in system:
        return Answer("## Summary\n- The user said hello; the fake model answered.\n")
    for index in range(len(messages) - 1, -1, -1):
        found = re.findall(r"\[\[script:([a-z0-9_]+)(?::([^\]]*))?\]\]", text_of(messages[index]))
        if messages[index]["role"] == "user" and found:
            name, argument = found[-1]
            step = sum(1 for message in messages[index + 1 :] if message["role"] == "assistant")
            steps = steps_of(name, argument)
            return steps[min(step, len(steps) - 1)]
    return Answer("A plain answer without a script.")


def text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content)
    return content or ""


def chunks(model: str, answer: Answer) -> Iterator[dict[str, Any]]:
    """The server-sent events of an answer."""
    base = {"id": f"chatcmpl-{time.time_ns()}", "object": "chat.completion.chunk", "created": int(time.time())}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**base, "model": model, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    yield chunk({"role": "assistant", "content": ""})
    for word in re.findall(r"\S+\s*", answer.reasoning):
        yield chunk({"reasoning_content": word})
    for word in re.findall(r"\S+\s*", answer.text):
        yield chunk({"content": word})
        time.sleep(answer.delay_s)
    for index, (tool, arguments) in enumerate(answer.calls):
        call = {"index": index, "id": f"call_{time.time_ns()}_{index}", "type": "function"}
        yield chunk({"tool_calls": [{**call, "function": {"name": tool, "arguments": json.dumps(arguments)}}]})
    yield chunk({}, "tool_calls" if answer.calls else "stop")
    yield {**base, "model": model, "choices": [], "usage": USAGE}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is BaseHTTPRequestHandler's
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = choose(body)
        if answer.status != 200:
            self.reply(answer.status, {"error": {"message": answer.text, "type": "invalid_request_error"}})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        try:
            for chunk in chunks(body["model"], answer):
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                self.wfile.flush()
            self.wfile.write(b"data: [DONE]\n\n")
        except ConnectionError:
            pass  # OpenCode was stopped while it listened

    def reply(self, status: int, body: dict[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


@contextmanager
def fake_llm() -> Iterator[str]:
    """The base URL of a provider that answers until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False  # a slow script may still be talking to an OpenCode that was stopped
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
