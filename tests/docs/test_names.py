"""The files, options, commands and modules that pages name exist."""

import dataclasses
import importlib
import importlib.util
import re
from functools import cache

import pytest

from alignment.__main__ import FAMILIES, commands, verbs
from alignment.launch import Options as LaunchOptions
from alignment.train import recipe_keys
from tests.docs.pages import PAGES, ROOT, read

FOREIGN = {
    *("help", "version", "dry_run", "config", "seed", "hidden", "reward"),
    *("config_file", "num_processes", "multi_gpu"),  # accelerate
    *("port", "device", "chat_template", "data_parallel_size"),  # servers
    *("head", "address"),  # ray
    *("no_deps", "editable", "dest", "create_dirs", "nodes"),  # pip, curl, sbatch
}
"""Options of every command, and those of other programs."""

TO_BE_WRITTEN = ("recipes/ipo/",)
EXAMPLES = ("capitals", "revisions")
"""What a page tells how to write: files, builders and evaluators."""

names_of = cache(commands)
verbs_of = cache(verbs)

BENCHMARKS = {"against", "dtype", "flops", "quick"}
"""Options of `python -m benchmarks.NAME`, which argparse knows."""

_FILE = re.compile(
    r"(?<![\w/.-])(?:alignment|benchmarks|data_builders|docs|eval|recipes|tests)/[\w./-]*\w"
)


def named_files(page: str) -> set[str]:
    """Files and folders with a path; `NAME` stands for any."""
    found = {name for name in _FILE.findall(read(page)) if "NAME" not in name}
    return {name for name in found if "." in name or name.count("/") > 1}


@cache
def known_options() -> set[str]:
    """The fields of all options of all commands, and the keys of recipes."""
    found = recipe_keys() | {field.name for field in dataclasses.fields(LaunchOptions)}
    packages = ["alignment.commands", *(package for package, _ in FAMILIES.values())]
    for package in packages:
        for name in names_of(package):
            module = importlib.import_module(f"{package}.{name}")
            for value in vars(module).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value):
                    found |= {field.name for field in dataclasses.fields(value)}
    return found


def test_there_are_pages():
    assert len(PAGES) > 8


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page: str):
    missing = [name for name in named_files(page) if not (ROOT / name).exists()]
    assert [name for name in missing if not name.startswith(TO_BE_WRITTEN)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str):
    folder = (ROOT / page).parent
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(((?!https?:|#)[^)\s]+)\)", text)
    assert [link for link in links if not (folder / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_option_on_a_page_exists(page: str):
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z][\w-]+)", read(page))}
    assert named - known_options() - FOREIGN - BENCHMARKS == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_exists(page: str):
    for verb, name in re.findall(r"(?:`|^)alignment ([a-z_]+)(?: ([a-z_]+)\b)?", read(page), re.M):
        assert verb in verbs_of(), f"`alignment {verb}`"
        if verb in FAMILIES and name and name not in EXAMPLES:
            assert name in names_of(FAMILIES[verb][0]), f"`alignment {verb} {name}`"


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_a_page_starts_exists(page: str):
    named = set(re.findall(r"-m ((?:alignment|benchmarks|tests)[\w.]*\w)", read(page)))
    assert [name for name in named if importlib.util.find_spec(name) is None] == []


def test_every_verb_builder_tool_and_evaluator_is_told_of():
    told = "\n".join(map(read, PAGES))
    for verb, (package, _) in FAMILIES.items():
        missing = [name for name in names_of(package) if not re.search(rf"\b{name}\b", told)]
        assert missing == [], f"alignment {verb}"
    assert [verb for verb in verbs_of() if f"alignment {verb}" not in told] == []
