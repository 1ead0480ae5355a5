"""docs/evaluation.md tells of the keys, verdicts and fields that judges have."""

import dataclasses

import yaml

from eval.judge_files import JUDGES, JudgeFile
from eval.mt_bench import FIELDS
from tests.docs.pages import blocks, read

TEXT = read("docs/evaluation.md")


def test_the_judge_on_the_page_has_keys_and_verdicts_that_exist():
    (judge,) = blocks("docs/evaluation.md", "yaml")
    keys = {field.name for field in dataclasses.fields(JudgeFile)}
    assert yaml.safe_load(judge.text).keys() <= keys
    assert {key for key in keys if f"`{key}`" not in TEXT and f"\n{key}:" not in TEXT} == set()
    used = {yaml.safe_load(path.read_text())["verdict"] for path in JUDGES.glob("*.yaml")}
    assert {verdict for verdict in used if f"| `{verdict}` |" not in TEXT} == set()


def test_the_fields_of_the_judges_prompts_are_named():
    fields = set.union(*map(set, FIELDS.values()))
    assert {name for name in fields if f"`{name}`" not in TEXT} == set()
