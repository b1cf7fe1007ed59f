"""avg@k: the mean over samples and problems and its standard errors by hand, seeds, and what is kept when it is killed."""

# ruff: noqa: F811  (fixtures of test_harness)
import math

import pandas as pd
import pytest

pytest.importorskip("lm_eval", reason="needs pip install 'plo[evals]'")

from test_harness import DOCS, _swift_and_clean, says, subject, task, tokenizer  # noqa: F401

from plo.evals import EvaluationError, avg_at_k, get_model_evaluation
from plo.evals.avg_at_k import _summary


@pytest.fixture
def talker(subject, tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    subject.identity, subject.seed = "tiny", 0
    return subject


def talk(task, answers):
    rows = [{"question": row["question"], "answer": answer} for row, answer in zip(DOCS, answers, strict=False)]
    return task(
        "talk", rows, output_type="generate_until", doc_to_choice=None, doc_to_target="{{answer}}",
        metric_list=[{"metric": "exact_match"}],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
    )  # fmt: skip


def test_means_and_standard_errors_by_hand():
    """Two problems with the samples (1, 0) and (1, 1)."""
    table = pd.DataFrame(
        {"prompt_id": ["a", "b", "a", "b"], "task": "t", "sample": [0, 0, 1, 1], "t.acc": [1.0, 1.0, 0.0, 1.0]}
    )
    metrics, items = _summary(table, ["t.acc"], 2)
    assert metrics["t.acc"] == 0.75 and metrics["t.acc.pass"] == 1
    assert metrics["t.acc.se"] == pytest.approx(math.sqrt((0.25**2 + 0.25**2) / 1 / 2))
    assert metrics["t.acc.se_samples"] == pytest.approx(math.sqrt((0.5 + 0) / 2 / (2 * 2)))
    assert items.set_index("prompt_id")["t.acc"].to_dict() == {"a": 0.5, "b": 1.0}
    once, _ = _summary(table[:2], ["t.acc"], 1)
    assert math.isnan(once["t.acc.se_samples"]) and once["t.acc.se"] == 0


def test_near_temperature_zero_every_sample_is_the_likeliest_answer(talker, task):
    said = [says(talker, row["question"]) for row in DOCS[:3]]
    folder = talk(task, [said[0], "never", said[2]])
    options = {"tasks": ("talk",), "include_path": folder, "k": 2, "temperature": 1e-4, "top_p": 1.0}
    found = get_model_evaluation("avg_at_k", options)(talker)
    assert found.metrics["talk.exact_match"] == pytest.approx(2 / 3)
    assert found.metrics["talk.exact_match.se_samples"] == 0
    assert found.items["talk.exact_match"].tolist() == [1, 0, 1]
    assert found.tables["avg_at_k_samples.json"]["text"].tolist() == [*said, *said]
    assert found.notes[0] == "avg@2 at temperature 0.0001, top-p 1; 3 problems."


def test_samples_have_seeds_of_their_own_and_are_drawn_once(talker, task, monkeypatch):
    folder = talk(task, ["never"] * 6)
    options = {"tasks": ("talk",), "include_path": folder, "temperature": 3.0, "top_p": 1.0}
    calls, real = [], avg_at_k.run_tasks

    def counted(*arguments, **settings):
        if len(calls) == 2 and not killed:
            killed.append(True)
            raise KeyboardInterrupt
        calls.append(settings["torch_random_seed"])
        return real(*arguments, **settings)

    killed = []
    monkeypatch.setattr(avg_at_k, "run_tasks", counted)
    with pytest.raises(KeyboardInterrupt):
        get_model_evaluation("avg_at_k", options | {"k": 3})(talker)
    found = get_model_evaluation("avg_at_k", options | {"k": 3})(talker)
    assert len(calls) == len(set(calls)) == 3  # the two that were drawn before it was killed are kept
    texts = found.tables["avg_at_k_samples.json"].groupby("sample")["text"].agg(tuple)
    assert len(set(texts)) == 3
    again = get_model_evaluation("avg_at_k", options | {"k": 2})(talker)
    assert len(calls) == 3 and again.tables["avg_at_k_samples.json"]["text"].tolist() == [*texts[0], *texts[1]]
    talk(task, ["never"] * 5 + ["ever"])  # other rows in the same file are other problems
    get_model_evaluation("avg_at_k", options | {"k": 1})(talker)
    assert len(calls) == 4


def test_a_task_that_generates_nothing_is_refused(talker, task):
    with pytest.raises(EvaluationError, match=r"the lm-eval task 'colours' generates none \(multiple_choice\)"):
        get_model_evaluation("avg_at_k", {"tasks": ("colours",), "include_path": task("colours")})(talker)
