"""A tiny model on disk and a tiny data set, for whole comparisons within seconds."""

import json

import pytest
from transformers import AutoTokenizer

from plo.config import load_experiment
from plo.embedded import embedded_model


@pytest.fixture
def tiny(tiny_llama, tmp_path, monkeypatch):
    """A factory of experiments on a tiny random Llama and 24 pairs, in a folder and a cache of their own."""
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(_embedded(monkeypatch))
    model = tmp_path / "tiny"
    tiny_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).float().save_pretrained(model)
    tokenizer.save_pretrained(model)
    rows = [
        {"prompt": f"Case {i}:", "chosen": " fine" * (1 + i % 3), "rejected": " bad" * (1 + i % 2) + "!"}
        for i in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(**changes):
        settings = {
            "name": "tiny",
            "losses": ["dpo"],
            "seeds": [0],
            "model": {"name": str(model)},
            "data": {"source": str(tmp_path / "pairs.jsonl"), "eval_fraction": 0.3},
            "train.batch_size": 4,
            "train.lr": 1e-3,
            "eval_at": [0.5],
            "evaluation": {"prompts": 3, "samples": 2, "max_new_tokens": 4},
        }
        return load_experiment(None, settings | changes)

    return make


def _embedded(monkeypatch):
    """The embedded model's folder in the user's own cache: making it again for every test would take 20 s."""
    with monkeypatch.context() as context:
        context.delenv("PLO_HOME")
        return embedded_model()
