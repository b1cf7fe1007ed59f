"""Judge prompts: read from files with versions, filled in at once, refused with what they lack."""

import pytest

from plo.evals.judges import TemplateError, get_template
from plo.evals.judges.template import FOLDER


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.txt")))
def test_built_in_prompts_hold_the_texts_once_and_in_order(name):
    text = "\n".join(message["content"] for message in get_template(name).fill("the-prompt", "answer-1", "answer-2"))
    assert [text.count(part) for part in ("the-prompt", "answer-1", "answer-2")] == [1, 1, 1]
    assert text.index("the-prompt") < text.index("answer-1") < text.index("answer-2")


def test_a_text_that_holds_slots_is_left_as_it_is():
    text = get_template("instruction").fill("{a} {b}", "{b}", "{prompt}")[-1]["content"]
    assert "{a} {b}" in text and text.count("{b}") == 2 and "{prompt}" in text


def test_identity_follows_the_text(tmp_path):
    body = "version: 1\nlabels: A B\n--- user\n{prompt} {a} {b}"
    (tmp_path / "one.txt").write_text(body)
    one = get_template(tmp_path / "one.txt")
    (tmp_path / "one.txt").write_text(body + "!")
    assert get_template(tmp_path / "one.txt").identity != one.identity
    assert one.labels == ("A", "B") and one.answer == "first_token"


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("labels: A B\n--- user\n{prompt} {a} {b}", "version"),
        ("version: 1\nlabels: A\n--- user\n{prompt} {a} {b}", "labels"),
        ("version: 1\nlabels: A B C\nvalues: 0 0.5 1\n--- user\n{prompt} {a} {b}", "labels: A B` with two labels"),
        ("version: 1\nanswer: brackets\nlabels: A B C\n--- user\n{prompt} {a} {b}", "values: 0 1` with a number"),
        ("version: 1\nanswer: brackets\nlabels: A B\nvalues: 0 2\n--- user\n{prompt} {a} {b}", "values"),
        ("version: 1\nanswer: rating\ntokens: many\n--- user\n{prompt} {b}", "tokens: 512"),
        ("version: 1\nanswer: rating\n--- user\n{prompt} {a}", "slots"),
        ("version: 1\nlabels: A B\nanswer: maybe\n--- user\n{prompt} {a} {b}", "answer"),
        ("version: 1\nlabels: A B\n--- user\n{prompt} {a}", "slots"),
        ("version: 1\nlabels: A B\n{prompt} {a} {b}", "--- user"),
    ],
)
def test_what_a_prompt_lacks_is_named(tmp_path, text, lacking):
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(TemplateError, match=lacking):
        get_template(tmp_path / "mine.txt")


def test_an_unknown_prompt_lists_the_built_in_ones():
    with pytest.raises(TemplateError, match="harmless_scores, helpful, helpful_scores, instruction"):
        get_template("nowhere")


def test_labels_of_a_prompt_of_ones_own_have_values(tmp_path):
    head = "version: 1\nanswer: brackets\nlabels: first tie second same\nvalues: 0 0.5 1 0.5\ntokens: 99\n"
    (tmp_path / "mine.txt").write_text(f"{head}--- user\n{{prompt}} {{a}} {{b}}")
    mine = get_template(tmp_path / "mine.txt")
    assert [mine.read(text) for text in ("[[Second]]", "it is a [tie]", "first")] == [1, 0.5, None]
    assert mine.endings == [("[[first]]", 0), ("[[tie]]", 0.5), ("[[second]]", 1)] and mine.tokens == 99
    assert get_template("grade").endings[::3] == [("[[1]]", 0), ("[[4]]", 3 / 9), ("[[7]]", 6 / 9), ("[[10]]", 1)]
