"""A loopback server that speaks the chat protocol, and fails when it is told to."""

import contextlib
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAILURES = ("429", "500", "timeout", "garbage", "html", "empty choices", "hung up")


class Server(ThreadingHTTPServer):
    """Answers with `says(body)`: a text, a text and {token: log-prob}, or (status, body, headers) as they are. `asked`:
    the bodies of all requests, `headers` their headers.

    A share `failing` of the requests fails, in each of the ways `failures` in turn; "timeout" answers `stall` seconds late.
    """

    daemon_threads = True

    def __init__(self, says, failing=0.0, delay=0.0, failures=FAILURES, stall=1.5):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says, self.failing, self.delay, self.failures, self.stall = says, failing, delay, failures, stall
        self.asked, self.headers, self.failed, self.answered = [], [], [], 0
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
            server.headers.append(self.headers)
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
            time.sleep(self.server.stall)
        said = self.server.says(body)
        if isinstance(said, tuple) and isinstance(said[0], int):
            status, reply, headers = said
            reply = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            return self._send(reply, status, headers=headers)
        text, top = said if isinstance(said, tuple) else (said, None)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        if top:
            top = [{"token": token, "logprob": logprob} for token, logprob in top.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        usage = {"prompt_tokens": 100, "completion_tokens": 1}
        self._send(json.dumps({"choices": [choice], "usage": usage}).encode())
        with self.server.lock:
            self.server.answered += 1

    def _send(self, content, status=200, kind="application/json", headers=(("retry-after-ms", "10"),)):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for header in headers:
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)
