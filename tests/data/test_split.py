import pytest

from plo.configured import HyperParameterError
from plo.data import DataError, Row, load_data
from plo.data.split import prompt_key, split_rows


def rows(count=1000, **more):
    return [Row(f"prompt {i // 2}", f"yes {i}", f"no {i}", where=str(i), **more) for i in range(count)]


def prompts(part):
    return {prompt_key(row) for row in part}


def test_disjoint_deterministic_and_about_the_fraction():
    train, held, left_out = split_rows(rows(), 0.1)
    assert not prompts(train) & prompts(held) and left_out == 0
    assert len(train) + len(held) == 1000 and 60 < len(held) < 140
    again = split_rows(reversed(rows()), 0.1)
    assert (train, held) == again[:2]  # the order in the source does not matter
    assert [row.where for row in train[:5]] != ["0", "1", "2", "3", "4"]


def test_the_hash_is_the_same_on_every_machine():
    share = 0x0A600DEC8D6E8 / 16**13  # printf 'split::prompt 3' | sha256sum | cut -c1-13
    for fraction in (share - 1e-9, share + 1e-9):
        _, held, _ = split_rows([Row("prompt 3", "a", "b")], fraction)
        assert len(held) == (fraction > share)


def test_a_larger_fraction_holds_out_more_of_the_same():
    _, small, _ = split_rows(rows(), 0.1)
    _, large, _ = split_rows(rows(), 0.3)
    assert prompts(small) < prompts(large)
    assert not split_rows(rows(), 0.0)[1]


def test_own_splits_are_kept_and_prompts_stay_apart():
    own = [
        Row("a", "1", "2", split="train"), Row("b", "1", "2", split="eval"),
        Row("b", "3", "4", split="train"),
        Row("b", "5", "6"), Row("a", "5", "6"), Row(" a\n", "7", "8"),
    ]  # fmt: skip
    train, held, left_out = split_rows(own, 0.5)
    assert prompts(train) == {":a"} and prompts(held) == {":b"} and left_out == 1
    assert (len(train), len(held)) == (3, 2)


def test_a_split_of_one_kind_is_split_by_hash():
    train, held, _ = split_rows(rows(split="eval"), 0.1)
    assert [r.chosen for r in train] == [r.chosen for r in split_rows(rows(), 0.1)[0]] and held


def test_limits_take_the_first_in_hash_order(tokenizer, write, good_rows):
    path = write(good_rows(60))
    whole = load_data("file", path, tokenizer=tokenizer, eval_fraction=0.3)
    part = load_data("file", path, tokenizer=tokenizer, eval_fraction=0.3, limit=5, eval_limit=2)
    assert part.train == whole.train[:5] and part.eval == whole.eval[:2]
    assert part.digest != whole.digest and part.fingerprints["template"] == whole.fingerprints["template"]


def test_a_limit_counts_pairs_not_rows(tokenizer, write, good_rows):
    bad = [{"prompt": "long " * 40, "chosen": f"y {i}", "rejected": f"n {i}"} for i in range(2)]
    whole = load_data("file", write(good_rows(60) + bad), tokenizer=tokenizer, max_length=40)
    part = load_data("file", write(good_rows(60) + bad), tokenizer=tokenizer, max_length=40, limit=len(whole.train))
    assert part.train == whole.train and whole.report.total == 2


def test_digest_follows_content_alone(tokenizer, make_tokenizer, write, good_rows):
    def load(rows, name="a.jsonl", tokenizer=tokenizer, **more):
        return load_data("file", write(rows, name), tokenizer=tokenizer, **more)

    base = load(good_rows())
    same = load(good_rows()[::-1], "elsewhere/b.jsonl")
    assert same.digest == base.digest
    changed = good_rows()
    changed[0]["margin"] = 99
    assert load(changed).fingerprints["rows"] != base.fingerprints["rows"]
    assert load(changed).fingerprints["tokens"] == base.fingerprints["tokens"]
    assert load(good_rows(), eval_fraction=0.3).digest != base.digest
    other = load(good_rows(), tokenizer=make_tokenizer(eos_token="<|endoftext|>"))
    assert other.fingerprints["rows"] == base.fingerprints["rows"]
    assert other.fingerprints["tokens"] != base.fingerprints["tokens"]
    chat = load(good_rows(), options={"chat": True})
    template = make_tokenizer(chat_template=tokenizer.chat_template + "{# 2 #}")
    chat2 = load(good_rows(), tokenizer=template, options={"chat": True})
    assert len({x.fingerprints["template"] for x in (base, chat, chat2)}) == 3
    assert chat.fingerprints["tokens"] == chat2.fingerprints["tokens"] and chat.digest != chat2.digest
    assert len({x.digest for x in (base, chat, chat2, other)}) == 4


def test_the_digest_of_known_rows(tokenizer, write, good_rows):
    """Rows and template alone: a change here means that every recorded digest changes."""
    data = load_data("file", write(good_rows(20)), tokenizer=tokenizer, eval_fraction=0.3)
    assert data.fingerprints["rows"] == "0015cd6be87c4dac5acd63e9ac86d63866b9449fbe30638afcd35421d77a6bc2"


def test_the_same_prompts_are_held_out_with_chat(tokenizer, write, good_rows):
    path = write(good_rows(100))
    plain, chat = (load_data("file", path, tokenizer=tokenizer, options={"chat": chat}) for chat in (False, True))
    assert {p.where for p in plain.eval} == {p.where for p in chat.eval}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"eval_fraction": 1.0}, ["eval_fraction is 1.0", "[0, 1)"]),
        ({"eval_fraction": float("nan")}, ["eval_fraction is nan"]),
        ({"limit": 0}, ["limit is 0", "1 or more"]),
        ({"max_length": 1}, ["max_length is 1", "2 or more"]),
        ({"truncation": "left"}, ["truncation is 'left'", "'keep_start' or 'keep_end'"]),
        ({"options": {"chat": "yes"}}, ["chat is 'yes'", "true or false"]),
        ({"options": {"colour": 1}}, ["'file'", "no option 'colour'", "chat"]),
        ({"eval_fraction": 0.0001}, ["no pair is held out", "Raise data.eval_fraction"]),
        ({"eval_fraction": 0.99999999}, ["no training pairs", "Lower data.eval_fraction"]),
    ],
)
def test_argument_errors(arguments, words, tokenizer, write, good_rows):
    with pytest.raises(DataError) as error:
        load_data("file", write(good_rows()), tokenizer=tokenizer, **arguments)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("option", [{"pairs": "many"}, {"pairs": [3]}, {"pairs": -3}, {"seed": -1}, {"seed": 0.5}])
def test_a_value_that_an_option_cannot_have(option, tokenizer):
    [(name, value)] = option.items()
    with pytest.raises(HyperParameterError) as error:
        load_data("pocket", tokenizer=tokenizer, options=option)
    assert f"{name}={value!r} of the data source 'pocket': Input should be" in str(error.value)


def test_nothing_is_held_out_on_request(tokenizer, write, good_rows):
    data = load_data("file", write(good_rows()), tokenizer=tokenizer, eval_fraction=0)
    assert (len(data.train), data.eval) == (40, [])
