"""A loopback server that speaks the chat protocol, and fails when it is told to."""

import contextlib
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

FAILURES = ("429", "500", "timeout", "garbage", "html", "empty choices", "hung up")


class Server(ThreadingHTTPServer):
    """Answers with `says(body)`: a text, or a text and {token: log-prob}. `asked`: the bodies of all requests.

    A share `failing` of the requests fails, in each of the ways `failures` in turn.
    """

    daemon_threads = True

    def __init__(self, says, failing=0.0, delay=0.0, failures=FAILURES):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says, self.failing, self.delay, self.failures = says, failing, delay, failures
        self.asked, self.failed, self.answered = [], [], 0
        self.random, self.lock = random.Random(0), threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(body)
            failure = None
            if server.random.random() < server.failing:
                failure = server.failures[len(server.failed) % len(server.failures)]
                server.failed.append(failure)
        time.sleep(server.delay)
        with contextlib.suppress(BrokenPipeError):  # the client's time-out
            self._answer(body, failure)

    def _answer(self, body, failure):
        if failure in ("429", "500"):
            return self._send(b'{"error": {"message": "later"}}', int(failure))
        if failure == "garbage":
            return self._send(b'{"choices": [{"mess')
        if failure == "html":
            return self._send(b"<html>proxy</html>", kind="text/html")
        if failure == "empty choices":
            return self._send(b'{"choices": []}')
        if failure == "hung up":
            return self.connection.close()
        if failure == "timeout":
            time.sleep(1.5)
        said = self.server.says(body)
        text, top = said if isinstance(said, tuple) else (said, None)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        if top:
            top = [{"token": token, "logprob": logprob} for token, logprob in top.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        usage = {"prompt_tokens": 100, "completion_tokens": 1}
        self._send(json.dumps({"choices": [choice], "usage": usage}).encode())
        with self.server.lock:
            self.server.answered += 1

    def _send(self, content, status=200, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "10")
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def serve():
    """Start a server; it stops with the test."""
    servers = []

    def start(says, **arguments):
        servers.append(Server(says, **arguments))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    """Verdicts of a test are gone after it; no key of the user's is sent anywhere."""
    monkeypatch.setattr("plo.evals.judges.cache.plo_home", lambda: tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(autouse=True)
def _judges():
    """What a test registers is gone after it."""
    from plo.evals.judges import JUDGES
    from plo.evals.judges.gold import GOLDS

    before = [(registry, dict(registry._entries)) for registry in (JUDGES, GOLDS)]
    yield
    for registry, entries in before:
        registry._entries = entries
