"""The method index says what the objectives say."""

import re

import pytest

from alignment.objectives import available_objectives, load_objective
from tests.docs.method_index import docstring, page, readme_row
from tests.docs.pages import ROOT, read

PAGE = read("docs/method_index.md")


def test_the_page_is_that_of_the_docstrings():
    assert page() == PAGE, "run `python -m tests.docs.method_index > docs/method_index.md`"


@pytest.mark.parametrize("name", available_objectives())
def test_every_objective_has_its_formula_paper_file_and_recipe(name: str):
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert re.search(r"^```text\n.*=.*\n```$", section, re.DOTALL | re.MULTILINE)
    assert re.search(r"^- Paper: \S", section, re.MULTILINE)
    assert re.search(r"^- Differs: \S", section, re.MULTILINE)
    files = re.findall(r"`((?:alignment|recipes)/[\w./]+)`", section)
    assert f"alignment/objectives/{name}.py" in files
    assert any(file.startswith(f"recipes/{name}/") for file in files)
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("name", available_objectives())
def test_the_papers_of_the_readme_are_those_of_the_docstring(name: str):
    cited = set(re.findall(r"\d{4}\.\d{5}", readme_row(name)["paper"]))
    told = " ".join(docstring(type(load_objective(name))).values())
    assert cited <= set(re.findall(r"\d{4}\.\d{5}", told))
