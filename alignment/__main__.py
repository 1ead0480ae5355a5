"""The `alignment` command: one verb is one module, loaded when it is called."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from alignment import __version__
from alignment.cli import run, unknown
from alignment.launch import is_wanted

FAMILIES = {
    "build": ("data_builders", "Build preference data, as one of the builders does it."),
    "data": ("alignment.data_tools", "Work on data sets, as one of the tools does it."),
    "eval": ("eval", "Evaluate answers, as one of the evaluators does it."),
}
"""Verbs that take a name: the package whose modules those names are."""


def commands(package: str) -> dict[str, str]:
    """The modules of a package that are commands, with the first line of their docstrings.

    A module is a command if it defines `main`; none is imported to find out.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = {}
    for path in sorted(path for folder in folders for path in Path(folder).glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def verbs() -> dict[str, str]:
    """All verbs with what they do in a line."""
    train = commands("alignment").get("train")
    return {
        **{verb: told for verb, (_, told) in FAMILIES.items()},
        **({"train": train} if train is not None else {}),
        **commands("alignment.commands"),
    }


def dispatch(argv: list[str]) -> None:
    """Calls the module that a command line names.

    Raises:
        UserError: There is no such verb, builder, tool or evaluator, or the command's own.
    """
    verb, *rest = argv or ["--help"]
    if verb == "--version":
        print(f"contrastive-alignment {__version__}")
    elif verb in ("-h", "--help"):
        _list("alignment VERB [--key value ...]", verbs())
    elif verb in FAMILIES:
        package, _ = FAMILIES[verb]
        known = commands(package)
        name, *rest = rest or ["--help"]
        if name in ("-h", "--help"):
            _list(f"alignment {verb} NAME [--key value ...]", known)
        elif name not in known:
            raise unknown(f"name for `alignment {verb}`", name, known)
        else:
            importlib.import_module(f"{package}.{name}").main(rest)
    elif verb not in verbs():
        raise unknown("verb", verb, verbs())
    else:
        importlib.import_module(_module(verb, rest)).main(rest)


def _module(verb: str, words: Sequence[str]) -> str:
    """The module that answers a verb; training has a door of its own for each way to start it."""
    if verb != "train":
        return f"alignment.commands.{verb}"
    if {"--dry-run", "--dry_run"} & set(words):
        return "alignment.commands._dry_run"
    return "alignment.launch" if is_wanted(words) else "alignment.train"


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point of the `alignment` command; ends the process."""
    # Objectives and programs are named by dotted path; `python -m` finds those in this folder too.
    sys.path.insert(0, "")
    run(dispatch, sys.argv[1:] if argv is None else argv)


def _list(usage: str, known: dict[str, str]) -> None:
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {told}" for name, told in known.items()]
    print("\n".join([f"usage: {usage}", "", *lines, "", "Each takes --help."]))


if __name__ == "__main__":
    main()
