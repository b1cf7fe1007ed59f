"""A tiny byte-level BPE tokenizer with EOS and a ChatML template, and files of rows."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "The capital of France is Paris, and Paris is large.",
    "How do I bake a good loaf of bread? Mix flour, water and salt.",
    "\n\nHuman: hello there\n\nAssistant: hello, how can I help?",
    "unhappiness happily unhappy happy happiness",
]


@pytest.fixture(scope="session")
def make_tokenizer():
    """A factory of tokenizers; changes are arguments of `PreTrainedTokenizerFast`."""
    bpe = Tokenizer(models.BPE())
    # No regex: letters may merge with anything beside them, so that responses do merge with the prompt's end.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(SENTENCES * 4, trainer)
    serialised = bpe.to_str()

    def make(**changes) -> PreTrainedTokenizerFast:
        settings = {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>"],
            "chat_template": CHATML,
            **changes,
        }
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(serialised), **settings)

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def write(tmp_path):
    """Write rows as JSON lines, or text or bytes as they are; returns the path."""

    def make(content, name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "\n".join(json.dumps(row) for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


@pytest.fixture
def good_rows():
    """A factory of `count` sound plain rows."""

    def make(count: int = 40) -> list[dict]:
        return [
            {"prompt": f"Question {i}?", "chosen": f" yes {i}", "rejected": f" no {i}", "margin": i / 2}
            for i in range(count)
        ]

    return make
