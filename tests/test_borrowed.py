"""Names of other libraries are checked: one that is gone is an error that says what to do."""

import json

import pytest

from plo.borrowed import BorrowedError, Library
from plo.errors import PloError

ENCODER = "json:JSONEncoder"


def test_the_owner_is_returned_and_its_names_are_kept():
    library = Library("pytest", tried=("9.0",))
    assert library.require("json.decoder", "scanner") is json.decoder
    assert library.require(ENCODER, "default(o)", "encode") is json.JSONEncoder
    assert library.require(ENCODER, ".item_separator") is json.JSONEncoder  # __init__ writes it
    names = ["default(o)", "encode", ".item_separator"]
    assert library.required == [("json.decoder", "scanner"), *((ENCODER, name) for name in names)]


@pytest.mark.parametrize(
    ("owner", "name", "gone"),
    [
        ("json", "nothing", "json.nothing is gone"),
        ("json.none", "dumps", "json.none is gone"),
        ("json:None_", "encode", "json.None_ is gone"),
        (ENCODER, "nothing", "json.JSONEncoder.nothing is gone"),
        (ENCODER, ".margin", "no method of json.JSONEncoder knows the attribute margin any more"),
        (ENCODER, "default(value)", "json.JSONEncoder.default no longer accepts 'value'"),
    ],
)
def test_what_is_gone_is_named_with_versions_and_remedy(owner, name, gone):
    library = Library("pytest", tried=("8.0", "9.0"))
    with pytest.raises(BorrowedError) as caught:
        library.require(owner, name)
    assert isinstance(caught.value, PloError)
    assert str(caught.value) == (
        f"pytest {pytest.__version__} cannot be used: {gone}, which plo relies on (tried with pytest 8.0, 9.0). "
        f"Install one that was tried: pip install 'pytest==9.0'."
    )


def test_a_name_that_goes_later_is_noticed_by_check(monkeypatch):
    library = Library("pytest", tried=("9.0",))
    library.require(ENCODER, "iterencode(o)")
    library.check()
    monkeypatch.delattr(json.JSONEncoder, "iterencode")
    with pytest.raises(BorrowedError, match=r"json\.JSONEncoder\.iterencode is gone"):
        library.check()


def test_an_attribute_of_an_instance():
    library = Library("plo-not-installed", tried=("1",))
    encoder = json.JSONEncoder(indent=2)
    assert library.get(encoder, "indent") == 2
    with pytest.raises(BorrowedError, match=r"plo-not-installed \(not installed\).*JSONEncoder\.margin is gone"):
        library.get(encoder, "margin")
