"""Batches of token ids as tensors, made of groups (a prompt and its responses) as packed or padded rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from plo.backbone.attention import layout
from plo.data import DataError, Pair
from plo.data.completions import Completions

Group = tuple[Sequence[int], Sequence[Sequence[int]]]  # prompt ids, ids of each response
PAD = 0  # any id would do, as it is masked everywhere


@dataclass(frozen=True)
class Batch:
    """Prompts with their responses as a model reads them, and what a loss needs to know about each response token.

    `sequences` counts responses: twice the pairs, chosen before rejected. `n` counts response tokens, sequence after
    sequence. A padded batch has a row for each sequence, a packed one has a single row.

    Attributes:
        input_ids: (rows, length) token ids.
        attention_mask: (rows, length), 1 for tokens and 0 for padding; of a packed row its `layout`.
        position_ids: (rows, length) position of each token in its sequence.
        mask: (sequences, tokens) bool, response tokens, left-aligned.
        targets: (n,) ids of the response tokens.
        positions: (n,) index into the flattened (rows * length) of the hidden state that predicts each target.
        tokens: number of tokens of all sequences, prompts counted once for each of their responses.
        columns: (pairs,) numeric columns of the data set, by name.
        ref_logps: (n,) the reference's log-probs of the targets, nats.
        ref_hidden: (n, d) the reference's final hidden states; None: computed when a statistic needs them.
        token_weights: (n,) the scorer's weight of each target.
        progress: share of the training steps done, 0 to 1.
        completions: further completions of the pairs' prompts, of which nothing has a gradient; `sequences` counts the
            first completion of every pair, then the second of every pair, and so on.
        logps: (n,) the policy's log-probs of the targets, nats, where they are computed before the pass with gradient.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    mask: Tensor
    targets: Tensor
    positions: Tensor
    tokens: int
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    ref_logps: Tensor | None = None
    ref_hidden: Tensor | None = None
    token_weights: Tensor | None = None
    progress: float = 0.0
    completions: "Batch | None" = None
    logps: Tensor | None = None

    @property
    def packed(self) -> bool:
        """True if all groups share one row."""
        return self.attention_mask.dim() == 4

    @property
    def lengths(self) -> list[int]:
        """Number of response tokens of each sequence."""
        return self.mask.sum(-1).tolist()

    def given(self, name: str) -> Tensor:
        """Return the values of a field that a loss needs, such as `ref_logps`.

        Raises:
            DataError: the batch lacks them.
        """
        values = getattr(self, name)
        if values is None:
            raise DataError(f"The batch has no {name}, which the loss needs.")
        return values

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with every tensor on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        columns = {name: values.to(device) for name, values in self.columns.items()}
        completions = self.completions and self.completions.to(device)
        return replace(self, **tensors, columns=columns, completions=completions)


def collate(pairs: Sequence[Pair | Completions], columns: Sequence[str] = (), *, packed: bool = False) -> Batch:
    """Return pairs as one batch, chosen before rejected, with the named columns of the data set.

    Raises:
        DataError: a pair lacks a column, or has no prompt or no response.
    """
    groups = [(pair.prompt_ids, pair.responses) for pair in pairs]
    batch = collate_groups(groups, packed=packed)
    values = {name: torch.tensor([_column(p, name) for p in pairs], dtype=torch.float32) for name in columns}
    return replace(batch, columns=values)


def collate_groups(groups: Sequence[Group], *, packed: bool = False) -> Batch:
    """Return prompts with the same number of responses each as one batch.

    A padded batch has a row for each prompt and response: the first response of every group, then the second of every
    group, and so on. A packed batch has one row: each prompt is followed by its responses, and the positions of every
    response continue those of the prompt. Sequences have the order of padded rows in both.

    Raises:
        DataError: a prompt or a response is empty.
    """
    sequences = [(prompt, responses[i]) for i in range(len(groups[0][1])) for prompt, responses in groups]
    for row, (prompt, response) in enumerate(sequences):
        if not len(prompt) or not len(response):
            raise DataError(f"Row {row} of the batch has no prompt or no response: nothing to predict from, or to.")
    lengths = torch.tensor([len(response) for _, response in sequences])
    return Batch(
        **(_packed(groups) if packed else _padded(sequences)),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
        targets=torch.tensor([token for _, response in sequences for token in response]),
        tokens=sum(len(prompt) + len(response) for prompt, response in sequences),
    )


def _padded(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Any]:
    rows = [torch.tensor([*prompt, *response]) for prompt, response in sequences]
    input_ids = pad_sequence(rows, batch_first=True, padding_value=PAD)
    steps = torch.arange(input_ids.shape[1])
    attention_mask = (steps < torch.tensor([[len(row)] for row in rows])).long()
    positions = []
    for row, (prompt, response) in enumerate(sequences):
        last_of_prompt = row * len(steps) + len(prompt) - 1
        positions.append(torch.arange(last_of_prompt, last_of_prompt + len(response)))
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": steps * attention_mask,
        "positions": torch.cat(positions),
    }


def _packed(groups: Sequence[Group]) -> dict[str, Any]:
    lengths = [(len(prompt), *map(len, responses)) for prompt, responses in groups]
    starts = accumulate(map(sum, lengths), initial=0)
    ids: list[int] = []
    position_ids, positions = [], []
    for (prompt, responses), start, (size, *_) in zip(groups, starts, lengths, strict=False):
        ids += prompt
        position_ids.append(torch.arange(size))
        predicting = []
        for response in responses:
            first = len(ids)
            ids += response
            position_ids.append(torch.arange(size, size + len(response)))
            last_of_prompt = torch.tensor([start + size - 1])  # predicts the first token of every response
            predicting.append(torch.cat([last_of_prompt, torch.arange(first, len(ids) - 1)]))
        positions.append(predicting)
    return {
        "input_ids": torch.tensor(ids)[None],
        "attention_mask": layout(lengths),
        "position_ids": torch.cat(position_ids)[None],
        "positions": torch.cat([predicting for of_group in zip(*positions, strict=True) for predicting in of_group]),
    }


def _column(pair: Any, name: str) -> float:
    if name not in pair.columns:
        has = ", ".join(sorted(pair.columns)) or "none"
        raise DataError(f"{pair.where}: the loss needs the numeric column {name!r}; the row has: {has}.")
    return pair.columns[name]
