"""A subject without a model: its answers come from a function."""

import numpy as np
import pandas as pd

from plo.subjects import SubjectError


class StubSubject:
    """A `plo.evals.Subject` that answers a prompt with `answer(message, sample, temperature)`.

    Args:
        margin: of a row, for `margins`; None: it has no model.
        extra: columns that its samples have beside those of every subject: {name: number}.

    Attributes:
        calls: (prompts, settings) of every call of `sample`.
    """

    def __init__(
        self,
        answer,
        *,
        fixed=False,
        name="stub",
        reference=None,
        chat=False,
        trained_on=(),
        paths=None,
        margin=None,
        **extra,
    ):
        self.answer, self.name, self.reference, self.chat = answer, name, reference, chat
        self.trained_on, self.paths, self.margin, self.extra = trained_on, paths or {}, margin, extra
        self.fixed, self.seed, self.calls = fixed, 0, []

    def sample(self, prompts, *, samples=1, temperature=1.0, top_p=1.0, max_new_tokens=256):
        self.calls.append(
            (list(prompts), dict(samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens))
        )
        rows = [
            {"prompt_id": i, "sample": k, "prompt": self.render(prompt), "text": self.answer(prompt, k, temperature)}
            for i, prompt in enumerate(prompts)
            for k in range(samples)
        ]
        return pd.DataFrame(rows).assign(tokens=4, finished=True, **self.extra)

    def render(self, prompt):
        """As a chat template might; plain text as it is."""
        if isinstance(prompt, str):
            return prompt
        return "".join(f"<|{m['role']}|>\n{m['content']}\n" for m in prompt) + "<|assistant|>\n"

    def causal_lm(self):
        raise SubjectError(f"{self.name} has no model.")

    def margins(self, rows):
        if self.margin is None:
            raise SubjectError(f"{self.name} has no model.")
        return np.array([self.margin(row) for row in rows])
