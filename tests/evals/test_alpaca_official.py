"""AlpacaEval's rates, order and prompt against the published table, the recorded verdicts and the package itself."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("alpaca_eval")

from plo.evals import EvaluationError
from plo.evals.alpaca_official import length_controlled_items, official_order, official_template, win_rates

EXACT = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate")


def annotations(preferences, lengths_1, lengths_2, model: str = "m", baseline: str = "gpt4_1106_preview"):
    texts = [["x" * n for n in lengths] for lengths in (lengths_1, lengths_2)]
    columns = {"preference": list(preferences), "output_1": texts[0], "output_2": texts[1]}
    return pd.DataFrame(columns | {"generator_1": baseline, "generator_2": model})


def test_all_published_rates_come_back(shared_data):
    folder = shared_data / "alpaca_eval"
    published = pd.read_csv(folder / "published_leaderboard.csv", index_col=0)
    read = dict(list(pd.read_csv(folder / "preferences.csv.gz").groupby("model")))
    ours = {}
    for model in published.index:
        rows = read[model].sort_values("position")  # without a gap: so were the published ones made
        ours[model] = win_rates(annotations(rows.preference, rows.len_1, rows.len_2, model), files=folder)
    ours = pd.DataFrame(ours).T
    assert len(ours) == 32
    for column in EXACT:
        assert ours[column].tolist() == pytest.approx(published[column].tolist(), abs=1e-9), column
    off = (ours["length_controlled_winrate"] - published["length_controlled_winrate"]).abs()
    assert off.max() < 0.2 and off.median() < 0.01
    known = published["lc_standard_error"].dropna()
    assert len(known) == 4 and ours["lc_standard_error"][known.index].tolist() == pytest.approx(known, abs=1e-3)
    # Published lengths are over 805 outputs, those without a verdict empty, and cut to whole characters.
    lengths = (ours["avg_length"] * ours["n_total"] / 805 + 1e-9).astype(int)
    assert lengths.tolist() == published["avg_length"].tolist()


def test_rates_by_hand():
    table = annotations([2.0, 1.0, 1.5, 1.9, math.nan], [1] * 5, [2, 4, 6, 8, 100])
    rates = win_rates(table, length_controlled=False)
    # y = 1, 0, .5, .9: mean .6; deviations .4, .6, .1, .3: squares sum to .62
    assert rates["win_rate"] == pytest.approx(60)
    assert rates["standard_error"] == pytest.approx(100 * math.sqrt(0.62 / 3 / 4))
    assert rates["discrete_win_rate"] == pytest.approx(100 * 2.5 / 4)
    assert [rates[n] for n in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length")] == [2, 1, 1, 4, 5]


def test_an_instruction_keeps_its_place_when_others_are_missing(shared_data):
    """The regression reads an instruction's difficulty at the index, not at the row's number."""
    folder = shared_data / "alpaca_eval"
    rows = pd.read_csv(folder / "preferences.csv.gz").query("model == 'claude'").set_index("instruction_index")
    whole = annotations(rows.preference, rows.len_1, rows.len_2)
    second = whole.iloc[400:]
    shifted = win_rates(second.reset_index(drop=True), files=folder)["length_controlled_winrate"]
    kept = win_rates(second, files=folder)["length_controlled_winrate"]
    mixed = win_rates(second.sample(frac=1, random_state=0), files=folder)["length_controlled_winrate"]
    blank = win_rates(whole.assign(preference=whole["preference"].where(whole.index >= 400)), files=folder)
    assert blank["length_controlled_winrate"] == kept == pytest.approx(mixed, abs=0.1)  # folds go by the rows
    assert abs(shifted - kept) > 0.3


def test_pseudo_values_have_the_rate_as_mean_and_pair_models_by_group(monkeypatch):
    """The values of a plain mean are the groups' means, and models that lack verdicts have the same groups."""

    def mean(table, files=None):
        return {"length_controlled_winrate": 100 * (table["preference"] - 1).mean()}

    monkeypatch.setattr("plo.evals.alpaca_official.win_rates", mean)
    y = np.random.default_rng(0).random(700)
    table = annotations(1 + y, [1] * 700, [2] * 700)
    values = length_controlled_items(table)
    assert values.index.tolist() == list(range(35)) and values.mean() == pytest.approx(y.mean())
    assert values.std() == pytest.approx(y.std() / math.sqrt(20), rel=0.3)  # of means of 20
    shifted = length_controlled_items(table.assign(preference=table["preference"] + 0.25))
    assert (shifted - values).tolist() == pytest.approx([0.25] * 35)  # so that a paired difference has no error
    lacking = length_controlled_items(table.assign(preference=table["preference"].where(table.index != 3)))
    assert ((lacking - values).abs() > 0.01).sum() == 1  # the group of that instruction alone


@pytest.mark.slow  # 100 fits
def test_the_jackknifes_standard_error_is_that_of_a_bootstrap_over_instructions(monkeypatch, tmp_path):
    from alpaca_eval.metrics import get_length_controlled_winrate, glm_winrate

    rng, n = np.random.default_rng(0), 805
    difficulty, gap = rng.normal(0, 1, n), rng.normal(200, 300, n).round()
    y = 1 / (1 + np.exp(-(difficulty - 0.5 + np.tanh(gap / gap.std()) + rng.normal(0, 1, n))))
    table = annotations(1 + y, [1000] * n, (1000 + gap).clip(1).astype(int))
    length = pd.Series(np.r_[np.full(n, -1.0), np.full(n, 1.0)])
    gamed = {"model": "gamed", "index": [*range(n)] * 2, "instruction_difficulty": [*difficulty] * 2}
    gamed |= {"std_delta_len": length, "not_gamed_baseline": False, "preference": 0.5 + 0.1 * length}
    pd.DataFrame(gamed).to_csv(tmp_path / "df_gamed.csv", index=False)
    values = length_controlled_items(table, files=tmp_path)
    assert 100 * values.mean() == pytest.approx(win_rates(table, files=tmp_path)["length_controlled_winrate"])
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(tmp_path / "df_gamed.csv"))
    settings = {"save_weights_dir": None, "is_add_glm_preference_inplace": False, "is_warn_extreme_changes": False}
    again = [
        get_length_controlled_winrate(table.iloc[rng.integers(0, n, n)], **settings)["length_controlled_winrate"] / 100
        for _ in range(64)
    ]
    # 64 draws and 35 groups leave each standard error within 9% and 12% of the truth
    assert np.std(again, ddof=1) == pytest.approx(values.std() / math.sqrt(35), rel=0.4)


def test_nothing_stays_patched_set_or_written(shared_data):
    import alpaca_eval
    import sklearn
    from alpaca_eval.metrics import glm_winrate

    package = Path(alpaca_eval.__file__).parent
    before = glm_winrate.hf_hub_download, sklearn.get_config(), {p for p in package.rglob("*") if p.suffix != ".pyc"}
    table = annotations([1.2, 1.9] * 60, range(120), range(50, 170))
    win_rates(table, files=shared_data / "alpaca_eval")
    with pytest.raises(EvaluationError, match=r"has no df_gamed\.csv"):
        win_rates(table, files=shared_data)
    assert list(table.columns) == ["preference", "output_1", "output_2", "generator_1", "generator_2"]
    after = glm_winrate.hf_hub_download, sklearn.get_config(), {p for p in package.rglob("*") if p.suffix != ".pyc"}
    assert before == after


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.drop(columns="output_1"), "lack the columns output_1"),
        (lambda t: t.set_index(pd.Index([0, 805])), "0 to 804"),
        (lambda t: t.set_index(pd.Index([3, 3])), "each at most once"),
    ],
)
def test_annotations_that_cannot_be_rated_are_refused(change, named):
    with pytest.raises(EvaluationError, match=named):
        win_rates(change(annotations([1.0, 2.0], [1, 2], [3, 4])), length_controlled=False)


def test_recorded_preferences_follow_from_their_log_probs(shared_data):
    """Every verdict of the four judged models: 3,206 with log-probs; the other 12 are of equal texts, unasked draws."""
    asked = equal = 0
    for file in sorted((shared_data / "alpaca_eval" / "results").glob("*/annotations.json.gz")):
        if file.parent.name == "gpt4_1106_preview":  # the baseline against itself: never asked
            continue
        for row in json.loads(gzip.decompress(file.read_bytes())):
            if not row["raw_completion"]:
                assert row["output_1"] == row["output_2"] and row["preference"] == 1.5
                equal += 1
                continue
            tokens = row["raw_completion"]["logprobs"]["content"][0]["top_logprobs"]
            m, other = (sum(math.exp(t["logprob"]) for t in tokens if t["token"] == label) for label in ("m", "M"))
            shown = 2 - m / (m + other)  # m is the label of the answer shown first
            again = 3 - shown if official_order(row["instruction"]) else shown
            assert again == pytest.approx(row["preference"], abs=1e-9)  # recorded with ten digits
            asked += 1
    assert (asked, equal) == (3206, 12)


def test_the_prompt_is_what_the_package_makes_of_its_file():
    from alpaca_eval import constants, utils

    text = (constants.EVALUATORS_CONFIG_DIR / "alpaca_eval_clf_gpt4_turbo" / "alpaca_eval_clf.txt").read_text()
    texts = {"instruction": "Add 2 and 3.", "output_1": "  5, of {course}\n", "output_2": '"six"\n\n  '}
    (filled,), _ = utils.make_prompts(pd.DataFrame([texts]), text)
    template = official_template()
    assert template.fill(*texts.values()) == [
        {"role": m["role"], "content": m["content"]} for m in utils.prompt_to_chatml(filled)
    ]
    assert template.labels == ("m", "M") and template.answer == "first_token"
