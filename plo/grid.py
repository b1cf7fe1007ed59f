"""Grids of variants in an experiment file, as in `{dpo: {grid: {beta: [0.05, 0.1], train.lr: [1e-5, 1e-4]}}}`."""

import itertools
from collections.abc import Mapping
from typing import Any

from plo.errors import PloError


class GridError(PloError, ValueError):
    """A grid of variants that is not a mapping of names to lists of values."""


TRAIN = "train."  # prefix of a training setting among hyper-parameters


def expand_grid(spec: Any) -> list[Any]:
    """Return the specs of losses that a spec with a `grid` stands for: every combination of its values.

    Raises:
        GridError: the grid is not a mapping of names to lists of values.

    Example:
        >>> expand_grid({"dpo": {"grid": {"beta": [0.05, 0.1], "train.lr": [1e-5]}}})
        [{'dpo': {'beta': 0.05, 'train': {'lr': 1e-05}}}, {'dpo': {'beta': 0.1, 'train': {'lr': 1e-05}}}]
    """
    if not (isinstance(spec, Mapping) and len(spec) == 1):
        return [spec]
    ((name, given),) = spec.items()
    if not isinstance(given, Mapping) or "grid" not in given:
        return [spec]
    grid, fixed = given["grid"], {key: value for key, value in given.items() if key != "grid"}
    if not isinstance(grid, Mapping) or not all(isinstance(values, list) and values for values in grid.values()):
        raise GridError(f"the grid of {name} must list values by name, as in {{beta: [0.05, 0.1], train.lr: [1e-5]}}")
    return [
        {name: with_point(fixed, dict(zip(grid, values, strict=True)))} for values in itertools.product(*grid.values())
    ]


def with_point(params: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyper-parameters with those of a point added; names that begin with `train.` go into the mapping `train`."""
    train = {key.removeprefix(TRAIN): value for key, value in point.items() if key.startswith(TRAIN)}
    own = {key: value for key, value in point.items() if not key.startswith(TRAIN)}
    return {**params, **own, **({"train": {**(params.get("train") or {}), **train}} if train else {})}
