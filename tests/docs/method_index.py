"""The method index, from the docstrings of the objectives and the table of the README.

python -m tests.docs.method_index > docs/method_index.md
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from alignment.objectives import available_objectives, load_objective

ROOT = Path(__file__).resolve().parents[2]

_HEAD = """\
# Method index

Every objective with its formula, its paper, its file and its recipe, and where it differs from the
paper or the authors' code. The page is made of the docstrings of `alignment/objectives` by
`python -m tests.docs.method_index`, and a test holds the two together. `objective: NAME` in a
recipe chooses one, `objective_kwargs` sets its hyper-parameters.

Symbols: x prompt, y response, w and l chosen and rejected, pi the policy, pi_ref the reference, p
teacher and q student, r the implicit reward. *Authors' numbers* counts reference vectors that
`python -m tests.conformance` passes.
"""


def page() -> str:
    """The whole page."""
    sections = [_section(name) for name in available_objectives()]
    return "\n".join([_HEAD, *_overview(), "", *sections])


def _overview() -> Iterator[str]:
    yield "| objective | method | needs | authors' numbers |"
    yield "|---|---|---|---|"
    for name in available_objectives():
        row = readme_row(name)
        yield f"| [`{name}`](#{name}) | {row['method']} | {row['needs']} | {row['numbers']} |"


def readme_row(name: str) -> dict[str, str]:
    """What the README's table says of an objective."""
    file = f"alignment/objectives/{name}.py"
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith("|") and f"`{file}`" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    keys = ("method", "paper", "k", "needs", "file", "recipe", "numbers")
    return dict(zip(keys, cells, strict=True))


def _section(name: str) -> str:
    kind = type(load_objective(name))
    parts = docstring(kind)
    row = readme_row(name)
    lines = [f"## {name}", "", f"**{row['method']}.** {parts['']}", ""]
    lines += ["```text", *_formula(parts["Formula"]), "```", ""]
    lines += [f"- Paper: {_linked(parts['Paper'])}"]
    lines += [f"- Differs: {_linked(parts['Differs'])}"]
    lines += [f"- Responses to a prompt: {row['k']}. Needs: {row['needs'] or 'responses alone'}."]
    lines += [f"- File: `alignment/objectives/{name}.py`. Recipe: {row['recipe']}."]
    lines += [f"- Authors' numbers: {row['numbers']}."] if row["numbers"] else []
    fields = list(dataclasses.fields(kind))
    if fields:
        lines += ["", "| hyper-parameter | default | is |", "|---|---|---|"]
        lines += [f"| `{f.name}` | {_default(f)} | {parts[f.name]} |" for f in fields]
    return "\n".join([*lines, ""])


def docstring(kind: type) -> dict[str, str]:
    """The paragraphs of an objective's docstring by their first word, the rest under ``''``."""
    parts = {"": ""}
    for paragraph in re.split(r"\n\s*\n", inspect.getdoc(kind) or ""):
        label = re.match(r"(Paper|Formula|Differs|Attributes):\s", paragraph)
        name = label[1] if label else ""
        body = paragraph[label.end() :] if label else paragraph
        parts[name] = f"{parts.get(name, '')} {body}".strip()
    attributes = parts.pop("Attributes", "")
    return {name: " ".join(body.split()) for name, body in parts.items()} | _attributes(attributes)


def _attributes(text: str) -> dict[str, str]:
    """What each hyper-parameter is; of several lines the first alone begins with a name."""
    pieces = re.split(r"(?:^|\n) {0,4}(\w+): ", text)[1:]
    return {
        name: " ".join(told.split()) for name, told in zip(pieces[::2], pieces[1::2], strict=True)
    }


def _formula(text: str) -> list[str]:
    """One clause a line."""
    return [part.strip() for part in re.split(r"(?<=;) ", text)]


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _default(field: dataclasses.Field[object]) -> str:
    value = field.default
    return f"`{'null' if value is None else str(value).lower()}`"


if __name__ == "__main__":
    sys.stdout.write(page())
