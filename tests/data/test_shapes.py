"""Small rows in the shape of each public data set, and what becomes of them."""

import csv
import json

import pytest

from plo.data import DataError, DropReport, load_data, read_rows
from plo.data.rows import to_chat
from plo.data.shapes import SHAPES, recognise


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


SHP = {
    "post_id": "x1", "domain": "askbaking_train", "upvote_ratio": 0.98, "history": "How long?",
    "c_root_id_A": "a", "c_root_id_B": "b", "created_at_utc_A": 1, "created_at_utc_B": 2, "score_A": 5, "score_B": 10,
    "human_ref_A": "An hour.", "human_ref_B": "A day.", "labels": 0, "seconds_difference": 1.0, "score_ratio": 2.0,
}  # fmt: skip
HELPSTEER3 = {
    "domain": "general", "language": "english", "context": [user("q"), assistant("r"), user("t")],
    "response1": "one", "response2": "two", "overall_preference": -3, "individual_preference": [{"score": -3}],
}  # fmt: skip
SAFE = {
    "prompt": "q", "response_0": "zero", "response_1": "one", "is_response_0_safe": True, "is_response_1_safe": False,
    "response_0_severity_level": 0, "response_1_severity_level": 3, "better_response_id": 1, "safer_response_id": 0,
}  # fmt: skip
NECTAR = {
    "prompt": "\n\nHuman: q\n\nAssistant: ",
    "answers": [
        {"answer": "middle", "model": "m", "rank": 2.0},
        {"answer": "best", "model": "g", "rank": 1.0},
        {"answer": "worst", "model": "l", "rank": 7.0},
    ],
    "turns": 1, "num_responses": 3, "source": ["x"], "good_natured": True,
}  # fmt: skip
ULTRAFEEDBACK = {
    "instruction": "q", "models": ["a", "b"],
    "completions": [
        {"response": "bad", "overall_score": 10.0, "fine-grained_score": 1.0},
        {"response": "good", "overall_score": 7.0, "fine-grained_score": 4.5},
    ],
}  # fmt: skip
OPENAI = {
    "input": {"messages": [system("s"), user("q")], "tools": [], "parallel_tool_calls": True},
    "preferred_output": [assistant("good")],
    "non_preferred_output": [assistant("bad")],
}
CHAT = ([user("q")], [assistant("good")], [assistant("bad")])
PLAIN = ("q", "good", "bad")
ORCA = {"system": "Be brief.", "question": "q", "chosen": "good", "rejected": "bad"}

CASES = [
    ("ShareGPT", {"conversations": [human("q")], "chosen": gpt("good"), "rejected": gpt("bad")}, CHAT, {}),
    ("ShareGPT", {"conversations": [human("q")], "chosen": "good", "rejected": "bad"}, CHAT, {}),
    ("ShareGPT", {"messages": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]}, CHAT, {}),
    (None, {"chosen": [human("q"), gpt("good")], "rejected": [human("q"), gpt("bad")]}, CHAT, {}),
    ("Nectar", NECTAR, ("\n\nHuman: q\n\nAssistant:", " best", " worst"),
     {"margin": 6.0, "turns": 1.0, "num_responses": 3.0, "good_natured": 1.0}),
    ("HelpSteer3", HELPSTEER3, (HELPSTEER3["context"], [assistant("one")], [assistant("two")]), {"margin": 3.0}),
    ("HelpSteer3", HELPSTEER3 | {"overall_preference": 1},
     (HELPSTEER3["context"], [assistant("two")], [assistant("one")]), {"margin": 1.0}),
    ("HelpSteer2", {"prompt": "q", "response_1": "bad", "response_2": "good", "preference_strength": 2},
     PLAIN, {"margin": 2.0}),
    ("SHP", SHP, ("How long?", "A day.", "An hour."),
     {"upvote_ratio": 0.98, "created_at_utc_chosen": 2.0, "created_at_utc_rejected": 1.0, "score_chosen": 10.0,
      "score_rejected": 5.0, "seconds_difference": 1.0, "score_ratio": 2.0}),
    ("PKU-SafeRLHF", SAFE, ("q", "one", "zero"),
     {"is_chosen_safe": 0.0, "is_rejected_safe": 1.0, "chosen_severity_level": 3.0, "rejected_severity_level": 0.0}),
    ("OpenAI's preference format", OPENAI, ([system("s"), user("q")], *CHAT[1:]), {}),
    ("Alpaca", {"instruction": "Add.", "input": "1 + 1", "chosen": "2", "rejected": "3"}, ("Add.\n1 + 1", "2", "3"), {}),
    ("Alpaca", {"instruction": "q", "input": "", "output": ["good", "bad"]}, PLAIN, {}),
    ("Alpaca", {"instruction": "t", "history": [["q", "r"]], "chosen": "good", "rejected": "bad"},
     ([user("q"), assistant("r"), user("t")], *CHAT[1:]), {}),
    ("UltraFeedback", ULTRAFEEDBACK, PLAIN,
     {"score_chosen": 4.5, "score_rejected": 1.0, "overall_score_chosen": 7.0, "overall_score_rejected": 10.0,
      "fine_grained_score_chosen": 4.5, "fine_grained_score_rejected": 1.0}),
    ("Argilla's UltraFeedback",
     {"instruction": "q", "chosen_response": "good", "rejected_response": "bad", "chosen_avg_rating": 4.5,
      "rejected_avg_rating": 2.25}, PLAIN, {"chosen_avg_rating": 4.5, "rejected_avg_rating": 2.25}),
    ("Orca", ORCA, ("Be brief.\n\nq", "good", "bad"), {}),
    ("Orca", {"system": "", "input": "q", "chosen": "good", "rejected": "bad", "rating": 1}, PLAIN, {"rating": 1.0}),
    ("HH", {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
     ("\n\nHuman: q\n\nAssistant:", " good", " bad"), {}),
    ("TL;DR comparisons", {"input_text": "q", "candidate_0": "bad", "candidate_1": "good", "choice": 1}, PLAIN, {}),
]  # fmt: skip


def one(path, **arguments):
    report = DropReport()
    (row,) = read_rows("file", path, {}, report, **arguments)
    return row, report


@pytest.mark.parametrize(("name", "given", "expected", "columns"), CASES)
def test_shape(name, given, expected, columns, write):
    row, report = one(write([given]))
    assert (row.prompt, row.chosen, row.rejected) == expected and row.columns == columns
    if name:
        assert recognise(given).name == name
        assert report.notes[0].startswith(f"1 rows read as {name}: ")
    else:
        assert not report.read_as


@pytest.mark.parametrize(("name", "given", "expected", "columns"), CASES)
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_shape_through_a_table(name, given, expected, columns, suffix, delimiter, tmp_path):
    """What pandas writes: lists and dictionaries as Python writes them, in cells."""
    with (tmp_path / f"rows.{suffix}").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([given, given.values()])
    row, _ = one(tmp_path / f"rows.{suffix}")
    assert (row.prompt, row.chosen, row.rejected) == expected
    assert row.columns == {
        k: v for k, v in columns.items() if k not in ("is_chosen_safe", "is_rejected_safe", "good_natured")
    }


def test_every_shape_has_a_case():
    assert {shape.name for shape in SHAPES} == {name for name, *_ in CASES if name}


def test_ties_are_left_out_and_counted(write):
    tie = {**NECTAR, "answers": [{"answer": a, "rank": 1} for a in "xy"]}
    rows = [HELPSTEER3, HELPSTEER3 | {"overall_preference": 0}, tie]
    row, report = one(write(rows))
    assert report.ties == 2 and report.total == 0 and row.columns["margin"] == 3.0
    assert "2 rows prefer neither response (ties); they are left out" in report.notes
    report.enforce(strict=True)
    with pytest.raises(DataError, match="all 2 rows are ties"):
        one(write(rows[1:]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (SHP | {"labels": 2}, ["pairs.jsonl:1", "'labels' is 2", "0 or 1"]),
        (SAFE | {"better_response_id": None}, ["'better_response_id' is None"]),
        (HELPSTEER3 | {"overall_preference": "much"}, ["'overall_preference' is 'much'", "a number"]),
        (NECTAR | {"answers": [{"answer": "x", "rank": 1}]}, ["'answers' holds no two answers", '"rank"']),
        (OPENAI | {"input": "q"}, ["'input' has no messages"]),
        ({**OPENAI, "input": {**OPENAI["input"], "tools": [{"type": "function"}]}}, ["'tools'"]),
        ({"instruction": "q", "output": ["one"]}, ["'output' holds no two answers"]),
        ({"instruction": ["q"], "chosen": "a", "rejected": "b"}, ["'instruction' is list"]),
        ({"instruction": "q", "history": "?", "chosen": "a", "rejected": "b"}, ["'history' holds no turns"]),
    ],
)
def test_broken_rows_of_a_shape_are_named(given, words, write):
    with pytest.raises(DataError) as error:
        one(write([given]))
    assert all(word in str(error.value) for word in words), error.value


def test_the_safer_response_by_a_renamed_column(write):
    row, _ = one(write([SAFE]), columns={"better_response_id": "safer_response_id"})
    assert (row.chosen, row.columns["is_chosen_safe"]) == ("zero", 1.0)


def test_a_system_column_is_read_and_said(write, tokenizer):
    row, report = one(write([ORCA]))
    assert to_chat(row).prompt == [system("Be brief."), user("q")]
    assert "1 rows have the column 'system' before their prompt; data.columns: {system: null}" in " ".join(report.notes)
    chat = {"system": "Be brief.", "prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert one(write([chat]))[0].prompt == [system("Be brief."), user("q")]
    whole = {"system": "Be brief.", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
    assert one(write([whole]))[0].prompt == [system("Be brief."), user("q")]
    already = {**chat, "prompt": [system("Be brief."), user("q")]}
    assert one(write([already]))[0].prompt == already["prompt"]
    assert one(write([{**chat, "system": None}]))[0].prompt == [user("q")]
    dialogue = {"system": "S.", "prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"}
    row = one(write([dialogue]))[0]
    assert row.prompt == "S.\n\nHuman: q\n\nAssistant:" and to_chat(row).prompt == [system("S."), user("q")]
    with pytest.raises(DataError, match=r"'system'.*differ.*data.columns: \{system: null\}"):
        one(write([{**already, "system": "Another."}]))
    assert one(write([ORCA]), columns={"system": None})[0].prompt == "q"


def test_unused_text_repeats_and_contradictions_are_said_once(write, tokenizer):
    pairs = [
        {"prompt": f"Q{i}", "chosen": "a", "rejected": "b", "source": "x", "tags": ["y"], "n": i} for i in range(30)
    ]
    turned = {"prompt": "Q1", "chosen": "b", "rejected": "a"}
    data = load_data("file", write([*pairs, pairs[0], pairs[0], turned]), tokenizer=tokenizer)
    text = str(data.summary())
    assert "2 rows repeat an earlier row exactly; they are kept" in text
    assert "1 pairs of responses are preferred both ways round; they are kept" in text
    assert text.count("columns of text that are not used: source, tags") == 1
    assert len(data.train) + len(data.eval) == 33


def test_plain_text_of_a_chat_format_is_said(write, tokenizer):
    path = write([{**SHP, "history": f"q{i}"} for i in range(40)])
    words = "data.options: {chat: true} makes messages"
    assert words in str(load_data("file", path, tokenizer=tokenizer).summary())
    chat = load_data("file", path, tokenizer=tokenizer, options={"chat": True})
    assert words not in str(chat.summary()) and chat.train[0].row.chosen == [assistant("A day.")]
    row, _ = one(write([NECTAR]))
    assert (to_chat(row).prompt, to_chat(row).chosen) == ([user("q")], [assistant("best")])


def test_names_of_columns(write, tmp_path):
    path = write([{"q": "42", "good": "7", "bad": "8", "prompt": "another"}])
    row, _ = one(path, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert (row.prompt, row.chosen, row.rejected) == ("42", "7", "8")
    (tmp_path / "d.csv").write_text("q;good;bad\n42;7.0;8\n")  # numbers stay the text they are
    row, _ = one(tmp_path / "d.csv", columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert (row.prompt, row.chosen, row.rejected, row.columns) == ("42", "7.0", "8", {})
    with pytest.raises(DataError, match="takes 'prompt' from the column 'question', which is missing; there are 'q'"):
        one(path, columns={"prompt": "question"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"data": [ORCA, ORCA]}),
        ("a.json", {"version": "1", "train": [ORCA], "test": [ORCA]}),
        ("a.jsonl", {"data": [ORCA, ORCA]}),
        ("a.jsonl", [ORCA, ORCA]),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_json_in_other_wrappings(name, content, indent, write):
    if name == "a.jsonl" and isinstance(content, dict) and indent:
        pytest.skip("an object over several lines is no JSON line")
    rows = read_rows("file", write(json.dumps(content, indent=indent), name), {}, DropReport())
    assert [row.chosen for row in rows] == ["good", "good"]
    assert [row.split for row in rows] == (["train", "eval"] if "train" in content else [None, None])
