"""The rooms: what each may import, what importing them may load, what a method consists of."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("alignment", "data_builders", "eval")
ANY = ("*",)


class Room(NamedTuple):
    """One row of the import table.

    Attributes:
        modules: Patterns of the modules that belong to the room.
        imports: Patterns of the project's modules that it may import.
        third_party: Packages outside the project and the standard library that it may import.
    """

    modules: tuple[str, ...]
    imports: tuple[str, ...]
    third_party: tuple[str, ...] = ANY


FLOOR = ("alignment.cli", "alignment.compat")
LAUNCH = ("alignment.launch",)
CONTRACT = ("alignment.objectives.base",)
BY_NAME = ("alignment.core.methods",)
CONNECT = ("alignment.llm.connect",)
BACKENDS = tuple(
    f"alignment.llm.{name}"
    for name in (
        *("openai", "local", "model", "reward", "scorer", "comet", "vllm", "batch", "batch_api"),
        *("program", "ray_data"),
    )
)
ENGINE = tuple(
    name
    for name in (f"alignment.llm.{path.stem}" for path in ROOT.glob("alignment/llm/*.py"))
    if name not in (*CONNECT, *BACKENDS)
)
HARNESS = tuple(
    f"eval.{name}"
    for name in (
        *("judge", "judge_files", "verdicts", "answers", "bundle", "stats"),
        "answering",
        *("length_control", "annotations", "alpaca_report"),
        *("judgments", "questions", "coefficients", "labelled_pairs"),
        *("alpaca_judge", "official_prompt", "ratings", "tournament"),
    )
)
"""What evaluators share."""
BUILDING = (
    *("markers", "pairs", "judging", "letters", "transcript", "affixes", "strategies"),
    *("answers", "ratings", "scorers", "survey"),
)
"""What builders share besides their base."""
ADAPTERS = ("alignment.adapters", "alignment.adapters.base")
TRAINING = (
    *("alignment.data", "alignment.core.*", "alignment.objectives"),
    *(*ADAPTERS, *CONTRACT, *FLOOR),
)
LABELS = ("alignment.core.edits", "alignment.core.token_labels")
SCORED = tuple(
    f"alignment.core.{name}"
    for name in ("reference", "attention", "ragged", "packing", "divergences", "logps", "groups")
)

# From top to bottom; a module belongs to the room that names it most closely.
ROOMS = (
    Room(("alignment.__main__",), ("alignment", "alignment.commands.*", *LAUNCH, *FLOOR), ()),
    Room(
        ("alignment.commands._dry_run",),
        (
            *("alignment", "alignment.commands.estimate", "alignment.train", *LAUNCH),
            *("alignment.trainers.*", *TRAINING),
        ),
    ),
    Room(
        ("alignment.commands.*",),
        (
            *("alignment", "alignment.train", *LAUNCH, "alignment.trainers.*", *TRAINING),
            *("alignment.objectives.*", "alignment.llm.*", "data_builders.*", "eval.*"),
            *("alignment.quickstart.*", "alignment.diagnosis.*", "alignment.migration.*"),
            *("alignment.stages", "alignment.comparison.*"),
            *("alignment.rounds.*", "alignment.loops.*"),
            *("alignment.pages.*", "alignment.reporting.*"),
            *("alignment.decoding.*", "alignment.contrasts", "alignment.contrasts.*"),
        ),
    ),
    Room(
        ("alignment.comparison", "alignment.comparison.*"),
        (
            *("alignment", "alignment.comparison", "alignment.comparison.*"),
            "alignment.quickstart.*",
            *("alignment.stages", "alignment.core.groups", "alignment.core.rows"),
            *("alignment.llm.*", "data_builders.statistics", *FLOOR),
        ),
    ),
    Room(
        ("alignment.loops", "alignment.loops.*"),
        (
            *("alignment.rounds.*", "alignment.core.groups", "alignment.core.rows"),
            *("data_builders.*", *ENGINE, *FLOOR),
        ),
    ),
    Room(
        ("alignment.rounds", "alignment.rounds.*"),
        (
            *("alignment.rounds.*", "alignment.stages", "alignment.quickstart.inputs", *LAUNCH),
            *("alignment.core.groups", "alignment.core.rows", "alignment.llm.*"),
            *("data_builders.*", "eval.*", *BY_NAME, *FLOOR),
        ),
    ),
    Room(("alignment.stages",), FLOOR, ()),
    Room(
        ("alignment.quickstart", "alignment.quickstart.*"),
        (
            *("alignment.quickstart.*", "alignment.trainers.*", *TRAINING),
            *("alignment.llm.*", "data_builders.*", "eval.*"),
        ),
    ),
    Room(
        ("alignment.reporting", "alignment.reporting.*"),
        (
            *("alignment.reporting.*", "alignment.data_tools.*", "alignment.pages.*"),
            *("eval.*", "alignment.core.rows", *FLOOR),
        ),
        (),
    ),
    Room(
        ("alignment.decoding", "alignment.decoding.*"),
        (
            *("alignment.decoding", "alignment.decoding.*"),
            *("alignment.contrasts", "alignment.contrasts.*"),
            *("alignment.core.groups", "alignment.core.rendering", "alignment.core.rows"),
            *("alignment.core.packing", "alignment.core.tokenizers", *CONTRACT),
            *(*CONNECT, *BACKENDS, *ENGINE, *FLOOR),
        ),
    ),
    Room(
        ("alignment.contrasts", "alignment.contrasts.*"),
        ("alignment.contrasts.base", *BY_NAME),
        ("torch",),
    ),
    Room(
        ("alignment.data_tools", "alignment.data_tools.*"),
        (
            *("alignment.data_tools.*", "alignment.pages.*", "data_builders.*", "eval.*"),
            *("alignment.core.groups", "alignment.core.rows", *CONNECT, *ENGINE, *FLOOR),
        ),
    ),
    Room(
        ("alignment.pages", "alignment.pages.*"),
        ("alignment", "alignment.pages.*", *FLOOR),
        ("jinja2", "markupsafe"),
    ),
    Room(("alignment.train",), (*LAUNCH, "alignment.trainers.*", *TRAINING)),
    Room(LAUNCH, FLOOR, ("accelerate", "torch", "yaml")),
    Room(
        ("alignment.diagnosis", "alignment.diagnosis.*"),
        ("alignment.diagnosis.*", "alignment.trainers.*", *TRAINING),
    ),
    Room(
        ("alignment.migration", "alignment.migration.*"),
        ("alignment.migration.*", "alignment.cli"),
        ("yaml",),
    ),
    Room(("alignment.trainers.*",), ("alignment", "alignment.trainers.*", *TRAINING)),
    Room(("alignment.data",), ("alignment.core.*", *CONTRACT, *FLOOR)),
    Room(
        ("alignment.core.preflight",),
        ("alignment.core.scoring", "alignment.core.packing", *CONTRACT, *FLOOR),
    ),
    Room(("alignment.core.scoring",), (*SCORED, *CONTRACT, *FLOOR)),
    Room(
        ("alignment.core.reference", "alignment.core.rendering", "alignment.core.planning"),
        ("alignment.core.packing", "alignment.core.groups", "alignment.core.token_labels", *FLOOR),
    ),
    Room(("alignment.core.tokenizers",), FLOOR, ("transformers",)),
    Room(LABELS, ("alignment.core.packing", "alignment.core.groups", *FLOOR)),
    Room(
        ("alignment.core.attention",),
        ("alignment.core.packing", "alignment.core.ragged"),
        ("torch",),
    ),
    Room(
        ("alignment.core.ragged",),
        ("alignment.core.packing", "alignment.core.cascade"),
        ("torch", "transformers"),
    ),
    Room(("alignment.core.cascade",), ("alignment.core.packing",), ("torch",)),
    Room(("alignment.core.packing",), ("alignment.core.groups",), ("torch",)),
    Room(
        ("alignment.core.divergences",),
        ("alignment.core.logps", "alignment.core.buckets", *CONTRACT),
        ("torch",),
    ),
    Room(("alignment.core.buckets",), (), ("torch",)),
    Room(("alignment.core.logps",), (), ("torch", "trl")),
    Room(("alignment.objectives", "alignment.objectives.*"), (*CONTRACT, *BY_NAME), ("torch",)),
    # What a row holds is told in the file that knows column names.
    Room(CONTRACT, ("alignment.core.groups", *BY_NAME), ("torch",)),
    Room(
        ("data_builders.*",),
        (
            *("data_builders.base", "data_builders.statistics"),
            *("eval.judge", "eval.judge_files", "eval.verdicts"),
            *(f"data_builders.{name}" for name in BUILDING),
            *("alignment", "alignment.core.groups", "alignment.core.rows"),
            *(*CONNECT, *ENGINE, *FLOOR),
        ),
    ),
    Room(
        tuple(f"data_builders.{name}" for name in ("base", "card", "hub", "summary")),
        (
            *(
                f"data_builders.{name}"
                for name in ("card", "hub", "overlap", "statistics", "summary")
            ),
            *("alignment", "alignment.core.groups", "alignment.core.rows"),
            *(*CONNECT, *ENGINE, *FLOOR),
        ),
    ),
    Room(
        ("data_builders.statistics", "data_builders.duplicates", "data_builders.overlap"),
        (
            *("data_builders.duplicates", "alignment.core.groups", "alignment.core.rows"),
            *(*ENGINE, *FLOOR),
        ),
    ),
    Room(
        ("eval.*",),
        (
            *(*HARNESS, "alignment.core.groups", "alignment.core.rows"),
            *(*CONNECT, *ENGINE, *FLOOR),
        ),
    ),
    Room(HARNESS, (*HARNESS, "alignment", "alignment.core.rows", *CONNECT, *ENGINE, *FLOOR)),
    # Names the backends, each imported when it is asked for.
    Room(CONNECT, (*BACKENDS, *ENGINE, *FLOOR), ()),
    Room(BACKENDS, (*BACKENDS, *ADAPTERS, *ENGINE, *FLOOR)),
    Room(
        ("alignment.adapters", "alignment.adapters.*"),
        (*ADAPTERS, *BY_NAME, *FLOOR),
        ("peft", "torch", "transformers"),
    ),
    Room(BY_NAME, (), ()),
    Room(("alignment.llm.*",), ("alignment.core.parquet", *ENGINE, *FLOOR), ("jinja2", "tqdm")),
    Room(
        ("alignment.core.rows",),
        ("alignment.core.groups", "alignment.core.parquet", *FLOOR),
        ("pyarrow",),
    ),
    Room(("alignment.core.parquet",), (), ("pyarrow",)),
    Room(("alignment.core.groups",), (), ()),
    Room(FLOOR, (), ("yaml",)),
)

# Who may know that a package exists at all.
TRAINERS = ("alignment.trainers.*", "alignment.train")
ENGINES = (*TRAINERS, *LAUNCH, "alignment.core.scoring", "alignment.commands.*")
KNOWN_BY = {
    "trl": (*TRAINERS, "alignment.core.logps"),
    "accelerate": ENGINES,
    "deepspeed": ENGINES,
    "peft": (*ENGINES, "alignment.adapters.*"),
}

# Loading the engine, a builder, a tool or an evaluator costs nothing that a model would need.
LIGHT = (
    *("alignment", "alignment.__main__", "alignment.core.groups", "alignment.core.rows", *FLOOR),
    *(*LAUNCH, *CONNECT, *ENGINE, "data_builders*", "eval*", "alignment.data_tools*"),
    *("alignment.pages*", "alignment.reporting*", "alignment.commands.report"),
)
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "openai", "ray")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for name in PACKAGES for path in ROOT.glob(f"{name}/**/*.py")}
MODULES = sorted(name for name, path in FILES.items() if path.stem != "__init__")
METHODS = {
    kind: [
        name.rpartition(".")[2]
        for name in MODULES
        if fnmatch(name, f"alignment.{kind}.*") and not name.endswith(".base")
    ]
    for kind in ("objectives", "adapters")
}
OBJECTIVES = METHODS["objectives"]

LOOPS = [n.rpartition(".")[2] for n in MODULES if fnmatch(n, "alignment.loops.*")]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def imported(source: str, module: str = "") -> Iterator[str]:
    """Every module that a file imports, at any depth; names of objects are left off."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(filter(None, [*module.split(".")[: -node.level], base]))
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            known = [name for name in submodules if name in FILES or "experimental" in name]
            yield from known
            if len(known) < len(submodules):
                yield base


def room_of(module: str) -> Room:
    """The room that names a module most closely."""
    found = [
        (len(p.rstrip("*")), room) for room in ROOMS for p in room.modules if fnmatch(module, p)
    ]
    assert found, f"{module} has no room: add one to the table in {Path(__file__).name}"
    return max(found, key=lambda pair: pair[0])[1]


def violations(module: str, source: str) -> list[str]:
    """What a file of the project imports although its room may not, one line each."""
    room = room_of(module)
    found = []
    for name in imported(source, module):
        top = name.partition(".")[0]
        if top in PACKAGES:
            allowed = matches(name, room.imports)
        else:
            allowed = top in sys.stdlib_module_names or matches(top, room.third_party)
            allowed = allowed and matches(module, KNOWN_BY.get(top, ANY))
        if not allowed:
            found.append(f"{module} may not import {name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_the_table(module: str):
    assert violations(module, FILES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("alignment.objectives.dpo", "from alignment.core import packing"),
        ("alignment.objectives.dpo", "from alignment.objectives.sft import SFT"),
        ("alignment.objectives.dpo", "import numpy"),
        ("alignment.core.groups", "import torch"),
        ("alignment.core.packing", "def f():\n    from alignment.core.scoring import Scorer"),
        ("alignment.core.scoring", "from trl import DPOTrainer"),
        ("alignment.core.packing", "import peft"),
        ("alignment.commands.report", "import trl"),
        ("alignment.adapters.clm", "from alignment.trainers.config import GroupConfig"),
        ("alignment.trainers.base", "from alignment.objectives.dpo import DPO"),
        ("alignment.core.attention", "from . import scoring"),
        ("alignment.llm.ledger", "import openai"),
        ("eval.alpaca_eval", "import alignment.core.scoring"),
        ("data_builders.clair", "from alignment.trainers.base import GroupTrainer"),
    ],
)
def test_an_import_that_points_up_is_found(module: str, source: str):
    assert len(violations(module, source)) == 1


def test_no_room_may_import_a_room_above_it():
    rank = {name: ROOMS.index(room_of(name)) for name in MODULES}
    for index, room in enumerate(ROOMS):
        above = [n for n in MODULES if matches(n, room.imports) and rank[n] < index]
        assert above == [], f"{room.modules} may import {above}"


def test_the_files_of_packages_import_nothing_and_that_of_alignment_is_lazy():
    for name, path in FILES.items():
        # What a user names is found by the packages of such things themselves.
        finding = ("objectives", "adapters", "contrasts")
        named = ("alignment", *(f"alignment.{package}" for package in finding))
        if path.stem == "__init__" and name not in named:
            assert [n for n in imported(path.read_text()) if n != "__future__"] == [], name


@pytest.mark.parametrize("folder", [*PACKAGES, "benchmarks", "tests"])
def test_nothing_imports_the_experimental_part_of_trl(folder: str):
    files = list((ROOT / folder).glob("**/*.py"))
    assert files
    guilty = [
        str(path.relative_to(ROOT))
        for path in files
        if any(name.startswith("trl.experimental") for name in imported(path.read_text()))
    ]
    assert guilty == []


@pytest.mark.parametrize("folder", [*PACKAGES, "benchmarks", "tests"])
def test_no_import_hides_the_builtin_eval(folder: str):
    guilty = [
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).glob("**/*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        and any(alias.name.split(".")[0] == "eval" and not alias.asname for alias in node.names)
    ]
    assert guilty == []


def test_the_floor_the_builders_and_the_evaluators_load_no_model_library():
    names = sorted(name for name in FILES if matches(name, LIGHT))
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    loaded = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]\n"
        "    if loaded:\n"
        "        sys.exit(f'importing {name} loads {loaded}')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_has_a_test_a_recipe_and_a_row_in_its_document(name: str):
    files = (f"tests/loops/test_{name}.py", f"recipes/{name}/loop.yaml")
    assert [file for file in files if not (ROOT / file).is_file()] == []
    rows = [line for line in (ROOT / "docs/loops.md").read_text().splitlines() if "|" in line]
    assert [row for row in rows if f"recipes/{name}/loop.yaml" in row]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_file_has_one_public_class(name: str):
    tree = ast.parse((ROOT / f"alignment/objectives/{name}.py").read_text())
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len([name for name in classes if not name.startswith("_")]) == 1


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in METHODS.items() for name in names]
)
def test_a_method_has_a_test_a_recipe_and_a_row_in_the_readme(kind: str, name: str):
    files = (f"tests/{kind}/test_{name}.py", f"recipes/{name}/smoke.yaml")
    assert [file for file in files if not (ROOT / file).is_file()] == []
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    assert [row for row in rows if f"alignment/{kind}/{name}.py" in row], (
        f"the method table of README.md has no row with alignment/{kind}/{name}.py"
    )
