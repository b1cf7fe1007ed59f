"""Every measure of diversity by hand, and the evaluation of a model that reports them."""

import json
import math
import zlib

import numpy as np
import pytest
from stub import StubSubject

from plo.evals import get_model_evaluation
from plo.evals.diversity import diversity, measures
from plo.evals.embeddings import cosine_distance, embed, vendi_score
from plo.evals.ngrams import (
    compression_ratio,
    distinct,
    expectation_adjusted_distinct,
    self_bleu_multi,
    self_bleu_pairwise,
)

UNDEFINED_OF_ONE = {"self_bleu_pairwise", "self_bleu_multi", "cosine_distance", "vendi_score"}


def test_distinct_n():
    texts = ["a b a b", "a b c"]  # bigrams ab ba ab, ab bc; trigrams aba bab, abc
    assert [distinct(texts, n) for n in (1, 2, 3, 4)] == [3 / 7, 3 / 5, 1.0, 1.0]
    assert math.isnan(distinct(texts, 5))


def test_ead():
    texts = ["a b a b", "a b c"]
    # V = 4: N = 3 and C = 7 unigrams, N = 3 and C = 5 bigrams
    assert expectation_adjusted_distinct(texts, 1, 4) == pytest.approx(3 / (4 * (1 - 0.75**7)))
    assert expectation_adjusted_distinct(texts, 2, 4) == pytest.approx(3 / (4 * (1 - 0.75**5)))
    # one n-gram is one expected; for V far above C it is distinct; for C far above V it is N / V
    assert expectation_adjusted_distinct(["word"]) == pytest.approx(1.0)
    assert expectation_adjusted_distinct(texts, 2, 10**9) == pytest.approx(3 / 5, rel=1e-6)
    assert expectation_adjusted_distinct(["a b " * 9999], 1, 4) == pytest.approx(2 / 4)
    assert expectation_adjusted_distinct(texts, 1) == pytest.approx(3 / (50257 * (1 - (50256 / 50257) ** 7)))
    assert math.isnan(expectation_adjusted_distinct(["", " "])) and math.isnan(expectation_adjusted_distinct(texts, 5))


def test_self_bleu_against_all_others_at_once_is_another_number():
    texts = ["a b c d", "a b x y", "z w c d"]
    # Pairwise, first and second (and, alike, first and third, both ways): 2/4, 1/3, and no 3-gram of 2 nor 4-gram
    # of 1, which exponential smoothing counts as 1/2 and 1/4 of one; second and third share nothing.
    pair = 100 * (2 / 4 * 1 / 3 * 0.5 / 2 * 0.25 / 1) ** 0.25
    assert self_bleu_pairwise(texts) == pytest.approx(4 * pair / 6)
    # The first against both others: 4/4, and 2/3 bigrams; the second against both: as pairwise; so the third.
    first = 100 * (4 / 4 * 2 / 3 * 0.5 / 2 * 0.25 / 1) ** 0.25
    assert self_bleu_multi(texts) == pytest.approx((first + 2 * pair) / 3)
    assert self_bleu_multi(texts) > 1.5 * self_bleu_pairwise(texts)
    assert self_bleu_multi(texts[:2]) == pytest.approx(self_bleu_pairwise(texts[:2]))


def test_self_bleu_multi_of_texts_that_are_alike_or_not_there():
    assert self_bleu_multi(["yes", "yes", "no"]) == pytest.approx(200 / 3)
    assert self_bleu_multi(["", " "]) == 100.0
    assert self_bleu_multi(["", "some words"]) == 0.0
    assert math.isnan(self_bleu_multi(["alone"])) and math.isnan(self_bleu_multi([]))


def test_compression_ratio():
    texts = ["the cat sat", "the cat sat", "the cät sat"]
    # gzip is zlib's stream in 18 bytes of head and tail instead of 6; two line breaks, and ä is two bytes
    raw = "\n".join(texts).encode()
    assert len(raw) == 3 * 11 + 2 + 1
    assert compression_ratio(texts) == len(raw) / (len(zlib.compress(raw, 9)) + 12)
    assert compression_ratio(["abc " * 500] * 5) > 50 > 3 > compression_ratio(["abc"]) > 0
    assert math.isnan(compression_ratio(["", ""])) and math.isnan(compression_ratio([]))


def test_cosine_distance_and_vendi_score():
    same, apart = np.tile([0.6, 0.8], (4, 1)), np.eye(4)
    assert cosine_distance(same) == pytest.approx(0.0) and vendi_score(same) == pytest.approx(1.0)
    assert cosine_distance(apart) == 1.0 and vendi_score(apart) == pytest.approx(4.0)
    assert cosine_distance(np.array([[1.0, 0.0], [-1.0, 0.0]])) == 2.0
    # two at 60 degrees: K / n has the eigenvalues (1 +- 1/2) / 2, of entropy -(3/4 log 3/4 + 1/4 log 1/4)
    two = np.array([[1.0, 0.0], [0.5, math.sqrt(0.75)]])
    assert cosine_distance(two) == pytest.approx(0.5)
    assert vendi_score(two) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    # pairs i < j alone, each once: cosines 1/2, 0 and sqrt(3)/2 with a third that is orthogonal to the first
    three = np.vstack([two, [0.0, 1.0]])
    assert cosine_distance(three) == pytest.approx(1 - (0.5 + 0 + math.sqrt(0.75)) / 3)
    assert math.isnan(vendi_score(two[:1])) and math.isnan(cosine_distance(two[:1]))


def test_embeddings_tell_meaning():
    cat, kitten, tax = embed(["A cat sleeps.", "A kitten is napping.", "The tax law of 1986 was repealed."])
    assert cat @ cat == pytest.approx(1.0, abs=1e-6) and cat @ kitten > 0.5 > 0.2 > cat @ tax
    assert embed([]).shape == (0, 384)


def test_texts_that_are_empty_alone_or_hostile():
    for texts in (["", ""], ["alone"], [""]):
        found = measures(texts, embed(texts))
        words = {name for name in found if name.startswith(("distinct", "ead"))}
        undefined = {name for name, value in found.items() if math.isnan(value)}
        assert undefined >= (UNDEFINED_OF_ONE if len(texts) == 1 else {"distinct_1", "compression_ratio"})
        assert undefined <= UNDEFINED_OF_ONE | words | {"compression_ratio"}
    hostile = ["x" * 100_000, "\0 null \0 bytes", "\ud800 a lone surrogate", "<|im_end|>\n{a}"]
    assert all(map(math.isfinite, measures(hostile, embed(hostile)).values()))


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "hh.jsonl"
    lines = [
        {side: f"\n\nHuman: question {i}?\n\nAssistant: {side} {i}" for side in ("chosen", "rejected")}
        for i in range(3)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_of_a_model(questions):
    def answer(prompt, sample, temperature):
        number = prompt.split()[2][0]
        return {"0": " same words here", "1": ["0 other", "x1 other thing"][sample], "2": ""}[number]

    subject = StubSubject(answer, entropy=1.5)
    found = get_model_evaluation("diversity", {"path": str(questions), "samples": 2})(subject)
    ((prompts, settings),) = subject.calls
    assert len(prompts) == 3
    assert settings == {"samples": 2, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 128}  # TBPO's
    items = found.items.set_axis([int(prompt.split()[2][0]) for prompt in prompts])
    # "same words here" twice: 3 of 6 words; "0 other", "x1 other thing": 4 of 5; nothing twice: undefined
    assert items.loc[[0, 1], "distinct_1"].tolist() == [0.5, 0.8] and math.isnan(items.loc[2, "distinct_1"])
    assert found.metrics["distinct_1"] == pytest.approx(0.65)
    assert items.loc[[0, 2], "vendi_score"].tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
    assert 1.05 < items.loc[1, "vendi_score"] < 2
    assert items.loc[[0, 2], "self_bleu_multi"].tolist() == [100.0, 100.0]
    assert items["length"].to_dict() == {0: 15.0, 1: (7 + 14) / 2, 2: 0.0} and found.metrics["entropy"] == 1.5
    # across: the first samples "same words here", "0 other" and "": 5 of 5 words, 3 of 3 bigrams, no 4-gram
    assert found.metrics["distinct_1_across"] == 1.0 and math.isnan(found.metrics["distinct_4_across"])
    assert found.metrics["ead_2_across"] == pytest.approx(3 / (50257 * (1 - (50256 / 50257) ** 3)))
    assert found.metrics["self_bleu_pairwise_across"] == 0.0
    assert 1 < found.metrics["vendi_score_across"] < 3
    assert len(found.tables["diversity_samples.json"]) == 6 and "prompt_id" in found.items
    for name in set(found.items) - {"prompt_id"}:
        assert found.metrics[name] == pytest.approx(found.items[name].mean(), nan_ok=True)


def test_one_sample_a_prompt_is_undefined_within_and_defined_across(questions):
    found = diversity(StubSubject(lambda prompt, sample, temperature: prompt), path=questions, samples=1)
    assert math.isnan(found.metrics["self_bleu_pairwise"]) and math.isnan(found.metrics["vendi_score"])
    assert 0 < found.metrics["self_bleu_pairwise_across"] < 100 and found.metrics["vendi_score_across"] > 1
    assert "entropy" not in found.metrics


def test_prompts_of_ultrafeedback_are_those_of_its_test_split(tmp_path):
    """A copy of the hub's files, with messages; the splits for SFT and training are not asked."""
    for split in ("train_prefs", "test_prefs", "test_sft"):
        rows = [
            {
                "prompt": f"{split} {i}",
                "prompt_id": "x",
                **{
                    side: [{"role": "user", "content": f"{split} {i}"}, {"role": "assistant", "content": f"{side} {i}"}]
                    for side in ("chosen", "rejected")
                },
                "messages": [],
                "score_chosen": 8.5,
                "score_rejected": 4.0,
            }
            for i in range(3)
        ]
        (tmp_path / f"{split}-00000-of-00001.jsonl").write_text("\n".join(map(json.dumps, rows)))
    subject = StubSubject(lambda messages, k, t: f"answer {k}", chat=True)
    options = {"source": "ultrafeedback", "path": tmp_path, "prompts": 2, "samples": 2}
    found = get_model_evaluation("diversity", options)(subject)
    ((prompts, _),) = subject.calls
    assert len(prompts) == 2 and all(prompt[-1]["content"].startswith("test_prefs") for prompt in prompts)
    assert found.metrics["distinct_1"] == 3 / 4  # "answer 0" and "answer 1"


def test_ultrafeedback_as_it_is(shared_data):
    subject = StubSubject(lambda messages, k, t: "yes", chat=True)
    path = shared_data / "ultrafeedback/eval_clean.jsonl"
    found = get_model_evaluation("diversity", {"source": "ultrafeedback", "path": path, "prompts": 5, "samples": 1})(
        subject
    )
    assert len(subject.calls[0][0]) == 5 and len(found.items) == 5
