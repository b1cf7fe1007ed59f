"""Prompts of a judge: a question and two answers in one user message, with the tokens of each answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plo.data.offsets import Span, clipped_span, stand_in
from plo.data.rows import Text
from plo.scorers.scorer import ScorerError


@dataclass(frozen=True)
class JudgePrompt:
    """Token ids of a judge's prompt, whose last one predicts the verdict.

    Attributes:
        where: tokens [first, last) of answer A and of answer B.
        spans: characters of the answer, per token, of answer A and of answer B.
    """

    ids: tuple[int, ...]
    where: tuple[Span, Span]
    spans: tuple[tuple[Span, ...], tuple[Span, ...]]


class PromptWriter:
    """Writer of a judge's prompts for one tokenizer.

    Args:
        tokenizer: a fast tokenizer; without a chat template the message is the whole prompt.
        parts: texts before the question, before answer A, before answer B, and at the end.
        limit: maximum number of tokens of a prompt; None: any.
    """

    def __init__(self, tokenizer: Any, parts: Sequence[str], limit: int | None = None):
        self.tokenizer, self.parts, self.limit = tokenizer, parts, limit
        self.before, self.after = "", ""
        self.chat = bool(tokenizer.chat_template)
        if self.chat:
            word = stand_in(*parts)
            message = [{"role": "user", "content": word}]
            rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            self.before, _, self.after = rendered.partition(word)

    def prompt(self, question: Text, first: str, second: str, where: str = "") -> JudgePrompt:
        """Return the prompt for answers A and B. A prompt that is too long loses the beginning of the question.

        The message is put between the texts that the template writes before and after a user's message, so that the
        place of its characters is known for any texts. Texts of special tokens become these tokens, as they do in training.

        Raises:
            ScorerError: the answers alone are too long.
        """
        question, first, second = written(question), first or " ", second or " "
        while True:
            text, places = self.before, []
            for part, filling in zip(self.parts, (question, first, second), strict=False):
                text += part
                places.append((len(text), len(text) + len(filling)))
                text += filling
            encoded = self.tokenizer(
                text + self.parts[-1] + self.after,
                add_special_tokens=not self.chat,
                return_offsets_mapping=True,
                verbose=False,
            )
            ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
            excess = len(ids) - (self.limit or len(ids))
            if excess <= 0:
                break
            asked = [i for i, span in enumerate(offsets) if clipped_span(span, *places[0]) != (0, 0)]
            if len(asked) < excess:
                raise ScorerError(
                    f"{where}: both answers and the judge's instructions are {len(ids) - len(asked)} tokens, and the model "
                    f"takes {self.limit}. Lower data.max_length, or take a model with a longer window."
                )
            cut = offsets[asked[excess - 1]][1] - places[0][0]
            question = question[max(cut, 1) :]  # tokens near the cut may change, so encode again
        found = [_tokens(offsets, place) for place in places[1:]]
        return JudgePrompt(tuple(ids), (found[0][0], found[1][0]), (found[0][1], found[1][1]))


def written(prompt: Text) -> str:
    """Return a prompt as text: plain text as it is, several messages each after its role."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt)


def _tokens(offsets: list[Span], place: Span) -> tuple[Span, tuple[Span, ...]]:
    """Return the tokens [first, last) that reach into the characters of `place`, and the characters each one covers."""
    inside = [i for i, span in enumerate(offsets) if clipped_span(span, *place) != (0, 0)]
    if not inside:  # no token covers it (white space with some tokenizers)
        return (0, 0), ()
    first, last = inside[0], inside[-1] + 1
    return (first, last), tuple(clipped_span(span, *place) for span in offsets[first:last])
