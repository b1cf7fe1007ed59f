import math

import pytest

from plo.data.report import DropReport
from plo.data.rows import (
    EMPTY,
    IDENTICAL,
    NOT_UNICODE,
    PROMPTS_DIFFER,
    BadRow,
    DataError,
    Row,
    check,
    split_of,
    to_chat,
    to_row,
)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def raw(prompt="p", chosen="a", rejected="b", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "where": "f.jsonl:3", **more}


def test_plain_row_keeps_texts_as_they_are():
    row = to_row(raw(" p\r\n", " a ", "b\x00"))
    assert (row.prompt, row.chosen, row.rejected, row.where) == (" p\r\n", " a ", "b\x00", "f.jsonl:3")
    assert not row.conversational and check(row) is None


def test_columns_are_the_finite_numbers():
    more = dict(margin=2, flag=True, score=0.5, name="x", nothing=None, nan=math.nan, inf=math.inf, huge=10**400)
    assert to_row(raw(**more)).columns == {"margin": 2.0, "flag": 1.0, "score": 0.5}


IMPLICIT = dict(chosen=[user("q"), assistant("a")], rejected=[user("q"), assistant("b")])


@pytest.mark.parametrize(
    "given",
    [
        dict(prompt=[user("q")], chosen=[assistant("a")], rejected=[assistant("b")]),
        dict(prompt="q", chosen=[assistant("a")], rejected=[assistant("b")]),
        dict(prompt=[user("q")], chosen="a", rejected="b"),
        IMPLICIT,
        {"prompt": "q", **IMPLICIT},  # as in HuggingFaceH4/ultrafeedback_binarized
        {"prompt": [user("q")], **IMPLICIT},
    ],
)
def test_conversational_forms_give_one_row(given):
    row = to_row({**given, "where": "x"})
    assert (row.prompt, row.chosen, row.rejected) == ([user("q")], [assistant("a")], [assistant("b")])


def test_implicit_prompt_of_several_turns():
    start = [{"role": "system", "content": "s"}, user("q"), assistant("r"), user("t")]
    row = to_row({"chosen": [*start, assistant("a")], "rejected": [*start, assistant("b")]})
    assert row.prompt == start and row.chosen == [assistant("a")]


@pytest.mark.parametrize(
    "given",
    [
        dict(chosen=[user("q"), assistant("a")], rejected=[user("r"), assistant("b")]),
        dict(
            chosen=[user("q"), assistant("a"), user("x"), assistant("a")],
            rejected=[user("q"), assistant("b"), user("x"), assistant("b")],
        ),
        dict(prompt="another", **IMPLICIT),
        dict(prompt=[user("another")], **IMPLICIT),
        dict(prompt="q", chosen=[user("q"), assistant("a")], rejected=[assistant("b")]),
        dict(chosen_prompt="p", rejected_prompt="q", chosen="a", rejected="b"),
    ],
)
def test_prompts_that_differ(given):
    with pytest.raises(BadRow, match=PROMPTS_DIFFER):
        to_row(given)


def _reason(given):
    try:
        return check(to_row(given))
    except BadRow as error:
        return error.reason


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (raw(chosen=""), EMPTY),
        (raw(rejected=" \n"), EMPTY),
        (raw(rejected=None), EMPTY),
        (raw(chosen=[], rejected=[]), EMPTY),
        (raw(chosen=[assistant(" ")], rejected=[assistant("b")]), EMPTY),
        (dict(chosen=[user("q")], rejected=[user("q"), assistant("b")]), EMPTY),
        (raw(chosen="same", rejected="same "), IDENTICAL),
        (raw(chosen=[assistant("a")], rejected=[assistant("a")]), IDENTICAL),
        (dict(chosen=IMPLICIT["chosen"], rejected=IMPLICIT["chosen"]), IDENTICAL),
        (raw(chosen="\ud800 lone"), NOT_UNICODE),
        (raw(prompt="\udfff"), NOT_UNICODE),
        (raw(), None),
    ],
)
def test_reasons(given, reason):
    assert _reason(given) == reason


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(chosen="a", reject="b", where="f:1"), ["f:1", "'rejected' is missing", "'reject'", "rejected: reject}"]),
        (dict(chosen="a", rejected="b", where="f:1"), ["f:1", "'prompt' is missing", "whole conv", "data.columns"]),
        (dict(chosen=[assistant("a")], rejected=[assistant("b")], where="f:1"), ["'prompt' is missing"]),
        (raw(chosen=3), ["f.jsonl:3", "'chosen' is int", "Give text"]),
        (raw(chosen=["x"]), ["f.jsonl:3", "'chosen' has the message", '"role"']),
        (raw(prompt=[{"role": "user", "content": None}]), ["'prompt' has the message"]),
        (raw(prompt=[{"role": "user", "content": [{"type": "image"}]}]), ["parts of other kinds"]),
        (raw(chosen=[assistant("a")]), ["'chosen' is text and 'rejected' messages", "one form"]),
        (raw(split="part two"), ["'split' is 'part two'", "'train' or 'eval'"]),
        (raw(split=1), ["'split' is 1"]),
        (raw(tools=[{"name": "f"}]), ["'tools'", "Remove"]),
    ],
)
def test_errors_name_place_and_remedy(given, words):
    with pytest.raises(DataError) as error:
        to_row(given)
    assert all(word in str(error.value) for word in words), error.value


def test_chat_reads_dialogues_and_joins_turns_of_one_speaker():
    row = Row("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:", " yes", " no")
    chat = to_chat(row)
    assert chat.prompt == [user("a"), assistant("b\n\nc"), user("d")]
    assert (chat.chosen, chat.rejected) == ([assistant("yes")], [assistant("no")])
    assert to_chat(Row("q", "a", "b")).prompt == [user("q")]
    assert to_chat(chat) is chat


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_clean", "train"), ("eval", "eval"), ("harmless-base_test", "eval"), ("test_prefs", "eval"),
        ("validation_cnndm", "eval"), ("train-00000-of-00002", "train"), ("comparisons", None),
        ("latest", None),
    ],
)  # fmt: skip
def test_split_names(name, split):
    assert split_of(name) == split


def test_report_counts_and_shows_three_examples():
    report = DropReport("hh", rows=1000)
    for i in range(5):
        report.add(EMPTY, f"f:{i}", "[bold]excerpt[/bold]")
    report.add(IDENTICAL, "f:9", "x")
    assert report.counts == {EMPTY: 5, IDENTICAL: 1} and report.total == 6
    assert len(report.examples[EMPTY]) == 3 and "f:2" in str(report) and "f:3" not in str(report)
    assert "[bold]excerpt" in str(report)
    report.enforce()
    with pytest.raises(DataError, match="strict allows none"):
        report.enforce(strict=True)


def test_five_percent():
    report = DropReport("data", rows=100)
    for i in range(5):
        report.add(EMPTY, f"f:{i}", "x")
    report.enforce()
    report.add(IDENTICAL, "f:6", "x")
    with pytest.raises(DataError) as error:
        report.enforce()
    for word in (
        "data: 6 of 100 rows read are bad (6.0%)",
        f"5 x {EMPTY}",
        f"1 x {IDENTICAL}",
        "f:0",
        "Mend or remove",
    ):
        assert word in str(error.value)


def test_share_is_extrapolated_where_a_limit_left_rows_untokenised():
    report = DropReport("data", rows=1000, tokenised=20)
    for i in range(10):
        report.add("truncated", f"f:{i}", "x", stage="tokenised")
    assert report.share == pytest.approx(0.5)
    with pytest.raises(DataError, match="max_length"):
        report.enforce()


def test_one_bad_row_of_the_few_that_a_limit_asked_for_is_no_error():
    report = DropReport("data", rows=1000, tokenised=18)
    report.add("truncated", "f:0", "x", stage="tokenised")
    assert report.share == pytest.approx(0.001)
    report.enforce()
