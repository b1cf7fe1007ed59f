"""Workbench: what all cells of a comparison share (model, tokenizer, data, reference, stages), each loaded once."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from transformers import GenerationConfig

from plo import caches, distributed
from plo.backbone.head import ModelError
from plo.backbone.limits import check_rows
from plo.backbone.load import load_backbone
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.config import ConfigError, Experiment
from plo.data import SOURCES, Pair, PreferenceData, load_data
from plo.evals import EVALUATIONS, ModelEvaluation, get_model_evaluation
from plo.evals.judges import JudgeSession
from plo.evals.judges.template import get_template
from plo.experiment.answers import sampling_config
from plo.experiment.best_of import check_best_of
from plo.experiment.drawn import Drawn
from plo.experiment.keys import Inputs
from plo.experiment.preflight import check_columns, check_losses, losses_of_stages
from plo.experiment.progress import Progress
from plo.experiment.scores import token_weights
from plo.experiment.stages import Stages
from plo.identity import sha256
from plo.scorers import Scorer, Scores, Stage
from plo.subjects.engines import check_engine
from plo.subjects.loading import computed_with
from plo.subjects.sampling import check_sampled, eos_ids, held_out_prompts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workbench(Inputs):
    """The backbone, data and stores that all cells of a comparison share, each loaded once."""

    backbone: Backbone
    store: ReferenceStore
    stages: Stages
    sft: str | None  # key of the stage that cells start from; None if they start from the model itself
    drawn: Drawn | None = None  # of a cell whose training pairs are not the data source's own

    def of_seed(self, seed: int) -> "Workbench":
        """Return the workbench of a seed: with its training pairs, and its SFT as the start, as far as seeds have their own."""
        bench = self
        if draws_anew(self.experiment):
            generation = self.backbone.causal_lm.generation_config
            drawn = read_data(self.experiment, self.tokenizer, generation, seed).train if seed else self.data.train
            data, stages = replace(self.data, train=drawn), replace(self.stages, pairs=drawn, _digests={})
            bench = replace(self, data=data, stages=stages)
        return bench.started_from_sft(seed) if has_own_sft(self.experiment) else bench

    def started_from_sft(self, seed: int) -> "Workbench":
        """Let every training start from the SFT of a seed from now on; it is trained first if it is missing."""
        stage, backbone = sft_stage(self.experiment, seed), self.backbone
        reference = backbone.reference
        backbone.start = backbone.reference = backbone.base  # what an SFT starts from
        try:
            key, weights = self.stages.key(stage), self.stages.trained(stage, "sft")
        finally:
            backbone.reference = reference
        backbone.start_from(weights, reference=sft_is_reference(self.experiment))
        return replace(self, sft=key)

    def base_identity(self, stage: Stage) -> list[Any]:
        return self.stages.identity(stage)


def workbench(experiment: Experiment, progress: Progress | None = None) -> Workbench:
    """Load the model and the data of an experiment. Nothing is trained yet."""
    if lost := distributed.lost_processes():
        log.warning(lost)
    progress = progress or Progress()
    distributed.on_main(caches.note_form, share=False)
    new_tokens = max(experiment.evaluation.max_new_tokens, sampling_config(experiment).max_new_tokens)
    longest = experiment.data.max_length + new_tokens
    with progress.status(f"loading {experiment.model.name}"):
        backbone, tokenizer = load_backbone(experiment.model, longest=longest)
    with progress.status(f"reading {experiment.data.source}"):
        data = read_data(experiment, tokenizer, backbone.causal_lm.generation_config)
    check_rows(backbone.causal_lm, [*data.train, *data.eval])
    prompts, config = held_out_prompts(data.eval, experiment.evaluation.prompts), experiment.evaluation
    check_sampled(backbone, prompts, config)
    log.info(str(data.summary()))
    store = ReferenceStore(caches.CACHES["reference"].folder, experiment.model.reference_disk_gb)
    common = {"pairs": data.train, "model": experiment.model, "train": experiment.train, "store": store}
    stages = Stages(backbone, tokenizer, **common, record_models=experiment.record_models)
    sft = stages.key(sft_stage(experiment)) if "sft" in experiment.stages else None  # before the start changes
    identity = _identity(experiment, stages, sft)
    return Workbench(experiment, tokenizer, data, *suites(experiment), identity, backbone, store, stages, sft)


def draws_anew(experiment: Experiment) -> bool:
    """Return whether the data source draws other pairs for every seed."""
    source, options = experiment.data.source, experiment.data.options
    return source in SOURCES and SOURCES[source].facts.seeded and "seed" not in options


def has_own_sft(experiment: Experiment) -> bool:
    """Return whether each seed starts from an SFT of its own."""
    return "sft" in experiment.stages and not experiment.share_stages


def sft_is_reference(experiment: Experiment) -> bool:
    """Return whether the stage sft, if there is one, is the reference."""
    return "sft" in experiment.stages and experiment.reference in (None, "sft")


def read_data(experiment: Experiment, tokenizer: Any, generation: GenerationConfig, seed: int = 0) -> PreferenceData:
    """Read an experiment's pairs as token ids.

    Args:
        generation: names further tokens that end a response.
        seed: seed of the pairs, where `draws_anew`.
    """
    settings = experiment.data.model_dump(exclude={"origin", "flip", "sample"})
    source, path = settings.pop("source"), settings.pop("path")
    if draws_anew(experiment):
        settings["options"] = {**settings["options"], "seed": seed}
    return load_data(source, path, tokenizer=tokenizer, ends=eos_ids(generation, tokenizer), **settings)


def prepare(bench: Workbench, progress: Progress | None = None, *, training: bool = True) -> None:
    """Train the stage sft if seeds share one, set the reference, and compute its statistics of the pairs.

    Args:
        training: whether anything is trained on the pairs of the data source.
    """
    experiment, backbone, store = bench.experiment, bench.backbone, bench.store
    if sft_is_reference(experiment):
        backbone.check_reference_can_be_trained()
    if bench.sft is not None and not has_own_sft(experiment):
        log.info("stage sft")
        bench.started_from_sft(0)
    if experiment.reference not in (None, "init", "sft"):
        backbone.compare_with(_other(experiment, bench.stages))
        bench.stages.release()  # a stage of that model trains a copy of its own
    if has_own_sft(experiment) and sft_is_reference(experiment):
        return  # every seed has a reference of its own
    held_out = bench.data.eval[: experiment.evaluation.pairs]
    of_source = [(bench.data.train, "training")] if training and not draws_anew(experiment) else []
    for pairs, label in [*of_source, (held_out, "held-out")]:
        with (progress or Progress()).bar(f"reference, {label} pairs", len(pairs)) as done:
            store.get(backbone, pairs, progress=done)


def sft_stage(experiment: Experiment, seed: int = 0) -> Stage:
    """Return the stage of supervised fine-tuning that a seed of an experiment begins with."""
    return Stage(loss="sft", train=experiment.sft, seed=0 if experiment.share_stages else seed)


def _identity(experiment: Experiment, stages: Stages, sft: str | None) -> str:
    """Return the hash that identifies policy and reference: weights, way of computing, and the stages before the losses."""
    how = computed_with(stages.backbone)
    if sft is not None:
        how += [sft] if experiment.share_stages else [sft, "and its like for every seed"]
    if experiment.reference not in (None, "sft" if sft is not None else "init"):
        how.append("init" if experiment.reference == "init" else _other(experiment, stages).base.identity)
    return sha256(how)


def _other(experiment: Experiment, stages: Stages) -> Backbone:
    try:
        return stages.base(Stage(model=experiment.reference))
    except ModelError as error:
        raise ConfigError(
            f"reference={experiment.reference} is neither init nor sft nor a model that can be loaded: {error}"
        ) from error


def suites(experiment: Experiment) -> tuple[tuple[str, ...], tuple[ModelEvaluation, ...]]:
    """Return the configured evaluations of samples, including the gold reward of the data source, and those of a model.

    Unknown names, unknown options and unusable judges are errors here, rather than after the first cell was trained.
    """
    source, config = experiment.data.source, experiment.evaluation
    gold = SOURCES[source].facts.gold if source in SOURCES else None
    check_best_of(experiment, gold)
    of_samples, models = [gold, "gold_win_rate"] if gold else [], []
    for name, options in config.evaluations.items():
        if EVALUATIONS[name].facts.level == "model":
            models.append(get_model_evaluation(name, options))
            if "template" in models[-1].options:
                get_template(models[-1].options["template"])
        elif options:
            raise ConfigError(
                f"evaluation.suite: {name} reads samples and has no options, but {options} are given: remove them."
            )
        else:
            of_samples.append(name)
    if config.judge is None and (lacking := [e.name for e in models if e.asks_judge]):
        raise ConfigError(f"evaluation.judge: {', '.join(lacking)} needs a judge: name one, such as hf:embedded.")
    if config.judge is not None:
        JudgeSession(config.judge).check()
    check_engine(config.sampler)
    return tuple(dict.fromkeys(of_samples)), tuple(models)


def score_pairs(
    experiment: Experiment, scorer: Scorer, progress: Progress | None = None
) -> tuple[list[tuple[Pair, Scores]], Any]:
    """Return an experiment's training pairs with the scorer's weights of their response tokens, and the tokenizer."""
    distributed.start()
    trained = losses_of_stages(scorer)
    check_losses(trained)
    bench = workbench(experiment, progress)
    check_columns(trained, bench.data.train)
    prepare(bench, progress)
    seed = experiment.seeds[0]
    bench = bench.of_seed(seed)
    scorer = scorer if experiment.share_stages else scorer.of_seed(seed)
    weights = token_weights(bench.stages, scorer, seed)
    return list(zip(bench.data.train, weights, strict=True)), bench.tokenizer
