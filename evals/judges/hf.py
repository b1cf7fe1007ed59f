"""A language model in process as a judge: the more likely of the two labels is its verdict."""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import PositiveInt

from plo.data.tokenize import context_of
from plo.evals.judges.fitting import fit_texts
from plo.evals.judges.judge import Judge, Question, Verdict
from plo.evals.judges.local import BATCH, fitting_batches, last_logits, load, written
from plo.evals.judges.template import Template

SCORES_TOKENS = 40  # in which two lines of scores are written


class HuggingFace(Judge):
    """The judge `hf:<folder, hub name, or "embedded">`: p = P(label b) / (P(label a) + P(label b)), or p by two scores.

    P(label) is the product over the label's tokens directly after the generation prompt, whatever the prompt
    asks for, so the model has no room to reason. With more than two labels, or ratings, p is the mean of their values
    weighted by their probabilities. With a prompt that asks for two scores the model writes them, greedily.
    Without a chat template the messages are concatenated, each followed by an empty line. Questions of like length
    share a forward pass, which changes p by rounding only. A question longer than the context loses the middle of its
    longer texts.

    Special tokens of the model in a text ("<|im_end|>") are read as such.

    Args:
        dtype: dtype of the computation; None: float32 on a CPU, else that of the weights.
        batch_size: number of questions that share a forward pass.
        revision: commit of the hub model.

    Raises:
        JudgeError: the model cannot be loaded, or the prompt alone is longer than its context.
    """

    light = False
    repeatable = False
    template: Template

    def __init__(
        self,
        argument: str,
        template: Template,
        *,
        dtype: str | None = None,
        batch_size: PositiveInt = BATCH,
        revision: str | None = None,
    ):
        self.name, self.template, self.batch = f"hf:{argument}", template, batch_size
        self.model, self.tokenizer, identity = load(self.name, "AutoModelForCausalLM", argument, dtype, revision)
        endings, self.values = zip(*template.endings, strict=True)
        self.labels = [self.tokenizer(label, add_special_tokens=False).input_ids for label in endings]
        self.said = template.tokens or SCORES_TOKENS if template.answer == "scores" else max(map(len, self.labels))
        self.room = context_of(self.model, self.tokenizer) - self.said
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
        asked = [self._fitted(question) for question in questions]
        said: dict[int, Verdict] = {}
        for batch in fitting_batches(list(map(len, asked))):
            said |= dict(zip(batch, self._ask([asked[place] for place in batch]), strict=True))
        return [said[place] for place in range(len(questions))]

    def _fitted(self, question: Question) -> list[int]:
        texts = (question.prompt, question.a, question.b)
        return self.ids(*fit_texts(self.name, texts, lambda *texts: len(self.ids(*texts)), self.room))

    def _ask(self, asked: Sequence[list[int]]) -> list[Verdict]:
        """Return the verdicts on questions, given as tokens, in a forward pass for each beginning of the labels but their last token."""
        if self.template.answer == "scores":
            said = written(self.model, self.tokenizer, asked, self.said)
            return [Verdict(self.template.read(text), text) for text in said]
        after = {}  # log-probs by the label's tokens but the last; labels of one token share a forward pass
        for label in self.labels:
            start = tuple(label[:-1])
            if start not in after:
                rows = [[*ids, *start] for ids in asked]
                after[start] = last_logits(self.model, rows, len(label)).log_softmax(-1)
        likely = [self._logps(after[tuple(label[:-1])], label) for label in self.labels]
        return [self._verdict(one) for one in zip(*likely, strict=True)]

    @staticmethod
    def _logps(logps: Any, label: Sequence[int]) -> list[float]:
        """Return each question's log-prob of a label, the sum over its tokens, from (questions, tokens, V)."""
        places = range(len(label))
        return logps[:, places, label].double().sum(1).tolist()

    def _verdict(self, likely: Sequence[float]) -> Verdict:
        """Return the verdict of the log-probs of all labels."""
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
