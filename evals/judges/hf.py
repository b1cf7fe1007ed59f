"""A language model in process as a judge: the more likely of the two labels is its verdict."""

import math
from collections.abc import Sequence

from plo.data.tokenize import context_of
from plo.evals.judges.fitting import fit_texts
from plo.evals.judges.judge import Judge, Question, Verdict
from plo.evals.judges.local import last_logits, load
from plo.evals.judges.template import Template


class HuggingFace(Judge):
    """The judge `hf:<folder, hub name, or "embedded">`: p = P(label b) / (P(label a) + P(label b)).

    P(label) is the product over the label's tokens directly after the generation prompt, whatever the prompt
    asks for, so the model has no room to reason. With more than two labels, or ratings, p is the mean of their values
    weighted by their probabilities. Without a chat template the messages are concatenated,
    each followed by an empty line. Questions are asked one by one, without padding, so that an answer does not
    depend on other questions. A question longer than the context loses the middle of its longer texts.

    Special tokens of the model in a text ("<|im_end|>") are read as such.

    Args:
        dtype: dtype of the computation; None: float32 on a CPU, else that of the weights.

    Raises:
        JudgeError: the model cannot be loaded, or the prompt alone is longer than its context.
    """

    light = False
    template: Template

    def __init__(self, argument: str, template: Template, *, dtype: str | None = None):
        self.name, self.template = f"hf:{argument}", template
        self.model, self.tokenizer, identity = load(self.name, "AutoModelForCausalLM", argument, dtype)
        endings, self.values = zip(*template.endings, strict=True)
        self.labels = [self.tokenizer(label, add_special_tokens=False).input_ids for label in endings]
        self.room = context_of(self.model, self.tokenizer) - max(map(len, self.labels))
        self.version = f"{template.identity} {identity}"
        self._asked = self._unlikely = 0

    @property
    def remarks(self) -> list[str]:
        if not self._unlikely:
            return []
        return [
            f"{self.name}: in {self._unlikely} of {self._asked} questions the labels together have less than half of the "
            f"probability, so the verdict compares unlikely answers (a model that thinks or explains first)."
        ]

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        return [self._ask(question) for question in questions]

    def _ask(self, question: Question) -> Verdict:
        texts = (question.prompt, question.a, question.b)
        ids = self.ids(*fit_texts(self.name, texts, lambda *texts: len(self.ids(*texts)), self.room))
        after = {}  # log-probs by the label's tokens but the last; one-token labels share a forward pass
        for label in self.labels:
            start = tuple(label[:-1])
            if start not in after:
                after[start] = last_logits(self.model, [*ids, *start], len(label)).log_softmax(-1)
        likely = [sum(after[tuple(x[:-1])][i, token].item() for i, token in enumerate(x)) for x in self.labels]
        self._asked += 1
        self._unlikely += sum(map(math.exp, likely)) < 0.5
        if math.isnan(sum(likely)) or max(likely) == -math.inf:
            return Verdict(None)
        shares = [math.exp(x - max(likely)) for x in likely]
        return Verdict(sum(share * value for share, value in zip(shares, self.values, strict=True)) / sum(shares))

    def ids(self, prompt: str, a: str, b: str) -> list[int]:
        """Return the tokens of a question, with the generation prompt at their end."""
        messages = self.template.fill(prompt, a, b)
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return self.tokenizer(text, add_special_tokens=False).input_ids
        return self.tokenizer("".join(f"{message['content']}\n\n" for message in messages)).input_ids
