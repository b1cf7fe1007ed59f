"""Weights to be looked at: every token with its weight, whatever the texts hold."""

import io
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

from plo.data.rows import Row
from plo.scorers.picture import to_html, to_tables, token_texts, visible, write_html

HOSTILE = [
    '</p></section><script>alert("x")</script><b>&amp;',
    "[red]markup[/red] [/] '\" onmouseover=alert(1)",
    "line\n\n\tnext  two   spaces \u202e right to left",
    "naïve 🦜🏴\u200d☠️ e\u0301 中文 <|im_start|>",
]


class Parsed(HTMLParser):
    """Tags, texts of the tokens, and weights of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.tokens, self.weights, self.inside = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.inside = tag == "span" and "title" in attributes
        if self.inside:
            assert set(attributes) == {"style", "title"}
            self.weights.append(float(attributes["title"].rsplit(" ", 1)[1]))
            self.tokens.append("")

    def handle_data(self, data):
        if self.inside:
            self.tokens[-1] += data

    def handle_endtag(self, tag):
        self.inside = False


@pytest.fixture(params=range(len(HOSTILE)))
def scored(request, make_tokenizer, tokenize_row):
    """A pair of hostile texts with the weights -1, 0, 1, 2, ..."""
    tokenizer = make_tokenizer()
    chosen, rejected, prompt = (HOSTILE[(request.param + i) % len(HOSTILE)] for i in range(3))
    pair = tokenize_row(Row(prompt, chosen, rejected, where=f"<i>{request.param}"), tokenizer)
    weights = tuple(torch.arange(len(ids)) - 1.0 for ids in (pair.chosen_ids, pair.rejected_ids))
    return pair, tokenizer, weights


def test_token_texts_are_the_text(scored):
    pair, tokenizer, _ = scored
    for ids in (pair.chosen_ids, pair.rejected_ids):
        texts = token_texts(ids, tokenizer)
        assert len(texts) == len(ids)
        assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=False)


def test_bytes_that_are_no_character_are_shown(make_tokenizer):
    tokenizer = make_tokenizer()
    ids = tokenizer("🦜 No.")["input_ids"][1:]  # the parrot without its first byte
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids) and "".join(texts).endswith("No.") and "\ufffd" in texts[0]


def test_page_has_every_token_and_weight_and_nothing_of_the_texts_own(scored):
    pair, tokenizer, weights = scored
    page = to_html([pair], tokenizer, [weights], title="<b>")
    parsed = Parsed(page)
    known = {
        "html",
        "meta",
        "title",
        "style",
        "h1",
        "h2",
        "h3",
        "section",
        "pre",
        "p",
        "div",
        "small",
        "span",
        "wbr",
        "br",
    }
    assert set(parsed.tags) <= known
    assert parsed.weights == [value for values in weights for value in values.tolist()]
    texts = [t for ids in (pair.chosen_ids, pair.rejected_ids) for t in token_texts(ids, tokenizer)]
    assert parsed.tokens == [visible(text) or "⋯" for text in texts]
    assert "http" not in page and "src=" not in page and "@import" not in page  # nothing is fetched
    for values in weights:
        assert f"{len(values)} tokens, weights sum to {float(values.sum()):.4g}" in page
    assert f'">{max(float(values.max()) for values in weights):.3g}</span></p>' in page  # the scale's end


def test_shade_is_the_weights_share_of_the_largest(make_tokenizer, tokenize_row):
    tokenizer = make_tokenizer()
    pair = tokenize_row(Row("Question 7?", "No.", "Yes, it is."), tokenizer)
    weights = [torch.zeros(len(ids)) for ids in (pair.chosen_ids, pair.rejected_ids)]
    weights[0][0], weights[1][0] = 2.0, -1.0
    page = to_html([pair], tokenizer, [tuple(weights)])
    assert 'background:rgb(var(--positive) / 0.850)" title="token 0: 2"' in page
    assert 'background:rgb(var(--negative) / 0.425)" title="token 0: -1"' in page
    zeros = to_html([pair], tokenizer, [tuple(w * 0 for w in weights)])
    assert "nan" not in zeros and '/ 0.000)" title="token 0: 0"' in zeros


def test_white_space_can_be_seen():
    assert visible(" a\n\tb\u202e\x00") == "·a↵→b\\u202e\\x00"


def test_tables_have_every_token_and_weight(scored):
    pair, tokenizer, weights = scored
    for table, values, ids in zip(
        to_tables([pair], tokenizer, [weights]), weights, (pair.chosen_ids, pair.rejected_ids), strict=True
    ):
        file = io.StringIO()
        Console(width=200, file=file).print(table)
        printed = file.getvalue()
        assert pair.where in printed and f"sum to {float(values.sum()):.4g}" in printed
        lines = printed.splitlines()[2:]
        assert len(lines) == len(ids)
        for line, text, value in zip(lines, token_texts(ids, tokenizer), values.tolist(), strict=True):
            assert line.strip().startswith((visible(text) or "⋯").strip()) and f"{value:.3f}" in line


def test_a_page_is_written_where_it_was_asked_for(scored, tmp_path):
    pair, tokenizer, weights = scored
    write_html(tmp_path / "new" / "page.html", [pair], tokenizer, [weights], "Weights")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
