"""What a scorer works from, without an engine: pairs, and log-probs that a test writes down."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from plo.scorers import get_scorer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class FakeMaterial:
    pairs: list
    seed: int = 0
    tokenizer: Any = None
    model: Any = None
    of: str = "position_decay"
    stages: dict = field(default_factory=dict)

    def logps(self, stage=None):
        return self.stages[stage]

    def logps_after(self, prompts):
        """Log-probs by the model's own forward pass, one response at a time."""
        sides = [
            tuple(
                self._logps(prompt, ids) for prompt, ids in zip(both, (pair.chosen_ids, pair.rejected_ids), strict=True)
            )
            for pair, both in zip(self.pairs, prompts, strict=True)
        ]
        return sides

    def _logps(self, prompt, ids):
        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt, *ids]])).logits[0].double()
        start = len(prompt) - 1
        return logits[start : start + len(ids)].log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]

    def scores(self):
        return list(get_scorer(self.of)(self))

    def attending_model(self):
        return self.model


@pytest.fixture
def material():
    """A factory of materials; `stages`: names of stages whose log-probs are random."""

    def make(pairs, stages=(), **arguments):
        generator = torch.Generator().manual_seed(1)

        def random(length):
            return -3 * torch.rand(length, generator=generator, dtype=torch.float64)

        values = {
            name: [(random(len(pair.chosen_ids)), random(len(pair.rejected_ids))) for pair in pairs] for name in stages
        }
        return FakeMaterial(list(pairs), stages=values, **arguments)

    return make


@pytest.fixture(scope="session")
def make_tokenizer():
    """A factory of tokenizers that merge anything with anything, so that tokens reach over the edges of answers."""
    from plo.scorers.attention import PARTS

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [" Yes, it is.", "No.", "Question 7?", " A longer answer with several words."]
    edges = [a + word + b for a, b in pairwise(PARTS) for word in words]
    bpe.train_from_iterator([*edges * 4, *words * 4], trainer)
    serialised = bpe.to_str()

    def make(**changes) -> PreTrainedTokenizerFast:
        settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML, **changes}
        settings |= {"additional_special_tokens": ["<|im_start|>"]}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(serialised), **settings)

    return make
