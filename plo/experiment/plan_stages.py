"""Stages of a plan, which cells wait for: passes of the reference, trained stages and token scores."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from plo.backbone.token_statistics import needs_reference
from plo.data.completions import completion_names
from plo.evals.judges import JudgeSession
from plo.experiment.answers import ANSWERS, answers_params, judge_calls_of
from plo.experiment.costs import cost_class
from plo.experiment.keys import Cell, Inputs, optimiser_steps, previous_round, training_pairs
from plo.experiment.plan_evaluations import price_of
from plo.experiment.stages import stage_pairs, stage_params, stage_settings
from plo.experiment.workbench import draws_anew, has_own_sft, sft_is_reference, sft_stage
from plo.losses import get_loss
from plo.scorers import Scorer, Stage, Variant
from plo.subjects.sampling import held_out_prompts
from plo.tracking import Tracker

State = Literal["finished", "resumes", "to do"]
FURTHER = ("hidden states", "completions")  # passes of the reference that only some losses need
Work = tuple[Variant | None, int]  # a variant (None: the reference) and a seed, that wait for stages


@dataclass(frozen=True)
class PlannedStage:
    """A training, a scoring or a pass of the reference that cells wait for.

    Attributes:
        name: as recorded: "sft", "oracle", "scores NAME", "answers"; or "reference pass", "drawn pairs", "hidden states" and
            "completions".
        variants: names of those that need it.
        steps: of the optimiser; 0 for a scoring or a pass.
        pairs: number of pairs that it is trained on, or passes through the model; of answers, their number.
        seed: seed of the cells that need it; None: all seeds share it.
        cost: cost class of its loss, or the scorer's name.
        batch: pairs in an optimiser step.
        unit: name that no other unit of the plan has.
        needs: units that it waits for.
        calls: maximum number of questions to the judge of answers.
        money: roughly their cost, in the currency of the judge's prices; NaN: the judge has no prices.
    """

    name: str
    variants: tuple[str, ...]
    steps: int
    pairs: int
    state: State
    seed: int | None = None
    cost: str = ""
    batch: int = 0
    unit: str = ""
    needs: tuple[str, ...] = ()
    calls: int = 0
    money: float = 0.0


class Stages:
    """Collects the stages that planned cells and trials need.

    Args:
        inputs: settings and data.
        tracker: the store, whose finished stages are known; None: there is none.
        trained: variants and seeds whose training is finished, so that what they read of the reference is in the cache.
    """

    def __init__(self, inputs: Inputs, tracker: Tracker | None, trained: Collection[tuple[Variant, int]]):
        self.inputs = inputs
        self.trained = {seed for _, seed in trained}
        self._passed = {(name, seed) for variant, seed in trained for name, _ in _further_passes(variant)}
        made = tracker.stages() if tracker is not None else []
        ours = {"plo.data": inputs.data.digest, "plo.model": inputs.model_identity}
        self._finished = Counter(
            _recorded_as(run["name"], run["params"])
            for run in made
            if run["status"] == "FINISHED" and ours.items() <= run["tags"].items()
        )
        self._found: dict[Any, PlannedStage] = {}

    def all(self) -> tuple[PlannedStage, ...]:
        """Return the stages that were needed, each after those that it waits for."""
        return tuple(self._found.values())

    def needed_by(self, work: Iterable[Work]) -> dict[Work, tuple[str, ...]]:
        """Return the names of the units that each variant with its seed waits for."""
        return {one: self._needed(*one) for one in work}

    def _needed(self, variant: Variant | None, seed: int) -> tuple[str, ...]:
        experiment, name = self.inputs.experiment, variant.name if variant is not None else "reference"
        count, anew = len(self.inputs.data.train), draws_anew(self.inputs.experiment)
        own_sft = has_own_sft(experiment)
        held_out = len(self.inputs.data.eval[: experiment.evaluation.pairs])
        needs: tuple[str, ...] = ()
        if "sft" in experiment.stages:
            stage = sft_stage(experiment, seed)
            needs = (self._stage("sft", stage, name, seed if own_sft or anew else None, ()),)
        of_seed = own_sft and sft_is_reference(experiment)  # every seed has a reference of its own
        whose = seed if of_seed else None
        pairs = held_out + (0 if anew else count)
        needs += (self._pass("reference pass", name, pairs, whose, needs),)
        if anew:
            needs += (self._pass("drawn pairs", name, count, seed, needs),)
        if variant is None:
            return needs
        own = training_pairs(self.inputs, variant)
        if variant.origin.round:
            needs += (self._answers(variant, seed, needs),)
        for label, share in _further_passes(variant):
            count = math.ceil(share * own)
            needs += (self._pass(label, name, count, seed if anew or of_seed else None, needs),)
        for scorer in with_inner(Cell(variant, seed, "").scorer(experiment)):
            whose = None if experiment.share_stages and not anew else seed
            before = [self._stage(label, stage, name, whose, needs) for label, stage in scorer.stages.items()]
            if not scorer.stages and not anew and not scorer.seeded:
                whose = None
            params = {"scorer": scorer.name, "seed": seed if scorer.seeded else "all", "pairs": own}
            made = PlannedStage(f"scores {scorer.name}", (), 0, own, "to do", whose, scorer.name)
            needs += (self._add(made, params, name, (*needs, *before)),)
        return needs

    def _stage(self, label: str, stage: Stage, variant: str, seed: int | None, needs: tuple[str, ...]) -> str:
        train = self.inputs.experiment.train
        pairs, settings = stage_pairs(stage, len(self.inputs.data.train)), stage_settings(train, stage)
        cost, steps = cost_class(get_loss(stage.loss)), optimiser_steps(settings, pairs)
        made = PlannedStage(label, (), steps, pairs, "to do", seed, cost, settings.batch_size)
        return self._add(made, stage_params(train, stage), variant, needs)

    def _answers(self, variant: Variant, seed: int, needs: tuple[str, ...]) -> str:
        """Add the answers of a round: the first one's are everyone's, a later one's are of the model that they are from."""
        experiment, number = self.inputs.experiment, variant.origin.round
        config, noise = experiment.data.sample, 0 if experiment.share_stages else seed
        prompts = len(held_out_prompts(self.inputs.data.train, config.prompts or len(self.inputs.data.train)))
        policy = f"{previous_round(variant).name} seed {seed}" if number > 1 else config.policy or "start"
        needs = (*needs, policy) if number > 1 else needs
        calls, money = 0, 0.0
        if config.judge is not None:
            judging = JudgeSession(config.judge)
            calls = judge_calls_of(config, prompts, judging)
            money = calls * price_of(judging, self.inputs.data.train)
        whose = None if experiment.share_stages and number == 1 and not draws_anew(experiment) else seed
        made = PlannedStage(ANSWERS, (), 0, prompts * config.k, "to do", whose, calls=calls, money=money)
        return self._add(made, answers_params(experiment, noise, number, policy, prompts), variant.name, needs)

    def _pass(self, name: str, variant: str, pairs: int, seed: int | None, needs: tuple[str, ...]) -> str:
        known = self._seeds_of(name)
        done = bool(known) if seed is None else seed in known
        made = PlannedStage(name, (), 0, pairs, "finished" if done else "to do", seed)
        return self._add(made, None, variant, needs)

    def _seeds_of(self, name: str) -> Collection[int]:
        """Return the seeds of which a training is finished that waited for a pass of this name."""
        if name in FURTHER:
            return {seed for label, seed in self._passed if label == name}
        return self.trained

    def _add(self, made: PlannedStage, params: Mapping[str, Any] | None, variant: str, needs: tuple[str, ...]) -> str:
        recorded = None if params is None else _recorded_as(made.name, params)
        key = (made.name, recorded, made.seed)
        if key not in self._found:
            if recorded is not None and self._finished[recorded] > 0:
                self._finished[recorded] -= 1  # seeds whose runs have equal parameters: the first ones are finished
                made = replace(made, state="finished")
            of = "" if made.seed is None else f" of seed {made.seed}"
            alike = sum(one.name == made.name and one.seed == made.seed for one in self._found.values())
            unit = f"{made.name}{of}{f' ({alike + 1})' if alike else ''}"
            self._found[key] = replace(made, unit=unit, needs=needs)
        known = self._found[key]
        self._found[key] = replace(known, variants=tuple(dict.fromkeys([*known.variants, variant])))
        return known.unit


def _recorded_as(name: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and parameters of a stage as its run has them."""
    return name, str(sorted((key, str(value)) for key, value in params.items()))


def _further_passes(variant: Variant) -> list[tuple[str, float]]:
    """Return what a variant needs of the reference beyond log-probs of its pairs, each with the passes of a pair that it takes."""
    hidden = [(FURTHER[0], 1.0)] if needs_reference(variant.needs) else []
    named = completion_names(variant.needs)
    return hidden + ([(FURTHER[1], len(named) / 2)] if named else [])


def with_inner(scorer: Scorer | None) -> list[Scorer]:
    """Return a scorer, preceded by the scorers inside it."""
    return [*with_inner(scorer.inner), scorer] if scorer is not None else []
