"""Groups of token ids (a prompt and its responses) to one batch of tensors: packed, or padded rows."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from plo.backbone.attention import layout
from plo.data import DataError, Pair

Group = tuple[Sequence[int], Sequence[Sequence[int]]]  # prompt ids, ids of each response
PAD = 0  # masked everywhere, so that any id serves


def collate(
    pairs: Sequence[Pair], columns: Sequence[str] = (), *, packed: bool = False, padding_side: str = "right"
) -> dict[str, Any]:
    """Pairs as one batch (see `collate_groups`), chosen before rejected, and the (pairs,) columns asked for."""
    groups = [(pair.prompt_ids, (pair.chosen_ids, pair.rejected_ids)) for pair in pairs]
    batch = collate_groups(groups, packed=packed, padding_side=padding_side)
    batch["columns"] = {name: torch.tensor([_column(p, name) for p in pairs], dtype=torch.float32) for name in columns}
    return batch


def collate_groups(groups: Sequence[Group], *, packed: bool = False, padding_side: str = "right") -> dict[str, Any]:
    """Prompts with the same number of responses each, as one batch.

    Padded, each row is a prompt and a response: the first response of every group, then the second of every group, ...
    Packed, all groups stand in one row, a prompt followed by its responses, each response's positions going on from the prompt's.

    Returns:
        input_ids, position_ids: (rows, length);
        attention_mask: (rows, length), or of a packed row its `layout`;
        mask: (sequences, tokens) bool, response tokens, left-aligned; sequences in the order of padded rows;
        targets: (n,) the response tokens, sequence after sequence;
        positions: (n,) where in the flattened (rows * length) the hidden state that predicts each of them stands;
        tokens: of all sequences, prompts counted with each of their responses.
    """
    sequences = [(prompt, responses[i]) for i in range(len(groups[0][1])) for prompt, responses in groups]
    for row, (prompt, response) in enumerate(sequences):
        if not len(prompt) or not len(response):
            raise DataError(f"Row {row} of the batch has no prompt or no response: nothing to predict from, or to.")
    lengths = torch.tensor([len(response) for _, response in sequences])
    return {
        **(_packed(groups) if packed else _padded(sequences, padding_side)),
        "mask": torch.arange(int(lengths.max())) < lengths[:, None],
        "targets": torch.tensor([token for _, response in sequences for token in response]),
        "tokens": sum(len(prompt) + len(response) for prompt, response in sequences),
    }


def _padded(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], padding_side: str) -> dict[str, Tensor]:
    sizes = [len(prompt) + len(response) for prompt, response in sequences]
    shape = (len(sequences), max(sizes))
    input_ids = torch.full(shape, PAD)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    positions = []
    for row, ((prompt, response), size) in enumerate(zip(sequences, sizes, strict=True)):
        first = shape[1] - size if padding_side == "left" else 0
        span = slice(first, first + size)
        input_ids[row, span] = torch.tensor([*prompt, *response])
        attention_mask[row, span] = 1
        position_ids[row, span] = torch.arange(size)
        last_of_prompt = row * shape[1] + first + len(prompt) - 1
        positions.append(torch.arange(last_of_prompt, last_of_prompt + len(response)))
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "positions": torch.cat(positions),
    }


def _packed(groups: Sequence[Group]) -> dict[str, Tensor]:
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


def _column(pair: Pair, name: str) -> float:
    if name not in pair.columns:
        has = ", ".join(sorted(pair.columns)) or "none"
        raise DataError(f"{pair.where}: the loss needs the numeric column {name!r}; the row has: {has}.")
    return pair.columns[name]
