"""Reward models as judges: each answer is scored by itself."""

import math
from collections.abc import Sequence

from plo.data.tokenize import context_of
from plo.evals.judges.fitting import fit_texts
from plo.evals.judges.judge import Judge, JudgeError, Question, Verdict
from plo.evals.judges.local import load
from plo.evals.judges.template import Template, without_surrogates


class Reward(Judge):
    """The judge `reward:<folder or hub name>`: p = sigmoid(r(prompt, b) - r(prompt, a)), the Bradley-Terry model of its training.

    r is the single logit of a sequence-classification model. With a chat template the prompt is the user's
    message and the answer the assistant's; without one, they are the tokenizer's pair of texts. No judge prompt is
    used. A question longer than the context loses the middle of its longer texts.

    Args:
        dtype: dtype of the computation; None: float32 on a CPU, else that of the weights.

    Raises:
        JudgeError: the model cannot be loaded, or does not have exactly one output.
    """

    pointwise = True
    light = False

    def __init__(self, argument: str, template: Template, *, dtype: str | None = None):
        self.name = f"reward:{argument}"
        self.model, self.tokenizer, self.version = load(
            self.name, "AutoModelForSequenceClassification", argument, dtype
        )
        if self.model.config.num_labels != 1:
            raise JudgeError(
                f"The judge {self.name} has {self.model.config.num_labels} outputs and a reward model has one: "
                f"name another model."
            )
        self.room = context_of(self.model, self.tokenizer)

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        return [Verdict(_sigmoid(self.score(q.prompt, q.b) - self.score(q.prompt, q.a))) for q in questions]

    def score(self, prompt: str, answer: str) -> float:
        """Return r(prompt, answer)."""
        import torch

        texts = fit_texts(
            self.name,
            (without_surrogates(prompt), without_surrogates(answer)),
            lambda *texts: len(self._encode(*texts)["input_ids"]),
            self.room,
        )
        encoded = {name: torch.tensor([ids], device=self.model.device) for name, ids in self._encode(*texts).items()}
        with torch.no_grad():
            return self.model(**encoded).logits[0, 0].item()

    def _encode(self, prompt: str, answer: str) -> dict[str, list[int]]:
        if not self.tokenizer.chat_template:
            return dict(self.tokenizer(prompt, answer))
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return dict(
            self.tokenizer(self.tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
        )


def _sigmoid(x: float) -> float | None:
    """Return the logistic function of x, or None for NaN."""
    if math.isnan(x):
        return None
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
