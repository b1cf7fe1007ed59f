"""The demo: the experiment of docs/demo.yaml, or as much of it as this machine computes in a few minutes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from plo.config import Experiment, load_experiment

# Reductions of docs/demo.yaml, the largest first. Each keeps a trained loss alongside the rows `reference` and `sft`.
SIZES: tuple[dict[str, Any], ...] = (
    {},
    {"losses": ["dpo", "tbpo_a"]},
    {"losses": ["dpo", "tbpo_a"], "data.limit": 96, "evaluation.prompts": 32, "evaluation.pairs": 32},
    {"losses": ["dpo"], "data.limit": 96, "evaluation.prompts": 24, "evaluation.pairs": 24},
    {"losses": ["dpo"], "seeds": [0], "data.limit": 64, "evaluation.prompts": 24, "evaluation.samples": 1, "evaluation.pairs": 16},
    {
        "losses": ["dpo"], "seeds": [0], "data.limit": 32, "train.batch_size": 4, "evaluation.prompts": 8,
        "evaluation.samples": 1, "evaluation.max_new_tokens": 24, "evaluation.pairs": 8,
    },
)  # fmt: skip
PARAMETERS = 135e6  # of the embedded model
PAIR_TOKENS, PROMPT_TOKENS = 72, 8  # of the embedded task, on average; a pair has its prompt and both responses
STARTING = 75.0  # seconds for imports, the files of the model, the database and the leaderboard
MATRIX_SHARE = 0.7  # share of the measured speed that a cell reaches; .8 on one core with AVX2 alone


Speed = Mapping[str, float]  # floating-point operations per second of matrix products on this machine, by dtype


@dataclass(frozen=True)
class Plan:
    """Experiment that the demo runs on this machine, and the minutes that it is expected to take."""

    experiment: Experiment
    number: int  # index in `SIZES`; 0 is the whole experiment
    minutes: float


def measure(seconds: float = 0.3) -> Speed:
    """Measure the speed of matrix products of the size of the embedded model's, for about `seconds` in each dtype."""
    speed = {}
    for name in ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        x, weight = torch.ones(128, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
        _ = x @ weight.t()  # the first product sets up its kernel
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            _ = x @ weight.t()
            count += 1
        speed[name] = 2 * x.shape[0] * weight.numel() * count / passed
    return speed


def plan(path: Path, speed: Speed, minutes: float | None) -> Plan:
    """Choose the largest size that is expected to fit into `minutes`, or the smallest; None is the whole experiment."""
    for number, size in enumerate(SIZES):
        name, dtype = "demo" if number == 0 else "demo-short", max(speed, key=lambda dtype: speed[dtype])
        experiment = load_experiment(path, {"name": name, **size, "model.dtype": dtype})
        seconds = STARTING + operations(experiment) / (MATRIX_SHARE * speed[dtype])
        found = Plan(experiment, number, seconds / 60)
        if minutes is None or found.minutes <= minutes:
            break
    return found


def operations(experiment: Experiment) -> float:
    """Estimate the floating-point operations of a comparison on the embedded task."""
    forward, evaluation = 2 * PARAMETERS, experiment.evaluation
    trained = (len(experiment.losses) + 1) * len(experiment.seeds)  # `sft` is in every table
    pairs, held_out = experiment.data.limit or 0, evaluation.pairs
    # LoRA's backward pass costs as much as the forward pass.
    training = 2 * forward * PAIR_TOKENS * pairs * experiment.train.epochs
    samples = evaluation.prompts * evaluation.samples
    sampling = 3 * forward * samples * (PROMPT_TOKENS + evaluation.max_new_tokens)  # sampled, and read by both models
    accuracy = forward * PAIR_TOKENS * held_out
    reference = forward * PAIR_TOKENS * (pairs + held_out) + sampling * len(experiment.seeds)
    return trained * (training + sampling + accuracy) + reference


def keep(experiment: Experiment, path: Path) -> None:
    """Write the chosen experiment, so that a demo that is started again runs the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = experiment.model_dump(mode="json", exclude_defaults=True)
    path.write_text(yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")
