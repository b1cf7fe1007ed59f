"""Pairs of token ids to one padded batch of tensors."""

from collections.abc import Sequence
from typing import Any

import torch

from plo.data import Pair

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]  # (prompt ids, response ids)
PAD = 0  # masked everywhere, so that any id serves


def collate_sequences(sequences: Sequences, padding_side: str = "right") -> dict[str, Any]:
    """Sequences of prompt and response ids as a padded batch.

    Returns:
        input_ids, attention_mask, position_ids: (rows, length);
        mask: (rows, tokens) bool, response tokens, left-aligned;
        targets: (n,) the response tokens of all rows, row after row;
        positions: (n,) where in the flattened (rows * length) the hidden state that predicts each of them stands.
    """
    length = max(len(prompt) + len(response) for prompt, response in sequences)
    tokens = max(len(response) for _, response in sequences)
    shape = (len(sequences), length)
    input_ids = torch.full(shape, PAD)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros((len(sequences), tokens), dtype=torch.bool)
    targets, positions = [], []
    for row, (prompt, response) in enumerate(sequences):
        if not len(prompt) or not len(response):
            raise ValueError(f"Row {row} of the batch has no prompt or no response: nothing to predict from, or to.")
        size = len(prompt) + len(response)
        first = length - size if padding_side == "left" else 0
        span = slice(first, first + size)
        input_ids[row, span] = torch.tensor([*prompt, *response])
        attention_mask[row, span] = 1
        position_ids[row, span] = torch.arange(size)
        mask[row, : len(response)] = True
        targets.append(torch.tensor(list(response)))
        start = row * length + first + len(prompt) - 1
        positions.append(torch.arange(start, start + len(response)))
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "mask": mask,
        "targets": torch.cat(targets),
        "positions": torch.cat(positions),
    }


def collate(pairs: Sequence[Pair], columns: Sequence[str] = (), padding_side: str = "right") -> dict[str, Any]:
    """Pairs as one batch: all chosen sequences, then all rejected ones, and the (pairs,) columns asked for."""
    sequences = [(p.prompt_ids, p.chosen_ids) for p in pairs] + [(p.prompt_ids, p.rejected_ids) for p in pairs]
    batch = collate_sequences(sequences, padding_side)
    batch["columns"] = {name: torch.tensor([_column(p, name) for p in pairs], dtype=torch.float32) for name in columns}
    return batch


def _column(pair: Pair, name: str) -> float:
    if name not in pair.columns:
        has = ", ".join(sorted(pair.columns)) or "none"
        raise ValueError(f"{pair.where}: the loss needs the numeric column {name!r}; the row has: {has}.")
    return pair.columns[name]
