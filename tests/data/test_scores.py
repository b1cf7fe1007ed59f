"""Scores that public data sets have of their responses, from small files in their formats, as losses read them."""

import gzip
import json

import pytest

from plo.data import DataError, DropReport, load_data, read_rows
from plo.data.scores import with_scores
from plo.experiment.preflight import check_columns
from plo.losses import get_loss

READ_SCORES = ["odpo", "rpo_reward", "mappo"]


def chat(answer):
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]


def completion(response, fine, overall):
    """A completion of openbmb/UltraFeedback, as its files have it."""
    rating = {"Rating": "4", "Rationale": "Fine."}
    return {
        "annotations": {name: rating for name in ("helpfulness", "honesty", "instruction_following", "truthfulness")},
        "custom_system_prompt": "Be brief.", "model": "m", "principle": "helpfulness", "response": response,
        "critique": "Good.", "overall_score": overall, "fine-grained_score": fine,
    }  # fmt: skip


# The rows of one prompt each, with the scores that a loss should find: chosen, rejected.
ULTRAFEEDBACK = {
    "source": "evol_instruct", "instruction": "q", "models": ["a", "b", "c"], "correct_answers": ["None"],
    "completions": [completion(" middle", 3.5, 7.0), completion(" good", 4.75, 8.5), completion(" bad", 1.25, 10.0)],
}  # fmt: skip
FORMATS = {
    "openbmb/UltraFeedback": (ULTRAFEEDBACK, 4.75, 1.25),
    "HuggingFaceH4/ultrafeedback_binarized": (
        {"prompt": "q", "prompt_id": "f0", "chosen": chat("good"), "rejected": chat("bad"),
         "messages": chat("good"), "score_chosen": 8.0, "score_rejected": 5.0}, 8.0, 5.0),
    "argilla/ultrafeedback-binarized-preferences": (
        {"source": "evol_instruct", "instruction": "q", "chosen_response": " good", "rejected_response": " bad",
         "chosen_avg_rating": 4.5, "rejected_avg_rating": 2.25, "chosen_model": "m"}, 4.5, 2.25),
    "argilla/ultrafeedback-binarized-preferences-cleaned": (
        {"source": "flan", "prompt": "q", "chosen": chat("good"), "chosen-rating": 4.75, "chosen-model": "a",
         "rejected": chat("bad"), "rejected-rating": 4.0, "rejected-model": "b"}, 4.75, 4.0),
    "argilla/dpo-mix-7k": (
        {"dataset": "argilla/distilabel-capybara", "chosen": chat("good"), "rejected": chat("bad"),
         "chosen_rating": 5.0, "rejected_rating": 3.0}, 5.0, 3.0),
    "argilla/distilabel-capybara-dpo-7k-binarized": (
        {"source": "d", "conversation": [{"input": "q", "output": "a"}], "original_response": "o",
         "chosen": chat("good"), "rejected": chat("bad"), "rating_chosen": 5, "rating_rejected": 2,
         "chosen_model": "a", "rejected_model": "b"}, 5.0, 2.0),
}  # fmt: skip


def several(row, count=40):
    """The row with prompts that differ, in whichever column the prompt is."""
    texts = [json.dumps(row).replace('"q"', f'"q {i}"') for i in range(count)]
    return [json.loads(text) for text in texts]


@pytest.mark.parametrize("name", FORMATS)
def test_scores_are_under_one_pair_of_names(name, write, tokenizer):
    row, chosen, rejected = FORMATS[name]
    data = load_data("file", write(several(row)), tokenizer=tokenizer)
    for pair in (*data.train, *data.eval):
        assert "good" in str(pair.row.chosen) and "bad" in str(pair.row.rejected)
        found = [pair.columns[column] for column in ("score_chosen", "score_rejected", "margin")]
        assert found == [chosen, rejected, chosen - rejected]
    check_columns([get_loss(loss) for loss in READ_SCORES], data.train)  # of margin
    check_columns([get_loss(loss, score="score_chosen", less="score_rejected") for loss in READ_SCORES], data.train)


def test_numbers_of_both_completions_are_kept(write):
    (row,) = read_rows("file", write([ULTRAFEEDBACK]), {}, DropReport())
    expected = {"score_chosen": 4.75, "score_rejected": 1.25, "overall_score_chosen": 8.5, "overall_score_rejected": 10}
    assert row.columns == expected | {"fine_grained_score_chosen": 4.75, "fine_grained_score_rejected": 1.25}


def test_completions_without_a_better_one(write):
    equal = ULTRAFEEDBACK | {"completions": [completion(" a", 3.0, 7.0), completion(" b", 3.0, 5.0)]}
    report = DropReport()
    assert len(read_rows("file", write([ULTRAFEEDBACK, equal]), {}, report)) == 1 and report.ties == 1
    for completions in ([], [completion(" a", 3.0, 7.0)], [{"response": "a"}, {"response": "b"}], "x"):
        with pytest.raises(DataError, match="no two responses with scores"):
            read_rows("file", write([ULTRAFEEDBACK | {"completions": completions}]), {}, DropReport())


def test_given_columns_stay_and_the_digest_counts_them_alone(write, tokenizer):
    assert with_scores({"margin": 9.0, "score_chosen": 2.0, "score_rejected": 1.0})["margin"] == 9.0
    assert with_scores({"score_chosen": 2.0}) == {"score_chosen": 2.0}
    row = FORMATS["argilla/dpo-mix-7k"][0]
    assert load_data("file", write(several(row)), tokenizer=tokenizer).train[0].row.columns.keys() == {
        "chosen_rating",
        "rejected_rating",
    }


def helpsteer(prompt, response, helpfulness, verbosity):
    ratings = {"helpfulness": helpfulness, "correctness": 3, "coherence": 4, "complexity": 1, "verbosity": verbosity}
    return {"prompt": prompt, "response": response, **ratings}


def test_helpsteer_pairs_the_responses_to_a_prompt(tmp_path):
    """As nvidia/HelpSteer2's folder: two rows a prompt, and the preferences in a folder of their own."""
    rows = [helpsteer("p", "good", 4, 2), helpsteer("p", "bad", 1, 3)]
    rows += [helpsteer("tie", "a", 2, 2), helpsteer("tie", "b", 2, 0)]
    rows += [helpsteer("four", text, number, 2) for text, number in (("c", 1), ("worst", 0), ("best", 3), ("d", 2))]
    for name, part in {"train": rows[:4], "validation": rows[4:]}.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, part)))
    (tmp_path / "preference").mkdir()
    (tmp_path / "preference" / "preference.jsonl").write_text(json.dumps({"split": "train", "prompt": "p"}))
    report = DropReport()
    first, second = read_rows("helpsteer", tmp_path, {}, report)
    assert (first.prompt, first.chosen, first.rejected, first.split) == ("p", "good", "bad", "train")
    scores = {"score_chosen": 4, "score_rejected": 1, "verbosity_chosen": 2, "verbosity_rejected": 3}
    assert scores.items() <= first.columns.items() and len(first.columns) == 12
    assert (second.prompt, second.chosen, second.rejected, second.split) == ("four", "best", "worst", "eval")
    assert report.ties == 1
    (verbose, *_) = read_rows("helpsteer", tmp_path, {"attribute": "verbosity"}, DropReport())
    assert (verbose.chosen, verbose.rejected) == ("bad", "good") and verbose.columns["score_chosen"] == 3


def test_rows_of_single_responses_say_what_to_do(write):
    path = write([helpsteer("p", "good", 4, 2), helpsteer("p", "bad", 1, 3)], "train.jsonl")
    with pytest.raises(DataError, match=r"data: \{source: helpsteer, path"):
        read_rows("file", path, {}, DropReport())
    with pytest.raises(DataError, match="'helpfulness' is missing.*preference"):
        read_rows("helpsteer", write([{"prompt": "p", "response": "r"}]), {}, DropReport())
