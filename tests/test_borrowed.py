"""Names of other libraries are checked: one that is gone is an error that says what to do."""

import json
import sqlite3

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


def test_an_attribute_of_an_instance():
    library = Library("plo-not-installed", tried=("1",))
    encoder = json.JSONEncoder(indent=2)
    assert library.get(encoder, "indent") == 2
    with pytest.raises(BorrowedError, match=r"plo-not-installed \(not installed\).*JSONEncoder\.margin is gone"):
        library.get(encoder, "margin")


def test_a_text_in_the_source_that_is_gone():
    library = Library("pytest", tried=("9.0",))
    library.require_text("json:JSONEncoder.default", "is not JSON serializable")
    with pytest.raises(BorrowedError, match=r"'is no JSON' is gone from json\.JSONEncoder\.default"):
        library.require_text("json:JSONEncoder.default", "is not JSON serializable", "is no JSON")


# Libraries that train no model: MLflow, lm-eval, alpaca-eval.


def test_a_name_of_mlflow_that_is_gone_is_an_error_before_anything_is_recorded(monkeypatch):
    from plo.tracking import borrowed

    borrowed.check_mlflow()
    every_name_is_missed(borrowed.MLFLOW, monkeypatch)
    monkeypatch.setattr("mlflow.utils.mlflow_tags.MLFLOW_PARENT_RUN_ID", "mlflow.parent")
    with pytest.raises(BorrowedError, match=r"the tags mlflow\.parentRunId and"):
        borrowed.check_mlflow()


def test_a_column_of_mlflows_tables_that_is_gone_is_an_error():
    from plo.tracking.borrowed import TABLES, check_tables

    connection = sqlite3.connect(":memory:")
    check_tables(connection)  # a database without these tables is none of MLflow's
    for table, columns in TABLES.items():
        connection.execute(f"CREATE TABLE {table} ({', '.join([*columns.split(), 'another'])})")
    check_tables(connection)
    connection.execute("ALTER TABLE latest_metrics RENAME COLUMN is_nan TO nan")
    with pytest.raises(BorrowedError, match=r"has no such column as latest_metrics\.is_nan"):
        check_tables(connection)


@pytest.mark.parametrize("package", ["lm_eval", "alpaca_eval"])
def test_a_name_of_an_evaluation_s_package_that_is_gone_is_an_error_at_first_use(package, monkeypatch):
    pytest.importorskip(package, reason="needs pip install 'plo[evals]'")
    from plo.evals import borrowed

    getattr(borrowed, f"check_{package}")()
    every_name_is_missed(getattr(borrowed, package.upper()), monkeypatch)


def every_name_is_missed(library, monkeypatch):
    """Take away each name that a library was asked for, and expect to be told."""
    assert library.required
    for owner, name in list(library.required):
        bare = name.partition("(")[0]
        with monkeypatch.context() as without:
            found = library._owner(owner)
            for home in getattr(found, "__mro__", [found]):
                if bare in vars(home):
                    without.delattr(home, bare)
            with pytest.raises(BorrowedError, match=rf"\.{bare} is gone, which plo relies on"):
                library.require(owner, name)
