"""Lists of messages that became text are read as messages or refused, never trained on as prose."""

import csv
import json

import numpy as np
import pandas as pd
import pytest

from plo.data import DataError, DropReport, load_data, read_rows
from plo.data.errors import HALF_MESSAGES, UNREADABLE, BadRow
from plo.data.messages import are_messages_as_text, parse, read_messages
from plo.data.rows import EMPTY, to_row

TRICKY = "It's \"so\" } {'role': 'user'}\n{x}, array([1]), \\n"  # quotes, braces and line ends of an answer


def conversation(answer):
    return [{"content": "What's up?", "role": "user"}, {"content": answer, "role": "assistant"}]


def as_objects(messages):
    """A list of messages as `datasets` hands it to pandas: an array of dictionaries."""
    array = np.empty(len(messages), dtype=object)
    array[:] = messages
    return array


NOTATIONS = {"json": json.dumps, "python": repr, "numpy": lambda m: str(as_objects(m)), "array": lambda m: repr(as_objects(m))}  # fmt: skip


@pytest.mark.parametrize("write", NOTATIONS.values(), ids=NOTATIONS)
def test_every_notation_of_a_list_gives_the_list_back(write):
    given = conversation(TRICKY)
    assert are_messages_as_text(write(given))
    assert parse(write(given)) == given
    assert read_messages(write(given), "chosen", "f:1") == [{"role": m["role"], "content": m["content"]} for m in given]


@pytest.mark.parametrize("write", [repr, json.dumps])
def test_one_message_as_text(write):
    row = to_row({"prompt": "q", "chosen": write(conversation("a")[1]), "rejected": write(conversation("b")[1])})
    assert row.chosen == [{"role": "assistant", "content": "a"}] and row.prompt == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize("as_array", [False, True])
def test_a_csv_file_that_pandas_wrote_of_ultrafeedback(as_array, tmp_path, tokenizer):
    """`prompt`, whole conversations, scores: the columns of HuggingFaceH4/ultrafeedback_binarized."""
    make = as_objects if as_array else list
    rows = [
        {
            "prompt": f"What's {i}?",
            "chosen": make(
                [{"content": f"What's {i}?", "role": "user"}, {"content": f"good {TRICKY}", "role": "assistant"}]
            ),
            "rejected": make([{"content": f"What's {i}?", "role": "user"}, {"content": "bad", "role": "assistant"}]),
            "score_chosen": 8.0,
        }
        for i in range(20)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "uf.csv", index=False)
    data = load_data("file", tmp_path / "uf.csv", tokenizer=tokenizer, max_length=4000)
    assert data.report.total == 0 and len(data.train) + len(data.eval) == 20
    for pair in data.train:
        assert tokenizer.decode(pair.prompt_ids).endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(pair.chosen_ids) == f"good {TRICKY}<|im_end|>\n"
        assert "role" not in tokenizer.decode(pair.rejected_ids) and pair.columns == {"score_chosen": 8.0}
    assert "20 rows hold lists of messages written as text; they are read as messages" in str(data.summary())


def test_json_within_json_lines_and_mixed_columns(write):
    prompt = json.dumps([{"role": "system", "content": "s"}, {"role": "user", "content": "q"}])
    path = write([{"prompt": prompt, "chosen": "a", "rejected": "b"}])
    (row,) = read_rows("file", path, {}, DropReport())
    assert [m["role"] for m in row.prompt] == ["system", "user"] and row.chosen == [
        {"role": "assistant", "content": "a"}
    ]


def reason(**given):
    with pytest.raises(BadRow) as error:
        to_row({"prompt": "q", **given})
    return error.value.reason


def test_what_cannot_be_read_is_left_out():
    cut = repr(conversation("long"))[:-12]  # as a spreadsheet cuts a cell
    assert reason(chosen=cut, rejected=cut) == UNREADABLE
    assert reason(chosen=repr(conversation("a")), rejected="prose") == HALF_MESSAGES
    assert reason(chosen="prose", rejected=repr(conversation("a"))) == HALF_MESSAGES
    assert reason(chosen=repr(conversation("a")), rejected="") == EMPTY
    assert reason(chosen=repr(conversation("a")), rejected="[]") == EMPTY
    assert reason(chosen=conversation("a"), rejected=None) == EMPTY
    code = "[{'role': 'user', 'content': __import__('os').getcwd()}]"
    assert reason(chosen=code, rejected=code) == UNREADABLE  # nothing is executed


def test_unreadable_lists_stop_the_reading_with_a_remedy(tmp_path, tokenizer):
    cut = repr(conversation("long"))[:-12]
    with (tmp_path / "cut.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected"]] + [["q", cut, cut + " "]] * 30)
    with pytest.raises(DataError, match=r"cut.csv:2[\s\S]*save it as JSON lines or Parquet"):
        load_data("file", tmp_path / "cut.csv", tokenizer=tokenizer)


@pytest.mark.parametrize(
    "answer",
    [
        "[1, 2, 3]",
        "[{'name': 'Anna', 'age': 3}]",
        '{"model": "m", "messages": [{"role": "user", "content": "hi"}]}',
        "The role: user. [{'role': 'user'}]",
        "{x for x in range(3)}",
    ],
)
def test_answers_that_only_look_like_lists_stay_text(answer):
    assert to_row({"prompt": "q", "chosen": answer, "rejected": "b"}).chosen == answer


def test_sharegpt_turns_and_text_parts():
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert [(m["role"], m["content"]) for m in read_messages(turns, "chosen", "f:1")] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
    ]
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert read_messages([{"role": "user", "content": parts}], "chosen", "f:1")[0]["content"] == "Hello"
    for wrong in ({"type": "image_url", "image_url": {}}, "text"):
        with pytest.raises(DataError, match="parts of other kinds"):
            read_messages([{"role": "user", "content": [parts[0], wrong]}], "chosen", "f:1")
    with pytest.raises(DataError, match="'from'.*'observation'"):
        read_messages([{"from": "observation", "value": "3"}], "chosen", "f:1")
