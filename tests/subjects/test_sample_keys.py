"""Keys of kept samples: whatever changes a sample is drawn or asked anew, and nothing else is."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from plo.config import EvaluationConfig
from plo.embedded import embedded_model
from plo.subjects import SubjectError
from plo.subjects.engines import Adapter, Served, setting_of
from plo.subjects.engines.engine import Request
from plo.subjects.policy import Policy
from plo.subjects.server import Server
from plo.subjects.subject import Sampling


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A function that returns the folder under which a policy's samples are kept, given what differs from the usual."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())  # made in the user's own cache
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("plo.subjects.policy.continuations", lambda *given: given[4].folder)
    monkeypatch.setattr("plo.subjects.engines.vllm_engine.check_installed", lambda: None)

    def of(*, prompt="Case 1:", ends=5, sampler="transformers", batch_size=4, identity="weights", seed=0, **settings):
        config = EvaluationConfig(sampler=sampler, batch_size=batch_size)
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=ends))
        backbone = SimpleNamespace(
            causal_lm=model, settings=SimpleNamespace(name="base", peft="full"), head_dtype="torch.float32", policy=None
        )
        about = {"name": "p", "seed": seed, "identity": identity, "config": config, "chat": False}
        adapter = Adapter("a", tmp_path) if sampler != "transformers" else None
        usual = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8, "samples": 2}
        policy = Policy(backbone, tokenizer, adapter=adapter, **about)
        return policy.sample([prompt], **usual | settings).name

    return of


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Case 2:"},
        {"ends": 6},
        {"batch_size": 5},
        {"identity": "other weights, adapter, dtype or template"},
        {"seed": 1},
        {"temperature": 0.8},
        {"top_p": 0.8},
        {"max_new_tokens": 9},
        {"samples": 3},
        {"sampler": "vllm"},
        {"sampler": "server:m@http://127.0.0.1:9/v1"},
    ],
    ids=str,
)
def test_samples_of_a_policy_are_kept_under_what_they_depend_on(folder, change):
    assert folder() == folder() != folder(**change)


def test_samples_of_an_engine_are_kept_under_its_options_and_its_address(folder):
    fp8, more = "vllm(quantization='fp8')", "vllm(gpu_memory_utilization=0.2, max_model_len=512)"
    assert folder(sampler="vllm") == folder(sampler=more) != folder(sampler=fp8)
    assert folder(sampler="vllm") == folder(sampler="vllm", batch_size=5)  # vLLM makes its own batches
    servers = {f"server:{model}@http://127.0.0.1:{port}/v1" for model in "mn" for port in (8, 9)}
    assert len({folder(sampler=spec) for spec in servers}) == 4


def test_findings_are_compared_where_the_sampler_and_the_options_that_change_samples_are_equal():
    assert setting_of("vllm(max_model_len=512)") == setting_of("vllm") == "vllm"
    assert setting_of("vllm(max_model_len=512, quantization='fp8')") == "vllm(quantization='fp8')"
    assert setting_of("server:m@http://127.0.0.1:9/v1") == setting_of("server:m@http://127.0.0.1:8/v1") == "server"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A server that continues with its number of calls; `refused` are fields that it does not take, `says` a choice of its own."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            field = next((name for name in server.refused if name in body), None)
            if field is None and not self.path.endswith("adapter"):
                server.asked.append(body)
            text = {"index": 0, "text": f"{len(server.asked)}", "finish_reason": "stop"}
            said = {"error": {"message": f"unknown field {field}"}} if field else {"choices": [server.says or text]}
            self.send_response(400 if field else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.refused, server.says = [], (), None
    server.at = f"127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def engine(served, model="m", at=None):
    return Served(f"server:{model}@http://{at or served.at}", lambda text: [int(text) + 10] if text else [], workers=1)


def test_a_server_is_asked_again_for_whatever_changes_a_continuation(served, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    usual, sampling, ends = Request((3, 4), 7), Sampling(1, 0.7, 0.9, 8), [1]
    other = served.at.replace("127.0.0.1", "localhost")
    asked = [
        (engine(served), usual, sampling, ends),
        (engine(served, "n"), usual, sampling, ends),
        (engine(served, at=other), usual, sampling, ends),
        (engine(served), replace(usual, prompt=(3, 5)), sampling, ends),
        (engine(served), replace(usual, key=8), sampling, ends),
        (engine(served), replace(usual, adapter=Adapter("a", tmp_path)), sampling, ends),
        (engine(served), replace(usual, adapter=Adapter("b", tmp_path)), sampling, ends),
        (engine(served), usual, replace(sampling, temperature=0.8), ends),
        (engine(served), usual, replace(sampling, top_p=0.8), ends),
        (engine(served), usual, replace(sampling, max_new_tokens=9), ends),
        (engine(served), usual, sampling, [1, 2]),
    ]
    for _ in range(2):  # the second time nothing is asked
        found = [one.draw([request], how, stop)[0] for one, request, how, stop in asked]
        assert found == [[11 + number, 1] for number in range(len(asked))]
    assert len(served.asked) == len(asked)


def test_a_subject_behind_a_server_is_asked_again_for_whatever_changes_its_answer(served):
    usual = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8}
    messages = [{"role": "user", "content": "p"}]
    other = served.at.replace("127.0.0.1", "localhost")
    asked = [
        (f"m@http://{served.at}", 0, "p", {}),
        (f"n@http://{served.at}", 0, "p", {}),
        (f"m@http://{other}", 0, "p", {}),
        (f"m@http://{served.at}", 1, "p", {}),
        (f"m@http://{served.at}", 0, "q", {}),
        (f"m@http://{served.at}", 0, messages, {}),
        (f"m@http://{served.at}", 0, "p", {"temperature": 0.8}),
        (f"m@http://{served.at}", 0, "p", {"top_p": 0.8}),
        (f"m@http://{served.at}", 0, "p", {"max_new_tokens": 9}),
    ]
    for _ in range(2):
        found = [Server(f"server:{at}", seed).sample([p], **usual | own).text[0] for at, seed, p, own in asked]
        assert found == [str(number) for number in range(1, len(asked) + 1)]
    more = Server(f"server:m@http://{served.at}", 0).sample(["p"], samples=2, **usual)
    assert more.text.tolist() == ["1", f"{len(asked) + 1}"] and len(served.asked) == len(asked) + 1


def test_a_continuation_without_a_token_is_an_error_and_is_not_kept(served):
    served.says = {"index": 0, "text": None, "finish_reason": "content_filter"}
    with pytest.raises(SubjectError, match="2 tokens with nothing .finish_reason 'content_filter'.*check the server's"):
        engine(served).draw([Request((3, 4), 7)], Sampling(), [1])
    served.says = {"index": 0, "text": "5", "finish_reason": "length"}
    assert engine(served).draw([Request((3, 4), 7)], Sampling(), [1]) == [[15]]


def test_what_a_server_refused_is_reported_for_kept_continuations_too(served, caplog):
    served.refused = ("temperature",)
    for _ in range(2):
        caplog.clear()
        engine(served).draw([Request((3, 4), 7)], Sampling(), [1])
        assert [line for line in caplog.messages if "samples without temperature, as the server requires" in line]
    assert len(served.asked) == 1


def test_an_adapter_of_which_vllm_passes_over_a_setting_is_refused(served, tmp_path):
    settings = {"r": 8, "alpha_pattern": {"q_proj": 4}, "rank_pattern": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(SubjectError, match="passes over alpha_pattern of the adapter .*: leave out sampler"):
        engine(served).draw([Request((3, 4), 7, Adapter("a", tmp_path))], Sampling(), [1])
    assert not served.asked
