"""A file of a model's outputs: what is read of it, and what is refused with its place."""

import gzip

import pytest

from plo.subjects import SubjectError
from plo.subjects.outputs import Outputs


def written(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_lines_of_a_file_end_at_line_feeds_alone(tmp_path):
    said = "a\u2028b\u0085c\fd\x1ce"
    lines = [f'{{"prompt": "p{i}", "text": "{said}"}}' for i in range(2)]
    for end in ("\n", "\r\n"):
        outputs = Outputs(written(tmp_path / "said.jsonl", end.join(lines) + end + end))
        assert outputs.sample(["p0", "p1"])["text"].tolist() == [said, said]


def test_an_altered_compressed_file_is_refused(tmp_path):
    file = tmp_path / "said.json.gz"
    content = bytearray(gzip.compress(b'{"prompt": "p", "text": "x"}\n' * 400))
    content[10:16] = b"\xff" * 6  # no deflated block begins so
    file.write_bytes(content)
    with pytest.raises(SubjectError, match=r"said\.json\.gz cannot be read: Error -3"):
        Outputs(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "p", "text": "x"}, {"prompt": "p", "text": null}]', "row 2: 'text' holds null instead of a text"),
        ('[{"prompt": "p", "text": "x"}, {"prompt": "p"}]', "row 2: 'text' holds nothing instead"),
        ('{"prompt": "p", "text": "x"}\n\n{"prompt": null, "text": "x"}', "line 3: 'prompt' holds null instead"),
        ('{"prompt": "p", "text": "x"}\n{"prompt": "p", "text": 3}', "line 2: 'text' holds 3 instead"),
        ('{"prompt": "p", "text": "x"}\n{"prompt": "p", ', "line 2: Expecting property name"),
        ('{"prompt": "p", "text": "x"}\n7', "not a list of objects: line 2 is 7"),
        ("[" * 100_000, "cannot be read: maximum recursion depth"),
        ('{"a": ' * 100_000, "line 1: maximum recursion depth"),
    ],
)
def test_a_row_without_a_text_is_named(tmp_path, text, message):
    with pytest.raises(SubjectError, match=message):
        Outputs(written(tmp_path / "said.json", text))
