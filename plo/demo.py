"""The demo: the experiment of docs/demo.yaml, whole or as much of it as this CPU computes in a few minutes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from plo.config import Experiment, load_experiment

# Reductions of docs/demo.yaml, largest first. Each keeps a trained loss next to the rows `reference` and `sft`.
SIZES: tuple[dict[str, Any], ...] = (
    {},
    {"losses": ["dpo", "tbpo_a"]},
    {"losses": ["dpo", "tbpo_a"], "data.limit": 96, "evaluation.prompts": 32, "evaluation.pairs": 32},
    {
        "losses": ["dpo"],
        "data.limit": 96,
        "evaluation.prompts": 24,
        "evaluation.pairs": 24,
    },
    {
        "losses": ["dpo"],
        "seeds": [0],
        "data.limit": 64,
        "evaluation.prompts": 24,
        "evaluation.samples": 1,
        "evaluation.pairs": 16,
    },
    {
        "losses": ["dpo"],
        "seeds": [0],
        "data.limit": 32,
        "train.batch_size": 4,
        "evaluation.prompts": 8,
        "evaluation.samples": 1,
        "evaluation.max_new_tokens": 24,
        "evaluation.pairs": 8,
    },
)
PARAMETERS = 135e6  # of the embedded model
PAIR_TOKENS, PROMPT_TOKENS = 72, 8  # of the embedded task, on average; a pair is its prompt and both responses
STARTING = 75.0  # seconds outside the model: imports, the model's files, the database, the leaderboard
MATRIX_SHARE = 0.7  # of the measured speed of products that a cell reaches; .8 on one core with AVX2 alone


@dataclass(frozen=True)
class Speed:
    """Speed of matrix products on this machine, in floating-point operations per second."""

    float32: float
    bfloat16: float

    @property
    def faster(self) -> str:
        """Name of the dtype that is faster here."""
        return "bfloat16" if self.bfloat16 > self.float32 else "float32"


@dataclass(frozen=True)
class Plan:
    """What the demo runs here, and how long it is expected to take.

    Attributes:
        number: place in `SIZES`; 0 is the whole experiment.
    """

    experiment: Experiment
    number: int
    minutes: float


def measure(seconds: float = 0.3) -> Speed:
    """Measure products as large as the embedded model's for about `seconds` in each dtype."""

    def speed(dtype: torch.dtype) -> float:
        x, weight = torch.ones(128, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        x @ weight.t()  # the first one sets up its kernel
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            x @ weight.t()
            count += 1
        return 2 * x.shape[0] * weight.numel() * count / passed

    return Speed(speed(torch.float32), speed(torch.bfloat16))


def plan(path: Path, speed: Speed, minutes: float | None) -> Plan:
    """Choose the largest size that is expected to fit into `minutes`, the smallest if none does; None takes the whole."""
    for number, size in enumerate(SIZES):
        name = {"name": "demo" if number == 0 else "demo-short"}
        experiment = load_experiment(path, name | size | {"model.dtype": speed.faster})
        seconds = STARTING + operations(experiment) / (MATRIX_SHARE * max(speed.float32, speed.bfloat16))
        found = Plan(experiment, number, seconds / 60)
        if minutes is None or found.minutes <= minutes:
            break
    return found


def operations(experiment: Experiment) -> float:
    """Estimate the floating-point operations of a comparison on the embedded task."""
    forward, evaluation = 2 * PARAMETERS, experiment.evaluation
    trained = (len(experiment.losses) + 1) * len(experiment.seeds)  # `sft` stands in every table
    pairs, held_out = experiment.data.limit, evaluation.pairs
    training = 2 * forward * PAIR_TOKENS * pairs * experiment.train.epochs  # LoRA's backward pass costs another forward
    samples = evaluation.prompts * evaluation.samples
    sampling = 3 * forward * samples * (PROMPT_TOKENS + evaluation.max_new_tokens)  # drawn, and read by both models
    accuracy = forward * PAIR_TOKENS * held_out
    reference = forward * PAIR_TOKENS * (pairs + held_out) + sampling * len(experiment.seeds)
    return trained * (training + sampling + accuracy) + reference


def keep(experiment: Experiment, path: Path) -> None:
    """Write the chosen experiment, so that a demo that was stopped goes on with it whatever is measured then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = experiment.model_dump(mode="json", exclude_defaults=True)
    path.write_text(yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")
