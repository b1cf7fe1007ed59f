"""Win rates corrected by human labels: the sheet, its labels, and the command."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from plo.cli import app
from plo.leaderboards.corrected import LabelError, correct, judged_pairs, sheet
from plo.tracking import Tracker

PROMPTS = 60


def judged(variant, wins, opponent="chosen", texts="answer"):
    return pd.DataFrame({
        "variant": variant, "seed": "0", "prompt_id": range(PROMPTS), "prompt": [f"=Question {i}?\nYes" for i in range(PROMPTS)],
        "text": [f"{texts} {i} of {variant}" for i in range(PROMPTS)], "opponent": opponent,
        "opponent_text": [f"chosen {i}" for i in range(PROMPTS)], "win": wins,
    })  # fmt: skip


def labelled(pairs, count, win):
    """A sheet as a person fills it in who prefers the variant's answer where `win(prompt number)`."""
    drawn = sheet(pairs, count)
    number = drawn["prompt"].str.extract(r"(\d+)")[0].astype(int)
    ours = drawn["b"].str.startswith("answer")
    return drawn.assign(gold=[int(o == win(n)) for o, n in zip(ours, number, strict=True)])


def test_a_sheet_is_blind_and_the_same_prompts_for_all():
    pairs = pd.concat([judged("dpo", 1.0), judged("ipo", 0.0)], ignore_index=True)
    drawn = sheet(pairs, 30)
    assert len(drawn) == 60 and drawn["prompt"].nunique() == 30 and list(drawn) == ["prompt", "a", "b", "gold"]
    assert 15 < drawn["a"].str.startswith("chosen").sum() < 45  # either order
    assert drawn["prompt"].str.startswith("'=").all()  # a spreadsheet evaluates nothing
    seeds = pd.concat(
        [judged("dpo", 1.0), judged("dpo", 1.0, texts="answer later").assign(seed="1")], ignore_index=True
    )
    shown = sheet(seeds, PROMPTS)
    later = shown[["a", "b"]].agg(" ".join, axis=1).str.contains("later").sum()
    assert len(shown) == PROMPTS and 15 < later < 45  # of each prompt one seed's, drawn
    same = pairs.assign(opponent_text=pairs["text"])
    assert sheet(same, 30).empty


def test_a_row_with_labels_of_its_own_and_one_without():
    """A judge that always prefers dpo, and dpo wins every third time; of ipo's answers nobody has seen any."""
    wins = np.arange(PROMPTS) % 2 == 0
    pairs = pd.concat([judged("dpo", 1.0), judged("ipo", wins.astype(float))], ignore_index=True)
    labels = labelled(pairs[pairs["variant"] == "dpo"], 30, lambda number: number % 3 == 0)
    dpo, ipo = correct(pairs, labels)
    numbers = labels["prompt"].str.extract(r"(\d+)")[0].astype(int)
    assert dpo.found.method == "prediction-powered" and dpo.found.judged == 1.0 and dpo.found.labels == 30
    assert dpo.found.rate == pytest.approx((numbers % 3 == 0).mean())
    assert ipo.found is None and "100% of the wins and 0% of the losses" in ipo.reason
    # A judge that is right on dpo's labelled pairs corrects nothing of ipo's rate.
    right = pd.concat([judged("dpo", (np.arange(PROMPTS) % 3 == 0).astype(float)), judged("ipo", wins.astype(float))])
    dpo, ipo = correct(right, labels)
    assert ipo.found.method == "Rogan-Gladen" and ipo.found.rate == ipo.found.judged == 0.5 and ipo.found.labels == 30
    with pytest.raises(LabelError, match="None of the 30 labels belongs to a judged pair"):
        correct(judged("other", 1.0, texts="another"), labels)


def test_equal_texts_are_draws_in_both_rates():
    """Every third text of dpo equals the opponent's, for which plo records a draw; people and judge agree on the others."""
    number = np.arange(PROMPTS)
    wins = (number % 2 == 0).astype(float)
    pairs = judged("dpo", np.where(number % 3 == 0, 0.5, wins))
    pairs.loc[number % 3 == 0, "text"] = pairs["opponent_text"]
    labels = labelled(pairs, PROMPTS, lambda number: number % 2 == 0)
    assert len(labels) == 40
    (row,) = correct(pairs, labels)
    assert row.found.judged == pytest.approx(pairs["win"].mean()) and row.found.rate == pytest.approx(0.5)
    same = pairs.assign(text=pairs["opponent_text"], variant="same", win=0.5)
    both = correct(pd.concat([pairs, same]), labels)
    assert both[1].found is None and "every pair is a draw" in both[1].reason


def test_answers_to_one_prompt_are_one_label_of_the_judges_errors():
    """Ten prompts, labelled for two models that write alike, are ten labels for a third model, not twenty."""
    number = np.arange(PROMPTS)
    right = (number % 2 == 0).astype(float)
    told = [judged(name, right) for name in ("dpo", "ipo")]
    labels = pd.concat([labelled(one, 10, lambda number: number % 2 == 0) for one in told])
    rows = correct(pd.concat([*told, judged("sft", right)]), labels)
    assert len(labels) == 20 and [row.found.labels for row in rows] == [10, 10, 10]


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker("plo.db")
    parent = tracker.comparison("mine", "key", {})
    for variant, win in (("dpo", 1.0), ("ipo", 0.0)):
        tags = {"plo.loss": variant, "plo.variant": variant, "plo.seed": "0"}
        tracker.start_cell(parent, variant, variant, tags).finish()
        own = {"plo.of": variant, "plo.evaluation": "hh", "plo.settings": "1"}
        run = tracker.start_evaluation(parent, f"hh of {variant}", "hh", own, {})
        table = judged(variant, win).drop(columns=["variant", "seed"])
        further = table.assign(temperature=0.5, step=4, win=0.25, text="of another temperature")
        earlier = table.assign(temperature=1.0, step=2, win=0.25, text="of an earlier point")
        run.table(pd.concat([table.assign(temperature=1.0, step=4), further, earlier]), "hh_verdicts.json")
        about = {"notes": [], "lengths": {}, "but_judge": "", "judges": []}
        run.finding("hh", {"win_rate_chosen": win}, table[["prompt_id", "win"]], about)

    def run_command(*arguments):
        done = CliRunner().invoke(app, ["correct", "mine", "labels.csv", "--store", "plo.db", *arguments])
        return done, done.output + str(done.exception or "")

    done, text = run_command("--sheet", "25")
    assert done.exit_code == 0, text
    drawn = pd.read_csv("labels.csv", keep_default_na=False)
    assert len(drawn) == 50
    done, text = run_command("--sheet", "25")
    assert done.exit_code and "may hold labels" in text
    pairs = judged_pairs(Tracker("plo.db").cells(), "hh")
    assert pairs.groupby("variant")["win"].mean().to_dict() == {"dpo": 1.0, "ipo": 0.0}
    drawn.assign(gold=drawn["b"].str.startswith("answer").astype(int)).to_csv("labels.csv", index=False)
    done, text = run_command("--json")
    assert done.exit_code == 0 and '"variant": "dpo"' in text and "1.000 [" in text, text
    done = CliRunner().invoke(app, ["correct", "mine", "labels.csv", "--store", "plo.db", "--suite", "tldr"])
    assert done.exit_code and "No cell has verdicts of 'tldr'" in done.output + str(done.exception)
