"""docs/calls.md tells of the fields and filters that prompt files have."""

from alignment.llm.prompts import _FILTERS
from eval.judge import PAIRWISE_FIELDS
from tests.docs.pages import read

TEXT = read("docs/calls.md")


def test_fields_and_filters_are_those_of_the_code():
    assert f"filters {', '.join(['trim', 'upper', 'lower', 'length', 'tojson'])}" in TEXT
    assert {"trim", "upper", "lower", "length", "tojson"} == _FILTERS
    assert "`prompt`, `first`, `second`" in TEXT
    assert {"prompt", "first", "second"} == PAIRWISE_FIELDS
