"""docs/builders.md has a section for every builder and a row for every measured contrast."""

import re

from alignment.__main__ import commands
from benchmarks import contrast
from benchmarks.contrast import cases
from tests.docs.pages import read

README = read("README.md")
TEXT = read("docs/builders.md")


def test_every_builder_has_its_section_and_a_row_in_the_readme():
    names = set(commands("data_builders"))
    assert names <= set(re.findall(r"^## (\w+)$", TEXT, re.MULTILINE))
    rows = re.findall(r"^\| `alignment build .*$", README, re.MULTILINE)
    assert names <= {
        name for row in rows for name in re.findall(r"`(?:alignment build )?(\w+)`", row)
    }


def test_the_table_of_contrast_has_a_row_for_every_case():
    for case in cases():
        assert f"| `{case.builder}` | {case.variant} | {case.predicted:.3f} |" in TEXT
    assert f"| {' | '.join(contrast._HEAD)} |" in TEXT
