"""Which server is asked, which key it is sent, and that no key comes back out of an answer."""

import pytest

from plo.evals.judges import JudgeError, JudgeSession, Question, get_judge
from plo.subjects.endpoint import EndpointError, read_endpoint
from plo.subjects.server import Server

SECRET = "sk-secret/0123456789"
ASKED = Question("p", "x", "y")


@pytest.mark.parametrize(
    ("spec", "model", "url"),
    [
        ("llama@localhost:8000/v1", "llama", "http://localhost:8000/v1"),
        ("llama@localhost", "llama", "http://localhost"),
        ("org/llama@127.0.0.1:8000/v1", "org/llama", "http://127.0.0.1:8000/v1"),
        ("llama@[::1]:8000/v1", "llama", "http://[::1]:8000/v1"),
        ("llama@10.0.0.7:8000/v1", "llama", "http://10.0.0.7:8000/v1"),
        ("llama@node-7:8000/v1", "llama", "http://node-7:8000/v1"),
        ("llama@https://host.example/v1", "llama", "https://host.example/v1"),
        ("name@20240229@https://host.example/v1", "name@20240229", "https://host.example/v1"),
        ("gpt", "gpt", "https://api.openai.com/v1"),
    ],
)
def test_addresses(spec, model, url):
    endpoint = read_endpoint(spec, "openai", "https://api.openai.com/v1")
    assert (endpoint.model, endpoint.url) == (model, url)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("llama@", "names no host"),
        ("llama@http://", "names no host"),
        ("llama@http:///v1", "names no host"),
        ("llama@http:/localhost", "no port"),
        ("llama@http//localhost:8000/v1", "only a path may follow"),
        ("llama@htp://localhost:8000/v1", "neither http:// nor https://"),
        ("llama@localhost:port/v1", "Port could not be cast"),
        ("llama@http://localhost:99999/v1", "Port out of range"),
        ("llama@http://lo calhost/v1", "white space"),
        ("llama@http://-x/v1", "'-x' is not a host"),
        ("llama@http://user:pass@localhost/v1", "belongs in the environment"),
        ("llama@http://localhost/v1?key=3", "only a path may follow"),
        ("llama@host.example:8000/v1", "say whether host.example speaks https:// or http://"),
        ("name@20240229", "'20240229' is not a host"),
        ("name@latest", "part of the model's name"),
        ("llama@localhost:8000/v1(concurrency=3", "only a path may follow"),
        ("http://localhost:8000/v1", "has an address in place of the model's name"),
        ("localhost:8000/v1", "has an address in place of the model's name"),
        ("gpu-box:8000", "has an address in place of the model's name"),
        ("[::1]:8000/v1", "has an address in place of the model's name"),
        ("@http://localhost/v1", "names no model"),
        ("", "names no model"),
    ],
)
def test_addresses_that_are_none(spec, message):
    with pytest.raises(EndpointError, match=message):
        read_endpoint(spec, "openai", "https://api.openai.com/v1")
    with pytest.raises(EndpointError, match=message):
        get_judge({f"openai:{spec}": {}})
    with pytest.raises(EndpointError, match=message):
        Server(f"server:{spec}", 0)


def test_an_address_without_http_is_asked_itself(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server = serve(lambda body: "B")
    short, full = f"openai:m@localhost:{server.server_port}/v1", f"openai:m@http://localhost:{server.server_port}/v1"
    assert JudgeSession(short).ask([ASKED])[0].p == 1.0 and len(server.asked) == 1
    assert get_judge(short).name == full and JudgeSession(full).ask([ASKED])[0].p == 1.0
    assert len(server.asked) == 1  # one judge, however it is written


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://api.openai.com:443/v1", "OPENAI_API_KEY"),
        ("http://api.openai.com/v1", "PLO_KEY_API_OPENAI_COM"),  # in clear
        ("https://api.openai.com:8443/v1", "PLO_KEY_API_OPENAI_COM"),
        ("https://api.openai.com.evil.example/v1", "PLO_KEY_API_OPENAI_COM_EVIL_EXAMPLE"),
        ("https://API.Host.example/v1", "PLO_KEY_API_HOST_EXAMPLE"),
        ("https://api-host.example/v1", "PLO_KEY_API__HOST_EXAMPLE"),  # another owner than api.host.example
        ("http://127.0.0.1:8000/v1", "PLO_KEY_127_0_0_1"),
    ],
)
def test_a_host_has_a_key_of_its_own(url, name):
    assert read_endpoint(f"m@{url}", "openai").key_name == name


def test_no_host_is_sent_the_key_of_another(serve, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Mine: {SECRET}\nAuthorization: {SECRET}")
    server = serve(lambda body: "B")
    JudgeSession(f"openai:m@{server.url}").ask([ASKED])
    assert SECRET not in str(server.headers[0]) and server.headers[0]["Authorization"] == "Bearer none"
    monkeypatch.setenv("PLO_KEY_127_0_0_1", "its own key")
    JudgeSession(f"openai:m@{server.url}").ask([Question("p", "x", "z")])
    assert server.headers[1]["Authorization"] == "Bearer its own key" and SECRET not in str(server.headers[1])


def test_a_key_that_lacks_is_named(serve):
    server = serve(lambda body: (401, {"error": {"message": "no key"}}, ()))
    with pytest.raises(JudgeError, match=r"Set the environment variable PLO_KEY_127_0_0_1 to the key of this host"):
        JudgeSession(f"openai:m@{server.url}").ask([ASKED])


ECHOES = {
    "an answer": lambda body: f"your key is {SECRET}",
    "a list of parts": lambda body: (
        200,
        {"choices": [{"message": {"content": [{"type": "text", "text": SECRET}]}}]},
        (),
    ),
    "an error": lambda body: (400, {"error": {"message": f"bad key {SECRET}"}}, ()),
    "an error for now": lambda body: (500, {"error": {"message": f"bad key {SECRET}"}}, ()),
    "no completion": lambda body: (200, {"key": SECRET}, ()),
    "a question refused": lambda body: (413, {"key": SECRET}, ()),
}


@pytest.mark.parametrize("says", ECHOES.values(), ids=ECHOES)
def test_a_key_that_is_echoed_reaches_nobody(serve, monkeypatch, says, tmp_path):
    import sqlite3
    import traceback

    monkeypatch.setenv("PLO_KEY_127_0_0_1", SECRET)
    server, told = serve(says), []
    judging = JudgeSession(f"openai:m@{server.url}(retries=0)", tell=told.append)
    try:
        told.append(repr(judging.ask([ASKED])))
    except JudgeError as error:
        told.append("".join(traceback.format_exception(error)))  # what is recorded of a failed run
    with sqlite3.connect(judging.cache.path) as db:
        told.append(str(db.execute("SELECT * FROM verdicts").fetchall()))
    said = "".join(told)
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in said and "[PLO_KEY_127_0_0_1]" in said


def test_a_key_too_short_to_be_one_is_not_cut_out_of_answers(serve, monkeypatch):
    monkeypatch.setenv("PLO_KEY_127_0_0_1", "B")
    assert JudgeSession(f"openai:m@{serve(lambda body: 'B').url}").ask([ASKED])[0].p == 1.0
