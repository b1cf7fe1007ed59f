"""Training pairs without a training: sampled ones, those of a data source, and those of a cell."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from plo.backbone.pretrained import pretrained_tokenizer
from plo.config import ConfigError, Experiment
from plo.data import Pair
from plo.experiment.answers import Answers
from plo.experiment.keys import Cell, cell_key
from plo.experiment.preflight import configured_variants
from plo.experiment.progress import Progress
from plo.experiment.session import Session
from plo.experiment.workbench import read_data
from plo.scorers import Variant
from plo.tracking import closing


def sample_pairs(experiment: Experiment, progress: Progress | None = None) -> Iterator[tuple[int, Answers, list[Pair]]]:
    """Yield each seed of an experiment with the scored answers of its first round, and the pairs made of them.

    They are recorded, and a comparison of the experiment with `data.origin: sampled` uses them.
    """
    data = experiment.data.model_copy(update={"origin": ("sampled",), "flip": (0.0,)})
    experiment = experiment.model_copy(update={"data": data, "tuning": None, "baseline": None})
    with _recorded(experiment, progress) as session:
        first = next(one for one in session.variants if one.origin.round == 1)
        for seed in experiment.seeds:
            cell = Cell(first, seed, cell_key(session.bench, first, seed))
            with session.with_pairs(session.bench, cell) as bench:
                assert bench.drawn is not None and bench.drawn.answers is not None, "round 1 is sampled"
                yield seed, bench.drawn.answers, list(bench.data.train)


def answer_records(drawn: Answers) -> list[dict[str, Any]]:
    """Return the answers to each prompt with their scores and log-probs, as JSON values."""
    return [
        {
            "prompt": drawn.prompts[int(str(number))].text,
            "answers": own["text"].tolist(),
            "scores": [None if score != score else score for score in own["score"]],
            "log_probs": [None if logp != logp else logp for logp in own["logp"]],
        }
        for number, own in drawn.frame.groupby("prompt_id")
    ]


def pairs_of_source(experiment: Experiment) -> tuple[list[Pair], list[Pair]]:
    """Return the training pairs and the held-out pairs of an experiment's data source, without loading a model."""
    tokenizer, generation = pretrained_tokenizer(experiment.model.name)
    data = read_data(experiment, tokenizer, generation, experiment.seeds[0])
    return data.train, data.eval


def pairs_of_cell(experiment: Experiment, name: str, progress: Progress | None = None) -> list[Pair]:
    """Return the pairs that a cell of an experiment is trained on; answers that are missing are sampled first.

    Args:
        name: such as "dpo @ data=iterated(2) seed 0".

    Raises:
        ConfigError: the experiment has no such cell, or the round before it is not finished.
    """
    wanted, _, number = name.rpartition(" seed ")
    variants = {one.name: one for one in configured_variants(experiment)}
    if wanted not in variants or not number.isdecimal():
        raise ConfigError(
            f'The experiment {experiment.name} has no cell {name}: name one of {_names(variants)} and " seed N".'
        )
    with _recorded(experiment, progress) as session:
        cell = Cell(variants[wanted], int(number), cell_key(session.bench, variants[wanted], int(number)))
        with session.with_pairs(session.bench, cell) as bench:
            return list(bench.data.train)


def _names(variants: dict[str, Variant]) -> str:
    return ", ".join(variants)


@contextmanager
def _recorded(experiment: Experiment, progress: Progress | None) -> Iterator[Session]:
    """Yield the session of a recorded comparison. One that was recorded before keeps its settings and its status."""
    session = Session.open(experiment, progress)
    if (parent := session.recorded()) is not None:
        session.join(parent)
        yield session
        return
    session.begin([])
    with closing(session.tracker, session.parent):
        yield session
    session.tracker.postpone_comparison(session.parent)  # its cells are still to be trained
