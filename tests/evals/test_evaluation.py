"""`evaluate`: what is averaged over what, and what is refused."""

import math

import pandas as pd
import pytest

from plo.evals import EVALUATIONS, EvaluationError, evaluate, register_evaluation
from plo.evals.registry import describe_metric
from plo.metric import Metric
from plo.registry import RegistryError


def frame(texts, kl=None, **columns):
    """Texts by prompt: [["a", "b"], ["c"]] is two samples of prompt 0 and one of prompt 1."""
    rows = [(p, i, f"prompt {p}", text) for p, group in enumerate(texts) for i, text in enumerate(group)]
    made = pd.DataFrame(rows, columns=["prompt_id", "sample", "prompt", "text"])
    numbers = {"tokens": 4, "finished": True, "kl": 0.0 if kl is None else kl, "entropy": 2.0, "ref_nll": 3.0}
    return made.assign(**numbers | columns)


@pytest.fixture
def registered(request):
    """Forgets what a test registers."""
    before = dict(EVALUATIONS._entries)
    yield
    EVALUATIONS._entries = before


def test_every_prompt_counts_once():
    result = evaluate(frame([["a", "b", "c"], ["d"]], kl=[1.0, 2.0, 3.0, 8.0]), [])
    assert result.prompts["kl"].tolist() == [2.0, 8.0]
    assert result.metrics["kl"] == 5.0  # not the mean over samples, 3.5
    # prompts as clusters: sd of (2, 8) with ddof 1 is 3 sqrt(2); over sqrt(2) prompts: 3
    assert result.metrics["kl_se"] == pytest.approx(3.0)
    assert result.metrics["finished"] == 1.0 and isinstance(result.metrics["tokens"], float)
    assert math.isnan(evaluate(frame([["a", "b"]]), []).metrics["kl_se"])


def test_the_whole_suite():
    names = ["gold_win_rate", "sentiment", "ngram_diversity", "repetition"]  # prompt level first: the order is free
    samples = frame([["I love this. It is great.", "I hate this."], ["", "a table"]])
    reference = frame([["I hate this.", "I hate this."], ["", ""]])
    samples.index = [7, 7, 3, 5]  # a frame cut from others may have any index
    result = evaluate(samples, names, reference)
    assert result.samples.index.tolist() == [7, 7, 3, 5]
    assert result.prompts["gold_win_rate"].tolist() == [0.75, 0.5]
    assert {"reward", "valence", "repetition"} <= set(result.samples.columns)
    assert {"distinct_1", "self_bleu_pairwise", "gold_win_rate", "reward"} <= set(result.metrics)
    # the recorded samples table comes back as a reference, with its columns, and may be evaluated again
    again = evaluate(result.samples, names, reference=result.samples)
    assert again.metrics["gold_win_rate"] == 0.5
    assert "reward" not in samples.columns


def test_undefined_for_a_prompt_or_broken_for_a_sample():
    result = evaluate(frame([["a b", "c d"], ["e"]]), ["ngram_diversity"])
    assert result.prompts["self_bleu_pairwise"].isna().tolist() == [False, True]
    assert not math.isnan(result.metrics["self_bleu_pairwise"])
    assert math.isnan(evaluate(frame([["a"], ["b"]], kl=[1.0, math.nan]), []).metrics["kl"])
    assert math.isnan(evaluate(frame([["a"], ["b"]]), ["ngram_diversity"]).metrics["self_bleu_pairwise"])


def test_what_is_refused(registered):
    samples = frame([["a"], ["b"]])
    with pytest.raises(EvaluationError, match="lacks the columns kl"):
        evaluate(samples.drop(columns="kl"), [])
    with pytest.raises(EvaluationError, match="no rows"):
        evaluate(samples.iloc[:0], [])
    with pytest.raises(EvaluationError, match="reference=frame"):
        evaluate(samples, ["sentiment", "gold_win_rate"])
    with pytest.raises(EvaluationError, match=r"'reward'.*'sentiment'"):
        evaluate(samples, ["gold_win_rate"], samples)
    with pytest.raises(EvaluationError, match="no samples for 1 prompts, first prompt_id 1"):
        evaluate(samples, ["sentiment", "gold_win_rate"], samples.iloc[:1])
    with pytest.raises(RegistryError, match="sentiment"):
        evaluate(samples, ["sentimental"])
    register_evaluation("other_name")(lambda samples: samples[["tokens"]])
    with pytest.raises(EvaluationError, match=r"declared the metrics \['other_name'\] but .* \['tokens'\]"):
        evaluate(samples, ["other_name"])
    register_evaluation("tokens")(lambda samples: samples[["tokens"]])
    with pytest.raises(EvaluationError, match="returned tokens, which is taken"):
        evaluate(samples, ["tokens"])
    register_evaluation("few")(lambda samples: samples["tokens"].to_frame("few").iloc[:1])
    with pytest.raises(EvaluationError, match="1 rows with another index"):
        evaluate(samples, ["few"])
    with pytest.raises(EvaluationError, match="level"):
        register_evaluation("x", level="corpus")


def test_an_evaluation_declares_its_facts(registered):
    facts = EVALUATIONS["hh"].facts
    assert (facts.level, facts.main_score, facts.asks_judge) == ("model", "win_rate_chosen", True)
    assert (facts.license, facts.citation) == ("MIT", "Bai et al. 2022, arXiv:2204.05862")
    assert facts.higher_is_better["win_rate*"] is True

    @register_evaluation("lengths", higher_is_better={"characters": None, "words": None})
    def lengths(samples):
        """Two metrics: the first one is the main score."""

    facts = EVALUATIONS["lengths"].facts
    assert (facts.level, facts.main_score, facts.asks_judge, facts.license) == ("sample", "characters", False, "")
    with pytest.raises(EvaluationError, match=r"main_score='letters' is none of its metrics \(characters\)"):
        register_evaluation("other", main_score="letters", higher_is_better={"characters": None})


def test_every_built_in_evaluation_says_what_its_metrics_are():
    unsaid = Metric("any", "any").meaning
    for entry in EVALUATIONS:
        if entry.load().__module__.startswith("plo."):
            for name in (entry.facts.main_score, *entry.facts.higher_is_better):
                if name != "win_rate*":  # each opponent has a pattern of its own
                    assert describe_metric(entry, name).meaning != unsaid, f"{entry.name}: {name} has no meaning"
