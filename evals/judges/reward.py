"""Reward models as judges: each answer is scored by itself."""

import math
from collections.abc import Sequence

from pydantic import PositiveInt

from plo.data.tokenize import context_of
from plo.evals.judges.fitting import fit_texts
from plo.evals.judges.judge import Judge, JudgeError, Question, Verdict
from plo.evals.judges.local import BATCH, fitting_batches, load
from plo.evals.judges.template import Template, without_surrogates


class Reward(Judge):
    """The judge `reward:<folder or hub name>`: p = sigmoid(r(prompt, b) - r(prompt, a)), the Bradley-Terry model of its training.

    r is the single logit of a sequence-classification model. With a chat template the prompt is the user's
    message and the answer the assistant's; without one, they are the tokenizer's pair of texts. No judge prompt is
    used. Each answer is scored once, with others of like length in one forward pass, which changes r by rounding only. A
    question longer than the context loses the middle of its longer texts.

    Args:
        dtype: dtype of the computation; None: float32 on a CPU, else that of the weights.
        batch_size: number of questions, each of two answers, that are scored together.

    Raises:
        JudgeError: the model cannot be loaded, or does not have exactly one output.
    """

    pointwise = True
    light = False
    repeatable = False

    def __init__(self, argument: str, template: Template, *, dtype: str | None = None, batch_size: PositiveInt = BATCH):
        self.name, self.batch = f"reward:{argument}", batch_size
        self.model, self.tokenizer, self.version = load(
            self.name, "AutoModelForSequenceClassification", argument, dtype
        )
        if self.model.config.num_labels != 1:
            raise JudgeError(
                f"The judge {self.name} has {self.model.config.num_labels} outputs and a reward model has one: "
                f"name another model."
            )
        self.room = context_of(self.model, self.tokenizer)
        # A decoder's score is read at the last token that is not padding: without such a token, each answer is scored alone.
        pads = self.tokenizer.pad_token_id is not None
        self._pads = pads and self.model.config.pad_token_id == self.tokenizer.pad_token_id
        self._scores: dict[tuple[str, str], float] = {}  # an opponent's answers recur in every cell

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        both = dict.fromkeys((q.prompt, answer) for q in questions for answer in (q.a, q.b))
        new = [one for one in both if one not in self._scores]
        self._scores |= dict(zip(new, self.scores(new), strict=True))
        scores = [(self._scores[q.prompt, q.a], self._scores[q.prompt, q.b]) for q in questions]
        return [Verdict(_sigmoid(b - a)) for a, b in scores]

    def scores(self, answers: Sequence[tuple[str, str]]) -> list[float]:
        """Return r(prompt, answer) of each pair of a prompt and an answer."""
        import torch

        encoded = [self._fitted(*one) for one in answers]
        lengths = [len(one["input_ids"]) for one in encoded]
        found: dict[int, float] = {}
        for batch in fitting_batches(lengths):
            for places in [batch] if self._pads else [[place] for place in batch]:
                fields = {name: [encoded[place][name] for place in places] for name in encoded[0]}
                if len(places) > 1:
                    fields = self.tokenizer.pad(fields, padding_side="right")
                tensors = {name: torch.tensor(values, device=self.model.device) for name, values in fields.items()}
                with torch.no_grad():
                    found |= dict(zip(places, self.model(**tensors).logits[:, 0].tolist(), strict=True))
        return [found[place] for place in range(len(answers))]

    def _fitted(self, prompt: str, answer: str) -> dict[str, list[int]]:
        texts = (without_surrogates(prompt), without_surrogates(answer))
        return self._encode(
            *fit_texts(self.name, texts, lambda *texts: len(self._encode(*texts)["input_ids"]), self.room)
        )

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
