"""Engines: one protocol for transformers, vLLM and servers, with the same adapters, seeds and kept samples."""

import importlib.machinery
import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from plo.backbone.model import Backbone
from plo.config import EvaluationConfig, ModelConfig
from plo.embedded import embedded_model
from plo.extras import MissingExtra
from plo.subjects import SubjectError
from plo.subjects.endpoint import EndpointError
from plo.subjects.engines import Adapter, Local, Request, check_engine
from plo.subjects.loading import load_subject
from plo.subjects.noise import noise_key
from plo.subjects.policy import Mate, Policy
from plo.subjects.sampling import Draw, Prompt, draw
from plo.subjects.subject import Sampling

PROMPTS = [Prompt((5, 9), "a"), Prompt((7,), "b"), Prompt((11, 3, 4, 20), "c")]
CONFIG = EvaluationConfig(samples=2, max_new_tokens=6, batch_size=4)
SETTINGS = {"samples": 2, "max_new_tokens": 6}


@pytest.fixture
def home(tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())  # made in the user's own cache
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    return tokenizer


@pytest.fixture
def backbone(tiny_llama, request):
    sizes = {}
    if "home" in request.fixturenames:  # the test has texts
        tokenizer = request.getfixturevalue("home")
        sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    return Backbone(tiny_llama(**sizes), ModelConfig(name="tiny-base", peft="lora", lora_r=3))


@pytest.fixture
def adapters(backbone, tmp_path):
    """Three saved adapters; the backbone holds the last one."""
    saved = []
    for seed in range(3):
        backbone.reset(seed)
        with torch.no_grad():
            for name, parameter in backbone.policy.named_parameters():
                if "lora_B" in name:
                    parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        backbone.save(tmp_path / f"adapter-{seed}")
        saved.append(Adapter(f"identity {seed}", tmp_path / f"adapter-{seed}"))
    return saved


def policies(backbone, tokenizer, adapters, **changes):
    config = CONFIG.model_copy(update=changes)
    about = {"config": config, "chat": False}
    return [
        Policy(backbone, tokenizer, name=f"p{i}", seed=i, identity=a.identity, adapter=a, **about)
        for i, a in enumerate(adapters)
    ]


def passes(backbone, monkeypatch):
    """The numbers of rows of every `generate` from now on."""
    rows, generate = [], backbone.generate
    monkeypatch.setattr(backbone, "generate", lambda ids, *a, **k: rows.append(len(ids)) or generate(ids, *a, **k))
    return rows


def test_adapters_drawn_together_give_what_each_gives_alone(backbone, adapters, monkeypatch, tmp_path):
    alone = []
    for seed, adapter in enumerate(adapters):
        backbone.restore(adapter.folder)
        alone.append(draw(Local(backbone, 4, held=adapter), [Draw(seed, adapter)], PROMPTS, CONFIG, [1])[0])
    assert len({str(own) for own in alone}) == 3
    rows = passes(backbone, monkeypatch)
    draws = [Draw(seed, adapter, tmp_path / str(seed)) for seed, adapter in enumerate(adapters)]
    engine = Local(backbone, 4, held=adapters[2])
    assert draw(engine, draws, PROMPTS, CONFIG, [1]) == alone and rows == [12, 6]
    (tmp_path / "0" / "4.json").unlink()  # what is kept is not drawn again
    assert draw(engine, draws, PROMPTS, CONFIG, [1]) == alone and rows == [12, 6, 2]
    again = draw(Local(backbone, 4, held=adapters[2]), [Draw(2, adapters[2])], PROMPTS, CONFIG, [1])
    assert again == alone[2:]  # the backbone holds what it held


def test_requests_of_several_adapters_are_answered_in_their_order(backbone, adapters):
    requests = [
        Request(p.ids, noise_key(0, i, 0), a) for i, p in enumerate(PROMPTS) for a in (adapters[1], adapters[0])
    ]
    requests += [Request((3, 4), 5, adapters[2])]  # as many rows of each are not needed
    engine = Local(backbone, 4, held=adapters[2])
    found = engine.draw(requests, Sampling(max_new_tokens=6), [1])
    assert found == [engine.draw([request], Sampling(max_new_tokens=6), [1])[0] for request in requests]
    assert engine.draw(requests[:6], Sampling(max_new_tokens=6), [1]) == found[:6]


def test_a_shared_pass_is_as_large_as_its_cache_allows(backbone, adapters, monkeypatch):
    rows = passes(backbone, monkeypatch)
    draws = [Draw(seed, adapter) for seed, adapter in enumerate(adapters)]
    expected = draw(Local(backbone, 6, held=adapters[2]), draws, PROMPTS, CONFIG, [1])
    monkeypatch.setattr("plo.subjects.engines.local.SHARED_CACHE", 0)
    assert draw(Local(backbone, 6, held=adapters[2]), draws, PROMPTS, CONFIG, [1]) == expected
    assert rows == [18, 6, 6, 6]  # never more than batch_size alone


def test_where_memory_runs_out_models_are_sampled_one_by_one(backbone, adapters, monkeypatch, caplog):
    draws = [Draw(seed, adapter) for seed, adapter in enumerate(adapters)]
    expected = draw(Local(backbone, 4, held=adapters[2]), draws, PROMPTS, CONFIG, [1])
    generate = backbone.generate

    def limited(ids, *arguments, **keywords):
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(ids, *arguments, **keywords)

    monkeypatch.setattr(backbone, "generate", limited)
    assert draw(Local(backbone, 4, held=adapters[2]), draws, PROMPTS, CONFIG, [1]) == expected
    assert "3 models together: they are sampled one by one" in caplog.text


def test_samples_of_mates_are_kept_for_them(backbone, adapters, home, monkeypatch):
    subjects = policies(backbone, home, adapters)
    expected = []
    for subject in subjects:
        backbone.restore(subject.adapter.folder)
        subject.config = CONFIG.model_copy(update={"batch_size": 5})  # kept apart
        expected.append(subject.sample(["Case 1:", "Case 2:"], **SETTINGS).text.tolist())
        subject.config = CONFIG
    rows = passes(backbone, monkeypatch)
    backbone.restore(adapters[0].folder)
    subjects[0].mates = lambda: [Mate(s.identity, s.seed, s.adapter) for s in subjects[1:]]
    found = [subjects[0].sample(["Case 1:", "Case 2:"], **SETTINGS).text.tolist()]
    assert rows == [12]
    for subject in subjects[1:]:
        backbone.restore(subject.adapter.folder)
        found.append(subject.sample(["Case 1:", "Case 2:"], **SETTINGS).text.tolist())
    assert found == expected and rows == [12]


class FakeVllm(types.ModuleType):
    """Stands in for vLLM: continues a prompt with its seed, its adapter's number and EOS; `made` are the instances."""

    def __init__(self):
        super().__init__("vllm")
        self.__spec__, self.made, self.calls, fake = importlib.machinery.ModuleSpec("vllm", None), [], [], self

        class LLM:
            def __init__(self, model, **options):
                if options.get("max_model_len") == 1:
                    raise ValueError("No available memory for the cache blocks")
                fake.made.append((model, options))

            def generate(self, prompts, sampling_params, *, lora_request=None, use_tqdm=True):
                fake.calls.append((prompts, sampling_params, lora_request))
                loras = lora_request or [None] * len(prompts)
                each = zip(sampling_params, loras, strict=True)
                ids = [[p.seed % 50 + 2, lora.lora_int_id if lora else 0, *p.stop_token_ids, 9] for p, lora in each]
                return [types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=tuple(i))]) for i in ids]

        self.LLM, self.SamplingParams = LLM, types.SimpleNamespace
        request = types.ModuleType("vllm.lora.request")
        request.LoRARequest = lambda name, number, path: types.SimpleNamespace(
            lora_name=name, lora_int_id=number, lora_path=path
        )
        self.modules = {"vllm": self, "vllm.lora": types.ModuleType("vllm.lora"), "vllm.lora.request": request}


@pytest.fixture
def vllm(monkeypatch):
    fake = FakeVllm()
    for name, module in fake.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("plo.subjects.engines.vllm_engine._INSTANCES", {})
    return fake


def test_vllm_has_one_instance_for_all_adapters_and_a_seed_for_each_continuation(backbone, adapters, home, vllm):
    subjects = policies(backbone, home, adapters, sampler="vllm(gpu_memory_utilization=0.3)")
    subjects[0].mates = lambda: [Mate(s.identity, s.seed, s.adapter) for s in subjects[1:]]
    first = subjects[0].sample(["Case 1:", "Case 2:"], temperature=0.7, **SETTINGS)
    assert first.tokens.tolist() == [3, 3, 3, 3] and first.finished.all()  # up to EOS
    for subject in subjects[1:]:
        subject.sample(["Case 1:", "Case 2:"], temperature=0.7, **SETTINGS)
    [(model, options)], [(prompts, params, loras)] = vllm.made, vllm.calls
    assert model == "tiny-base" and options["enable_lora"] and options["max_lora_rank"] == 8
    assert options["gpu_memory_utilization"] == 0.3 and options["dtype"] == "float64"
    assert len(prompts) == 12 and [lora.lora_path for lora in loras[::4]] == [str(a.folder) for a in adapters]
    assert [p.seed for p in params[:2]] == [noise_key(0, 0, k) % 2**31 for k in (0, 1)]
    assert params[4].seed == noise_key(1, 0, 0) % 2**31 and params[0].stop_token_ids == [home.eos_token_id]
    assert (params[0].temperature, params[0].max_tokens) == (0.7, 6)
    subjects[2].sample(["Case 3:"])
    again, number = vllm.calls[1][2][0], loras[8].lora_int_id
    assert again.lora_int_id == number not in (loras[0].lora_int_id, loras[4].lora_int_id)  # in another call too
    reference = policies(backbone, home, adapters[:1], sampler="vllm(gpu_memory_utilization=0.4)")[0]
    reference.adapter, reference.as_reference = None, True
    reference.sample(["Case 1:"])
    assert len(vllm.made) == 2 and vllm.calls[2][2] is None  # other memory is another instance; the base has no adapter


def test_a_reference_from_sft_is_drawn_as_an_adapter(backbone, adapters, home, vllm):
    backbone.start_from(backbone.weights(), reference=True)
    reference = policies(backbone, home, adapters[:1], sampler="vllm")[0]
    reference.adapter, reference.as_reference = None, True
    reference.sample(["Case 1:"])
    [lora] = vllm.calls[0][2]
    assert lora.lora_name.startswith("plo-")
    own = {name: tensor.clone() for name, tensor in backbone.reference.tensors.items()}
    backbone.reset(9)
    backbone.restore(Path(lora.lora_path))  # it is an adapter like any other
    assert all(torch.equal(own[name], tensor) for name, tensor in backbone.weights().tensors.items())


def test_what_vllm_cannot_do_is_a_sentence(backbone, adapters, home, vllm, tiny_llama):
    subject = policies(backbone, home, adapters, sampler="vllm(max_model_len=1)")[0]
    with pytest.raises(SubjectError, match="vLLM cannot load tiny-base: .*No available memory.*Set its options"):
        subject.sample(["Case 1:"])
    full = Backbone(tiny_llama(), ModelConfig(name="tiny-base", peft="full"))
    subject = Policy(
        full, home, name="p", seed=0, identity="", config=CONFIG.model_copy(update={"sampler": "vllm"}), chat=False
    )
    with pytest.raises(SubjectError, match="p is trained in full: leave out sampler, or serve"):
        subject.sample(["Case 1:"])


def test_names_of_engines():
    for spec in ("transformers", "server:m@http://127.0.0.1:9/v1"):
        check_engine(spec)
    with pytest.raises(MissingExtra, match="sampler=vllm needs the package vllm.*sampler=server:MODEL@"):
        check_engine("vllm(max_model_len=9)")
    for spec in ("vlm", "transformers(x=1)", "vllm(", ""):
        with pytest.raises(SubjectError, match="is no sampler: write transformers, vllm"):
            check_engine(spec)
    with pytest.raises(EndpointError, match="names no server"):
        check_engine("server:m")


@pytest.fixture
def served():
    """A server like `vllm serve`: it continues token ids, and loads adapters; `without` are fields that it refuses."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append((self.path, body))
            refused = next((name for name in server.without if name in body), None)
            if refused or (self.path.endswith("adapter") and "loading" in server.without):
                return self.send({"error": {"message": f"unknown field {refused}"}}, 400)
            if self.path.endswith("adapter"):
                return self.send("Success")
            choice = {"index": 0, "text": " fine", "finish_reason": "stop"}
            if body.get("return_token_ids"):
                choice["token_ids"] = [*body["prompt"], 1]
            self.send({"choices": [choice]})

        def send(self, content, status=200):
            content = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.without = [], ()
    server.spec = f"server:base@http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_server_loads_each_adapter_once_and_continues_token_ids(adapters, served, tmp_path, monkeypatch):
    from plo.subjects.engines import Served

    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    engine = Served(served.spec, lambda text: [40, 41])
    keys = [noise_key(0, i, 0) for i in range(3)]
    requests = [Request((5 + i, 9), key, adapter) for i, key in enumerate(keys) for adapter in (None, adapters[0])]
    for _ in range(2):
        assert engine.draw(requests, Sampling(max_new_tokens=6), [1]) == [[5 + i, 9, 1] for i in range(3) for _ in "ab"]
    loaded = [body for path, body in served.asked if path == "/v1/load_lora_adapter"]
    assert loaded == [{"lora_name": "plo-identity 0", "lora_path": str(adapters[0].folder)}]
    asked = [body for path, body in served.asked if path == "/v1/completions"]
    assert {body["model"] for body in asked} == {"base", "plo-identity 0"} and len(asked) == 6  # not asked twice
    assert {body["seed"] for body in asked} == {key % 2**31 for key in keys}
    assert asked[0]["stop_token_ids"] == [1] and asked[0]["max_tokens"] == 6
    served.without = ("return_token_ids", "stop_token_ids")  # as a server that is not vLLM
    plain = Served(served.spec, lambda text: [40, 41])
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "another home"))
    assert plain.draw(requests[:1], Sampling(), [1]) == [[40, 41, 1]]
    served.without = ("loading",)
    with pytest.raises(SubjectError, match="does not load the adapter .*--enable-lora --max-lora-rank RANK"):
        Served(served.spec, list).draw(requests, Sampling(), [1])
    with pytest.raises(SubjectError, match="does not continue a prompt of 2 tokens: .*Check the server"):
        Served("server:m@http://127.0.0.1:9/v1", list, retries=0).draw(requests[:1], Sampling(), [1])


def test_an_engine_for_texts_that_are_given(tmp_path):
    (tmp_path / "said.json").write_text('[{"prompt": "a", "output": "b"}]')
    for what in (str(tmp_path / "said.json"), "server:m@http://127.0.0.1:9/v1"):
        with pytest.raises(SubjectError, match="gives its own texts: leave out sampler"):
            load_subject(what, 0, EvaluationConfig(sampler="vllm"))
