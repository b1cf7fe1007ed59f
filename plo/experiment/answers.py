"""Answers that a policy is sampled for training pairs, and their scores: stages that every comparison of a store shares.

Answers are kept under the hash of everything they depend on, and their scores under that and the oracle's version. The
pairs are a view of both: another rule samples nothing and asks nobody.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from plo import caches, distributed
from plo import store as stored
from plo.backbone.model import Backbone
from plo.backbone.weights import Weights
from plo.config import ConfigError, EvaluationConfig, Experiment
from plo.config_data import SampleConfig
from plo.data import Pair, Row
from plo.data.rows import Text
from plo.evals.judges import JudgeSession
from plo.evals.judges.judge import kind_property
from plo.evals.scoring import Oracle, Scorer, Tournament
from plo.experiment.keys import scorer_name
from plo.experiment.stages import Stages
from plo.identity import sha256
from plo.preference_rules import choose_pairs, read_rule
from plo.scorers import Stage
from plo.subjects.sampling import VERSION, Prompt, answers, eos_ids, held_out_prompts, log_probs
from plo.tracking import STAGE

DRAWN, SCORED, ABOUT = "answers.parquet", "scores.parquet", "about.json"
ANSWERS, SCORES = "answers", "scored answers"  # names of the stages
KL_ANSWERS = 512  # answers on which the KL between their policy and another one is estimated


@dataclass(frozen=True)
class Answers:
    """Scored answers of one round.

    Attributes:
        frame: a row an answer: prompt_id, sample, prompt, text, tokens, finished, ids, logp (nats, under the policy and the
            temperature that it was drawn with; NaN where top_p is below 1) and score.
        prompts: the prompts, by prompt_id.
        queries: number of answers scored, or of questions to the judge, whether asked or known.
        keys: keys of the two stages.
        oracle: name of the scorer or judge.
    """

    frame: pd.DataFrame
    prompts: Sequence[Prompt]
    queries: int
    keys: tuple[str, str]
    oracle: str

    def pairs(self, rule: str, source: Sequence[Pair], seed: int) -> list[Pair]:
        """Return the preference pairs that a rule makes of the answers, in the order of the prompts.

        Args:
            source: pairs of the data source, whose prompts these are.
        """
        rows = {pair.prompt: pair for pair in reversed(source)}
        by_prompt = [own for _, own in self.frame.groupby("prompt_id")]
        ids = [own["ids"].tolist() for own in by_prompt]
        scores = [own["score"].tolist() for own in by_prompt]
        keys = [f"{seed} {prompt.text}" for prompt in self.prompts]
        found = []
        for number, chosen, rejected in choose_pairs(scores, ids, read_rule(rule), keys):
            prompt, own = self.prompts[number], by_prompt[number]["text"].tolist()
            better, worse = scores[number][chosen], scores[number][rejected]
            columns = {"margin": better - worse, "score_chosen": better, "score_rejected": worse}
            origin = rows[prompt.text]
            where = f"answers {chosen} and {rejected} to the prompt of {origin.where}"
            sides = (ids[number][chosen], ids[number][rejected])
            row = _row(origin, own[chosen], own[rejected], columns, where)
            found.append(Pair(prompt.ids, *sides, prompt.text, where, columns, row))
        return found

    def kl(self, backbone: Backbone) -> tuple[float, float]:
        """Return KL(policy of the answers || what the backbone holds), nats a response, and its standard error.

            mean of log mu(y | x) - log pi(y | x) over the first answers, prompts as clusters

        Both are NaN where log mu is not known.
        """
        k = len(self.frame) // len(self.prompts)
        count = min(len(self.prompts), max(1, KL_ANSWERS // k))
        part = self.frame.iloc[: count * k]
        theirs = np.array(log_probs(backbone, self.prompts[:count], part["ids"].tolist()))
        gaps = (part["logp"].to_numpy() - theirs).reshape(count, k).mean(1)
        return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")


def sampled(
    stages: Stages,
    experiment: Experiment,
    tokenizer: Any,
    pairs: Sequence[Pair],
    weights: Weights,
    *,
    seed: int,
    number: int,
    policy: str,
) -> Answers:
    """Return the scored answers of a round, sampling and scoring those first that are missing.

    Args:
        pairs: training pairs of the data source, whose prompts are asked.
        weights: those of the policy.
        seed: seed of the sampling noise, equal for every policy.
        number: number of the round; the first one may have a policy of another name (`data.sample.policy`).
        policy: name of the policy, in records.

    Raises:
        ConfigError: nothing scores the answers.
        PloError: sampling or scoring fails; what is done is kept.
    """
    config, other = experiment.data.sample, number == 1 and experiment.data.sample.policy is not None
    oracle = oracle_of(experiment)
    prompts = held_out_prompts(pairs, config.prompts or len(pairs))
    backbone = stages.base(Stage(model=config.policy)) if other else stages.backbone
    weights = backbone.start if other else weights
    asked = [(tuple(prompt.ids), prompt.text) for prompt in prompts]
    how = [str(backbone.compute_dtype), backbone.device.type, backbone.packed, backbone.attention]
    drawing, ends = sampling_config(experiment), eos_ids(backbone.causal_lm.generation_config, tokenizer)
    settings = [drawing.samples, drawing.temperature, drawing.top_p, drawing.max_new_tokens, drawing.batch_size]
    key = sha256([VERSION, weights.identity, how, settings, ends, seed, number, asked])
    params = answers_params(experiment, seed, number, policy, len(prompts))
    noise = int(sha256(["answers", seed, number])[:8], 16)  # not that of the evaluations
    own = caches.CACHES["answers"].path(key)
    with stages.recording(own, [DRAWN], ANSWERS, params) as (run, missing):
        started = time.perf_counter()
        if missing:
            alone = distributed.processes() == 1  # several processes generate together, and must not read other files
            folder = own / "drawn"
            distributed.on_main(lambda: folder.mkdir(parents=True, exist_ok=True), share=False)
            with backbone.holding(weights):
                frame = answers(backbone, tokenizer, prompts, drawing, noise, folder if alone else None)
                logps = _drawn_with(backbone, prompts, frame["ids"].tolist(), drawing)
            write = frame.assign(logp=logps).to_parquet
            distributed.on_main(lambda: stored.write(own / DRAWN, write, durable=True), share=False)
            distributed.on_main(lambda: shutil.rmtree(folder, ignore_errors=True), share=False)
        run.artifacts(own, STAGE)
        run.finish({"seconds": time.perf_counter() - started, "answers": len(prompts) * config.k})
    if other:
        stages.release()
    frame = distributed.on_main(lambda: pd.read_parquet(own / DRAWN))
    frame["ids"] = [tuple(map(int, ids)) for ids in frame["ids"]]
    scores, queries, scored = _scored(stages, oracle, frame, key, prompts, pairs, params)
    return Answers(frame.assign(score=scores), prompts, queries, (key, scored), oracle.name)


def _drawn_with(
    backbone: Backbone, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]], drawing: EvaluationConfig
) -> list[float] | float:
    """Return the log-prob (nats) of each answer under the distribution that it was drawn from; NaN with top_p below 1."""
    if drawing.top_p < 1:
        return float("nan")
    plain = drawing.temperature == 1
    statistic = "logps" if plain else f"logps_at(temperature={drawing.temperature!r})"
    return log_probs(backbone, prompts, ids, statistic)


def _scored(
    stages: Stages,
    oracle: Oracle,
    frame: pd.DataFrame,
    of: str,
    prompts: Sequence[Prompt],
    pairs: Sequence[Pair],
    params: dict[str, Any],
) -> tuple[np.ndarray, int, str]:
    """Return the scores of answers, the number of queries, and the key of the scores."""
    key = sha256([of, oracle.version])
    own, params = caches.CACHES["answers"].path(key), params | {"answers.oracle": oracle.name}
    with stages.recording(own, [SCORED, ABOUT], SCORES, params) as (run, missing):
        started = time.perf_counter()
        if missing:
            rows = {pair.prompt: pair.row for pair in pairs}
            asked = [_asked(rows.get(prompt.text), prompt.text) for prompt in prompts]

            def score() -> None:
                scores, queries = oracle.score(frame.assign(asked=frame["prompt_id"].map(dict(enumerate(asked)))))
                about = frame[["prompt_id", "sample"]].assign(score=scores)
                stored.write(own / SCORED, about.to_parquet, durable=True)
                stored.write_json(own / ABOUT, {"queries": queries}, durable=True)

            distributed.on_main(score, share=False)
        run.artifacts(own, STAGE)
        numbers = distributed.on_main(lambda: stored.read_json(own / ABOUT)) or {"queries": 0}
        run.finish({"seconds": time.perf_counter() - started, "queries": numbers["queries"]})
    scores = distributed.on_main(lambda: pd.read_parquet(own / SCORED))["score"].to_numpy()
    return scores, int(numbers["queries"]), key


def sampling_config(experiment: Experiment) -> EvaluationConfig:
    """Return the settings of the sampling: those of `data.sample`, and the evaluation's where it leaves them open."""
    config = experiment.data.sample
    own = {"samples": config.k, "temperature": config.temperature, "top_p": config.top_p}
    length = {} if config.max_new_tokens is None else {"max_new_tokens": config.max_new_tokens}
    return experiment.evaluation.model_copy(update=own | length)


def answers_params(experiment: Experiment, seed: int, number: int, policy: str, prompts: int) -> dict[str, Any]:
    """Return the parameters that a stage of answers is recorded with; plans find it by them."""
    drawing = sampling_config(experiment)
    settings = {"k": drawing.samples, "temperature": drawing.temperature, "top_p": drawing.top_p}
    settings |= {"max_new_tokens": drawing.max_new_tokens, "prompts": prompts}
    about = {"round": number, "seed": seed, "policy": policy, **settings}
    return {f"answers.{name}": str(value) for name, value in about.items()}


def oracle_of(experiment: Experiment) -> Oracle:
    """Return what scores the answers: the judge or scorer of `data.sample`, or the gold reward of the data source.

    Raises:
        ConfigError: there is none.
        EvaluationError, JudgeError: it cannot score answers.
    """
    config = experiment.data.sample
    if config.judge is not None:
        return _tournament(json.dumps(config.judge), config.judge_calls, config.judge_money)
    return Scorer(scorer_name(experiment))


def check_oracle(experiment: Experiment) -> None:
    """Raise the errors of `oracle_of` that show without loading a model or calling a server."""
    judge = experiment.data.sample.judge
    if judge is None:
        Scorer(scorer_name(experiment))
    else:
        JudgeSession(judge).check()


def check_budget(experiment: Experiment) -> None:
    """Refuse a budget for the judge of answers in a launch of several processes, each of which would spend it (ConfigError)."""
    config = experiment.data.sample
    budget = {"judge_calls": config.judge_calls, "judge_money": config.judge_money}
    if config.judge is not None and (given := [f"{name}={value}" for name, value in budget.items() if value]):
        raise ConfigError(
            f"data.sample has {' and '.join(given)} for a launch, and the answers would be sampled by several processes, each with "
            f"that budget: run the comparison with --workers 1 and without --engine, or remove the budget."
        )


@cache
def _tournament(judge: str, calls: int | None, money: float | None) -> Tournament:
    """Return a judge with one budget for all answers of this process."""
    return Tournament(JudgeSession(json.loads(judge), calls=calls, money=money))


def judge_calls_of(config: SampleConfig, prompts: int, judging: JudgeSession) -> int:
    """Return the maximum number of questions to the judge for the answers to `prompts` prompts."""
    orders = 1 if kind_property(judging.spec, "pointwise") else 2
    return prompts * config.k * (config.k - 1) // 2 * orders * judging.repeats


def _row(origin: Pair, chosen: str, rejected: str, columns: dict[str, float], where: str) -> Row | None:
    if origin.row is None:
        return None
    better, worse = (_answer(text, origin.row.conversational) for text in (chosen, rejected))
    return Row(origin.row.prompt, better, worse, columns, where)


def _answer(text: str, conversational: bool) -> Text:
    return [{"role": "assistant", "content": text}] if conversational else text


def _asked(row: Row | None, rendered: str) -> str:
    """Return a prompt as a judge reads it: plain text, or the content of the messages, with their roles if there are several."""
    if row is None or isinstance(row.prompt, str):
        return rendered if row is None else str(row.prompt)
    if len(row.prompt) == 1:
        return row.prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in row.prompt)
