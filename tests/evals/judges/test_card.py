"""Cards against numbers worked out by hand, in plain Python or by scipy and scikit-learn; recorded verdicts."""

import gzip
import json
import math

import pandas as pd
import pytest
from scipy.stats import binomtest

from plo.data import DataError, DropReport
from plo.evals.judges import JudgeError, JudgeSession, Question, get_judge, make_judge_card, read_gold


@pytest.mark.parametrize("name", ["Natural", "Adversarial_Manual"])
def test_gpt4_on_llmbar(shared_data, name):
    """GPT-4's recorded verdicts, read from its own words: which output, shown first or second, is better."""
    record = shared_data / "llmbar" / f"{name}__GPT-4__Swap.json"
    rows = json.loads(record.read_text())
    right = alike = first = longer = gold_longer = unlike = 0
    says, golds = [], []
    for row in rows:
        letters = []
        for order in ("swap = False", "swap = True"):
            words = row["results"][0][order]["completion"][0].rstrip(". ")
            letters.append("a" if words.rfind("Output (a) is better") > words.rfind("Output (b) is better") else "b")
        named = [{"a": 1, "b": 2}[letters[0]], {"a": 2, "b": 1}[letters[1]]]  # under swap (a) is output_2
        right += sum(output == row["label"] for output in named)
        alike += named[0] == named[1]
        first += letters.count("a")
        says, golds = [*says, *named], [*golds, row["label"], row["label"]]
        if len(row["output_1"]) != len(row["output_2"]):
            long = 1 if len(row["output_1"]) > len(row["output_2"]) else 2
            unlike += 1
            longer += sum(output == long for output in named) / 2
            gold_longer += row["label"] == long
    n = len(rows)
    card = make_judge_card(f"replay:{record}", read_gold(shared_data / "llmbar" / f"LLMBar_{name}.json"), retest=10)
    assert card.pairs == n and card.unreadable == 0 and card.informative
    assert card.accuracy.value == pytest.approx(right / (2 * n))
    assert card.consistency.value == pytest.approx(alike / n)
    assert card.position_bias.value == pytest.approx(first / (2 * n) - 0.5)
    assert card.length_bias.value == pytest.approx((longer - gold_longer) / unlike)
    metrics = pytest.importorskip("sklearn.metrics")
    assert card.kappa.value == pytest.approx(metrics.cohen_kappa_score(says, golds))
    interval = binomtest(alike, n).proportion_ci(method="wilson")
    assert (card.consistency.low, card.consistency.high) == pytest.approx((interval.low, interval.high))
    assert card.kappa.low < card.kappa.value < card.kappa.high
    assert math.isnan(card.retest.value) and card.to_dict()["retest"]["value"] is None
    assert json.loads(json.dumps(card.to_dict(), allow_nan=False))["informative"] is True


PAIRS = pd.DataFrame(
    [("q1", "x", "yy", 1), ("q2", "x", "yy", 0), ("q3", "xx", "y", 1), ("q4", "x", "y", 0)],
    columns=["prompt", "a", "b", "gold"],
)
# P(second shown better), in the order (a, b) and (b, a)
SAYS = {"q1": (0.9, 0.2), "q2": (0.8, 0.7), "q3": (0.5, 0.4), "q4": (0.1, None)}


def scripted(prompt, a, b):
    return SAYS[prompt][0 if (a, b) in set(PAIRS[["a", "b"]].itertuples(index=False, name=None)) else 1]


def test_a_card_by_hand():
    told = []
    card = make_judge_card(JudgeSession(scripted, tell=told.append), PAIRS, retest=4, source="four.jsonl")
    # verdicts on b, by order: q1 b b; q2 b a; q3 tie b; q4 a unreadable. Gold: b, a, b, a.
    assert card.accuracy.value == pytest.approx((1 + 0.5 + 0.75 + 1) / 4)
    # mean p: q1 .85; q2 (.8 + .3) / 2 = .55, wrong; q3 (.5 + .6) / 2, right; q4 not known
    assert card.combined.value == pytest.approx(2 / 3)
    assert card.consistency.value == pytest.approx(1 / 3)
    # says the first shown: q1 0 1; q2 0 0; q3 tie 1
    assert card.position_bias.value == pytest.approx((0.5 + 0 + 0.75) / 3 - 0.5)
    # longer, verdicts and gold: q1 1, 1; q2 .5, 0; q3 .25, 0; q4 alike
    assert card.length_bias.value == pytest.approx((1 + 0.5 + 0.25) / 3 - 1 / 3)
    # 7 verdicts: b b | b a | tie b | a with gold b b a a b b a: 5 agree; a 2, b 4, tie 1; gold a 3, b 4
    chance = (2 * 3 + 4 * 4) / 49
    assert card.kappa.value == pytest.approx((5 / 7 - chance) / (1 - chance))
    assert card.unreadable == 1 and card.unreadable_share.value == 1 / 8
    assert card.retest.value == 1.0
    assert not card.informative and "uninformative judge" in card.lines()[1]
    assert card.lines()[0] == "measured on 4 pairs of four.jsonl" and card.to_dict()["source"] == "four.jsonl"
    assert any("could not be read" in line for line in told)


def test_test_and_retest_are_kept_apart():
    times = {}

    def moody(prompt, a, b):
        times[prompt, a, b] = times.get((prompt, a, b), 0) + 1
        return 0.9 if times[prompt, a, b] == 1 or prompt == "q1" else 0.1

    moody.version = "1"
    assert make_judge_card(moody, PAIRS, retest=4).retest.value == 1 / 4
    assert sum(times.values()) == 8 + 4
    again = JudgeSession(moody)
    make_judge_card(again, PAIRS)
    assert again.counts.cached == 8  # the first verdicts, as they were
    assert make_judge_card(moody, PAIRS, retest=4).retest.value == 1 / 4
    assert sum(times.values()) == 8 + 4  # the second verdicts are kept, too


@pytest.mark.parametrize(("right", "informative"), [(20, False), (28, True), (10, False)])
def test_informative_is_above_chance(right, informative):
    # Of 40, 20 right is chance, 28 (.7, Wilson .546-.819) is above it, 10 is a judge that is wrong.
    pairs = pd.DataFrame({"prompt": [str(i) for i in range(40)], "a": "x", "b": "y", "gold": 1})
    card = make_judge_card(lambda prompt, a, b: float((b == "y") == (int(prompt) < right)), pairs)
    assert card.accuracy.value == right / 40 and card.informative is informative


def test_pairs_from_files(tmp_path, shared_data):
    (tmp_path / "gold.csv").write_text('prompt,a,b,gold\n"2+2?",4.0,4,1\nx,y,NA,0\n')
    assert read_gold(tmp_path / "gold.csv").values.tolist() == [["2+2?", "4.0", "4", 1], ["x", "y", "NA", 0]]
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    frame = read_gold(tmp_path / "pairs.jsonl")
    assert 15 < frame.gold.sum() < 45  # either order
    for row, pair in zip(rows, frame.itertuples(), strict=True):
        assert (pair.b if pair.gold else pair.a) == row["chosen"] and {pair.a, pair.b} == {
            row["chosen"],
            row["rejected"],
        }
    pd.testing.assert_frame_equal(read_gold(tmp_path / "pairs.jsonl"), frame)
    llmbar = read_gold(shared_data / "llmbar" / "LLMBar_Natural.json")
    first = json.loads((shared_data / "llmbar" / "LLMBar_Natural.json").read_text())[0]
    better = llmbar.b[0] if llmbar.gold[0] else llmbar.a[0]
    assert len(llmbar) == 100 and better == first[f"output_{first['label']}"]


USER, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "hi"),
        ({"prompt": [USER], "chosen": "good", "rejected": "bad"}, "hi"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "hi"),
        (
            {"chosen": [USER, SAID, USER, GOOD], "rejected": [USER, SAID, USER, BAD]},
            "User: hi\n\nAssistant: Hello.\n\nUser: hi",
        ),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: good", "rejected": "\n\nHuman: hi\n\nAssistant: bad"},
            "hi",
        ),
        ({"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " good", "rejected": " bad"}, "hi"),
        ({"input_text": "hi", "candidate_0": "bad", "candidate_1": "good", "choice": 1}, "hi"),
    ],
)
def test_conversations_and_the_data_sets_own_forms(tmp_path, row, prompt):
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.write(json.dumps(row))
    (pair,) = read_gold(tmp_path / "pairs.jsonl.gz").itertuples()
    assert pair.prompt == prompt and (pair.a, pair.b)[pair.gold] == "good" and {pair.a, pair.b} == {"good", "bad"}


def test_public_formats_and_other_tables_hold_gold_pairs(tmp_path):
    shp = {"history": "q", "human_ref_A": "worse", "human_ref_B": "better", "labels": 0, "score_ratio": 2.0}
    steer = {"context": [{"role": "user", "content": "q"}], "response1": "better", "response2": "worse"}
    rows = [shp, {**steer, "overall_preference": -2}, {**steer, "overall_preference": 0}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = DropReport()
    frame = read_gold(tmp_path / "pairs.jsonl", report)
    assert [(row.prompt, (row.a, row.b)[row.gold]) for row in frame.itertuples()] == [("q", "better")] * 2
    assert report.ties == 1 and report.total == 0
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows[2]))
    with pytest.raises(JudgeError, match="all 1 rows are ties"):
        read_gold(tmp_path / "pairs.jsonl")
    (tmp_path / "gold.csv").write_text("prompt;a;b;gold\n2+2?;4.0;4,0;1\n")
    assert read_gold(tmp_path / "gold.csv").values.tolist() == [["2+2?", "4.0", "4,0", 1]]
    (tmp_path / "gold.tsv").write_text("prompt\ta\tb\tgold\n2+2?\t4.0\t4\t1\n")
    assert read_gold(tmp_path / "gold.tsv").values.tolist() == [["2+2?", "4.0", "4", 1]]


def test_conversations_written_as_text_are_shown_as_conversations(tmp_path):
    side = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "It's a"}]
    pd.DataFrame([{"prompt": side[:1], "a": side[1:], "b": "b", "gold": 0}]).to_csv(tmp_path / "gold.csv", index=False)
    assert read_gold(tmp_path / "gold.csv").values.tolist() == [["q", "It's a", "b", 0]]
    pd.DataFrame([{"prompt": str(side)[:-9], "a": "a", "b": "b", "gold": 0}]).to_csv(tmp_path / "gold.csv", index=False)
    with pytest.raises(DataError, match="cannot be read"):
        read_gold(tmp_path / "gold.csv")
    sides = {"chosen": side, "rejected": [side[0], {"role": "assistant", "content": "b"}]}
    pd.DataFrame([sides]).to_csv(tmp_path / "pairs.csv", index=False)
    (pair,) = read_gold(tmp_path / "pairs.csv").itertuples()
    assert (pair.prompt, (pair.a, pair.b)[pair.gold]) == ("q", "It's a")


def test_a_card_on_hh(shared_data):
    path, report = shared_data / "hh" / "harmless-base_test.jsonl.gz", DropReport()
    pairs = read_gold(path, report)
    assert report.rows == 2312 and len(pairs) == 2312 - report.total
    assert report.counts["prompts differ between the sides"] == 5  # 2,307 pairs share their prompt
    with gzip.open(path) as file:
        chosen = {json.loads(line)["chosen"].rpartition("\n\nAssistant:")[2].strip() for line in file}
    assert all((pair.a, pair.b)[pair.gold] in chosen for pair in pairs.itertuples())
    right = dict(zip(pairs[["prompt", "a", "b"]].itertuples(index=False, name=None), pairs.gold, strict=True))
    card = make_judge_card(
        lambda prompt, a, b: float(right.get((prompt, a, b), 1 - right.get((prompt, b, a), 0))), pairs[:200]
    )
    assert card.accuracy.value == 1.0 and card.pairs == 200


def test_more_than_one_bad_preference_in_twenty_is_an_error(tmp_path):
    rows = [{"prompt": "p", "chosen": "same", "rejected": "same"}, {"prompt": "p", "chosen": "x", "rejected": "y"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"identical responses[\s\S]*pairs\.jsonl:1"):
        read_gold(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize(
    "row", [{"prompt": "p", "a": "x", "b": "y"}, {"input": "p", "output_1": "x", "label": 1}, {"b": 1}]
)
def test_a_row_without_gold_is_named(tmp_path, row):
    (tmp_path / "gold.jsonl").write_text(json.dumps(row))
    with pytest.raises(JudgeError, match=r"gold\.jsonl:1: no pair with a gold label"):
        read_gold(tmp_path / "gold.jsonl")


def test_recorded_verdicts(tmp_path):
    rows = [("p", "x", "y", 0.25), ("p", "y", "x", 0.5), ("p", "x", "z", None)]
    rows = [dict(zip(("prompt", "a", "b", "p"), row, strict=True)) for row in rows]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judging = JudgeSession(f"replay:{tmp_path / 'r.jsonl'}")
    assert judging.verdicts(pd.DataFrame(rows[:1])).iloc[0, :2].tolist() == [0.25, 0.5]
    assert [v.p for v in judging.ask([Question("p", "x", "z")])] == [None]
    with pytest.raises(JudgeError, match=r"no verdict on the prompt 'p'.*in this order"):
        judging.ask([Question("p", "z", "x")])
    (tmp_path / "twice.jsonl").write_text("\n".join(map(json.dumps, [rows[0], rows[0] | {"p": 0.5}])))
    with pytest.raises(JudgeError, match=r"twice\.jsonl:2: .*another verdict"):
        get_judge(f"replay:{tmp_path / 'twice.jsonl'}")
    (tmp_path / "none.jsonl").write_text('{"prompt": "p"}')
    with pytest.raises(JudgeError, match=r"none\.jsonl:1: no recorded verdict"):
        get_judge(f"replay:{tmp_path / 'none.jsonl'}")


def test_a_judge_that_ranks_models_as_the_labels_do(tmp_path):
    """Model 3 beats 2, which beats 1; the judge says so, or the opposite."""
    rows = [
        {
            "prompt": f"p{i}",
            "a": f"{a} {i}",
            "b": f"{b} {i}",
            "gold": int(b > a),
            "model_a": f"m{a}",
            "model_b": f"m{b}",
        }
        for i in range(12)
        for a, b in ((1, 2), (3, 2), (1, 3))
    ]
    (tmp_path / "ranked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = read_gold(tmp_path / "ranked.jsonl")
    assert pairs["model_b"].tolist()[:3] == ["m2", "m2", "m3"]
    right = make_judge_card(lambda prompt, a, b: float(b > a), pairs)
    assert [one.budget for one in right.rankings] == [3, 12, 36] and right.rankings[-1].models == 3
    assert right.rankings[-1].correlation == (1, 1, 1) and right.rankings[-1].gap[0] < right.rankings[0].gap[0]
    assert "36 pairs of 3 models: rank correlation 1.00 [1.00, 1.00]" in right.lines()[-1]
    assert right.to_dict()["rankings"][2]["correlation"] == (1, 1, 1)
    wrong = make_judge_card(lambda prompt, a, b: float(b < a), pairs)
    assert wrong.rankings[-1].correlation[0] == -1
    (tmp_path / "unnamed.jsonl").write_text("\n".join(json.dumps({**row, "model_a": None}) for row in rows))
    assert make_judge_card(lambda prompt, a, b: 1.0, read_gold(tmp_path / "unnamed.jsonl")).rankings == ()
