"""Preference data: rows from files, folders and the hub become checked, split and tokenised pairs with fingerprints."""

from plo.data.errors import DataError
from plo.data.load import PreferenceData, load_data
from plo.data.reading import read_rows
from plo.data.report import DropReport
from plo.data.rows import Row
from plo.data.sources import SOURCES, register_source
from plo.data.tokenize import Pair, render, tokenize_prompt

__all__ = [
    "SOURCES",
    "DataError",
    "DropReport",
    "Pair",
    "PreferenceData",
    "Row",
    "load_data",
    "read_rows",
    "register_source",
    "render",
    "tokenize_prompt",
]
