"""A served model: keys, failures with a remedy, answers kept on disk."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from plo.config import EvaluationConfig
from plo.extras import MissingExtra
from plo.paths import plo_home
from plo.subjects import SubjectError
from plo.subjects.endpoint import EndpointError
from plo.subjects.loading import load_subject


@pytest.fixture
def served(tiny):
    """A server that answers with the key it was given, or with `server.answer`: a status and a body; `first` come once each."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            said = {"choices": [{"index": 0, "text": self.headers["Authorization"], "finish_reason": "stop"}]}
            status, body = server.answer or (server.first and server.first.pop(0)) or (200, json.dumps(said))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.first = None, []
    server.spec = f"server:m@http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_is_given_the_key_where_there_is_one(served, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert load_subject(served.spec, 0, EvaluationConfig()).sample(["p"])["text"].tolist() == ["Bearer none"]
    monkeypatch.setenv("OPENAI_API_KEY", "of another host")
    monkeypatch.setenv("PLO_KEY_127_0_0_1", "mine")
    subject = load_subject(served.spec, 1, EvaluationConfig())
    assert subject.sample(["p"])["text"].tolist() == ["Bearer mine"] and not subject.fixed


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, '{"error": {"message": "no such model"}}'), "HTTP 404.*no such model.*Check the server"),
        ((401, "{}"), "HTTP 401.*PLO_KEY_127_0_0_1"),
        ((200, '{"choices": []}'), "something that is no completion.*most end in /v1"),
        ((200, "{}"), "something that is no completion"),
        ((200, '"text"'), "something that is no completion"),
        ((200, '{"choices": [{"mess'), "something that is no completion"),
    ],
)
def test_a_server_that_fails_is_named(served, answer, message):
    from plo.subjects.server import Server

    served.answer = answer
    with pytest.raises(SubjectError, match=rf"{served.spec} .*the prompt 'Case 1:'.*{message}"):
        Server(served.spec, 0, retries=1).sample(["Case 1:"])


def test_what_is_no_completion_is_asked_again(served, monkeypatch):
    monkeypatch.setattr("plo.retry.LONGEST", 0.1)
    served.first = [(200, '{"choices": []}'), (200, '{"choices": [{"mess'), (200, "<html>"), (500, "{}")]
    assert (
        load_subject(served.spec, 0, EvaluationConfig()).sample(["p"])["text"].tolist() == ["Bearer none"]
        and not served.first
    )


def test_what_a_server_said_is_asked_again_where_it_is_damaged(served, harm, caplog):
    def said(text):
        served.answer = 200, json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": "stop"}]})
        return load_subject(served.spec, 0, EvaluationConfig()).sample(["p"])["text"].tolist()

    assert said("first") == said("second") == ["first"]
    [file] = (plo_home() / "outputs" / "server").glob("*.json")
    harm(file)
    assert said("third") == said("fourth") == ["third"]
    assert [line for line in caplog.messages if str(file) in line and "damaged" in line]


def test_no_server_and_no_client(served, monkeypatch):
    from plo.subjects.server import Server

    with pytest.raises(SubjectError, match="server:m@http://127.0.0.1:9/v1 does not answer.*APIConnectionError"):
        Server("server:m@http://127.0.0.1:9/v1", 0, retries=0).sample(["p"])
    for spec, lacks in (("server:m", "server"), ("server:@http://x/v1", "model")):
        with pytest.raises(EndpointError, match=f"names no {lacks}: write server:MODEL@"):
            load_subject(spec, 0, EvaluationConfig())
    with pytest.raises(SubjectError, match="gives only texts, and this evaluation needs the model"):
        load_subject(served.spec, 0, EvaluationConfig()).causal_lm()
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtra, match=r"needs openai: pip install 'plo\[evals\]'"):
        load_subject(served.spec, 0, EvaluationConfig())
