"""Every file under recipes/ is a whole run: it parses, says how to start it, and runs."""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import re
import shlex
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from alignment import launch
from alignment.__main__ import dispatch
from alignment.cli import load_recipe, load_yaml, parse
from alignment.core.rows import is_local, read_rows
from alignment.objectives import load_objective
from alignment.train import Recipe, main, parse_recipe
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("recipes/**/*.yaml"))
ACCELERATE = [name for name in FILES if name.startswith("recipes/accelerate/")]
RUNS = [name for name in FILES if name not in ACCELERATE]
SMOKE = [name for name in RUNS if name.endswith("/smoke.yaml")]
REAL = [name for name in RUNS if re.search("_(lora|qlora|zero3).yaml$", name)]
"""What trains a model that is worth having; each has its build and its evaluation."""
README = (ROOT / "recipes/README.md").read_text(encoding="utf-8")

FIRST_LOSS = {"1": 1.0, "ln 2": math.log(2), "2 ln 2": 2 * math.log(2), "ln 4": math.log(4)}
"""What a header may promise, as a number."""

WITHOUT_ARXIV = ("sft", "dckd", "adpa")
"""SFT has no paper, the others' is cited by title and venue."""


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name their files from here."""
    monkeypatch.chdir(ROOT)


def header(name: str) -> str:
    """The comment at the top, as one line."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    length = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(" ".join(line.strip("#\\ ") for line in lines[:length]).split())


def module_of(name: str) -> str:
    """The module that the launch line in a recipe's header starts with this very recipe."""
    match = re.search(rf"(-m alignment\.train|alignment [\w -]+?) --config {name}\b", header(name))
    assert match, f"{name}: the header has no launch line with `--config {name}`"
    words = match[1].split()
    packages = {"build": "data_builders", "eval": "eval"}
    if words[0] == "-m" or words[1] == "train":
        return "alignment.train"
    return f"{packages.get(words[1], 'alignment.commands')}.{words[-1]}"


def options_of(name: str) -> Any:
    """The options that a recipe of a builder or an evaluator stands for."""
    return parse(importlib.import_module(module_of(name)).Options, ["--config", name], "alignment")


class Command(NamedTuple):
    """A command of a header or of the README.

    Attributes:
        verb: Its words before the recipe, such as `build clair`; of training `train`.
        recipe: The recipe.
        more: The words after it.
    """

    verb: str
    recipe: str
    more: tuple[str, ...]


def commands_in(text: str) -> list[Command]:
    """The lines that run a recipe, without the words that choose an engine."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if re.match(r" *alignment .*--config ", line):
            words = shlex.split(line, comments=True)
            place = words.index("--config")
            verb = " ".join(words[1 : 2 if words[1] == "train" else place])
            found.append(Command(verb, words[place + 1], tuple(words[place + 2 :])))
    return found


def commands_of(name: str) -> list[Command]:
    """The commands in the header of a recipe that trains."""
    comments = [line[1:] for line in (ROOT / name).read_text().splitlines() if line[:1] == "#"]
    return commands_in("\n".join(comments))


def test_there_are_recipes_of_every_kind():
    assert FILES
    assert ACCELERATE
    assert SMOKE
    assert len(FILES) == len(list(ROOT.glob("recipes/**/*.y*ml"))), "recipes end in .yaml"


@pytest.mark.parametrize("name", RUNS)
def test_a_header_tells_what_it_runs_and_on_what(name: str):
    text = header(name)
    assert "Hardware" in text
    assert max(map(len, (ROOT / name).read_text().splitlines())) <= 100
    if module_of(name) == "alignment.train":
        assert "Headline: " in text
        for launched in re.findall(r"--config_file (\S+)", text):
            assert launched in ACCELERATE


@pytest.mark.parametrize("name", RUNS)
def test_a_recipe_parses_and_repeats_neither_a_default_nor_what_it_extends(name: str):
    if module_of(name) == "alignment.train":
        kinds = [type(part) for part in vars(parse_recipe(["--config", name])).values()]
    else:
        kinds = [type(options_of(name))]
    known = {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}
    own = load_yaml(name)
    if "extends" in own:
        known |= load_recipe(Path(name).parent / own.pop("extends"))
    repeated = [key for key, value in own.items() if known[key] == value]
    assert [key for key in repeated if key != "objective"] == []  # a run names its method


@pytest.mark.parametrize("name", [n for n in RUNS if module_of(n) == "alignment.train"])
def test_a_training_recipe_names_what_exists(name: str):
    recipe = parse_recipe(["--config", name])
    kwargs = recipe.training.objective_kwargs
    assert not isinstance(kwargs, str)
    objective = load_objective(recipe.training.objective, kwargs)
    builds = [command for command in commands_of(name) if command.verb.startswith("build")]
    builders = [importlib.import_module(module_of(command.recipe)) for command in builds]
    cited = set(re.findall(r"arXiv (\d{4}\.\d{5})", header(name)))
    told = " ".join(str(each.__doc__) for each in (type(objective), *builders))
    adapter = recipe.data.adapter
    if adapter is not None:
        told += (ROOT / f"alignment/adapters/{adapter}.py").read_text(encoding="utf-8")
    assert cited <= set(re.findall(r"\d{4}\.\d{5}", told))
    assert cited or recipe.training.objective in WITHOUT_ARXIV
    methods = [
        recipe.training.objective,
        adapter,
        *(each.__name__.split(".")[1] for each in builders),
    ]
    assert Path(name).parent.name in methods
    made = {str(options_of(command.recipe).output) for command in builds}
    sources = [recipe.data.dataset_name, *(d.path for d in recipe.mixture.datasets)]
    named = {source for source in sources if source is not None}
    assert named
    assert [p for p in named - made if is_local(p) and not Path(p).exists()] == []


@pytest.mark.parametrize("name", REAL)
def test_data_training_and_evaluation_are_three_commands_that_fit(name: str):
    """What one writes the next one reads."""
    build, train, evaluate = commands_of(name)
    assert [c.verb.split()[0] for c in (build, train, evaluate)] == ["build", "train", "eval"]
    assert train == Command("train", name, ())
    assert ("--launcher zero3 --gpus 8" in header(name)) is name.endswith("_zero3.yaml")
    recipe = parse_recipe(["--config", name])
    assert recipe.data.dataset_name == str(options_of(build.recipe).output)
    for command in (build, evaluate):
        assert module_of(command.recipe).rpartition(".")[2] == command.verb.split()[1]
    overridden = dict(zip(evaluate.more[::2], evaluate.more[1::2], strict=True))
    trained = overridden.get("--model", options_of(evaluate.recipe).model)
    assert trained == recipe.training.output_dir
    assert re.search(r"Headline: (.*(unknown|\((P|S|C)\b)|that of \w+_lora.yaml)", header(name))
    assert re.search("time unknown, never run at this size", header(name))


def test_every_run_stands_in_the_readme_of_the_recipes():
    runs = {re.sub("_(lora|qlora|zero3).yaml$", "", name) for name in REAL}
    named = {f"recipes/{run}" for run in re.findall(r"`(\w+/\w+)`(?=[,\s].*\|)", README)}
    assert runs - named == set()
    for run in runs:
        single = {f"{run}_lora.yaml", f"{run}_qlora.yaml"} & set(REAL)
        assert len(single) == 1
        assert f"{run}_zero3.yaml" in REAL
    ends = ("_build.yaml", "_eval.yaml")
    beside = {c.recipe for name in REAL for c in commands_of(name)}
    assert {name for name in RUNS if name.endswith(ends)} <= beside


def launched(name: str, *words: str) -> argparse.Namespace:
    """What accelerate makes of one of its files."""
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", name, *words, "-m", "alignment.train"])
    return _validate_launch_command(arguments)[0]


@pytest.mark.parametrize("name", ACCELERATE)
def test_accelerate_reads_its_configurations(name: str):
    config = load_config_from_file(name)
    assert config.num_processes >= 1
    assert "--config_file" not in header(name) or name in header(name)
    assert config.mixed_precision == "no", "the recipe decides on the precision"
    assert launched(name).num_processes == config.num_processes


@pytest.mark.parametrize("name", ACCELERATE)
def test_every_key_of_an_engine_is_one_that_the_launcher_hands_on(name: str):
    """Accelerate ignores others silently."""
    config = load_config_from_file(name)
    known = vars(launch_command_parser().parse_args(["script"]))
    keys = {*config.deepspeed_config, *config.fsdp_config}
    assert sorted(key for key in keys if key not in known) == []
    fields = {field.name for field in dataclasses.fields(DeepSpeedPlugin)}
    beside = {"deepspeed_multinode_launcher"}
    assert set(config.deepspeed_config) - beside <= fields


@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`"
)
@pytest.mark.parametrize("name", [n for n in ACCELERATE if re.search("zero|multi_node", n)])
def test_deepspeed_takes_what_a_configuration_says(name: str, monkeypatch: pytest.MonkeyPatch):
    """The plugin reads the launcher's variables; the two say the same."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {**os.environ, "DS_ACCELERATOR": "cpu"})
        local = ("--num_machines", "1", "--main_process_port", "0")
        arguments = launched(name, *local)
        arguments.deepspeed_fields_from_accelerate_config = ""
        _, variables = prepare_deepspeed_cmd_env(arguments)
        os.environ.update(variables)
        plugin = DeepSpeedPlugin()
    said = load_config_from_file(name).deepspeed_config
    assert plugin.zero_stage == said["zero_stage"]
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == said["offload_optimizer_device"]
    assert zero["offload_param"]["device"] == said["offload_param_device"]
    saves = zero["stage3_gather_16bit_weights_on_model_save"]
    assert saves is said.get("zero3_save_16bit_model", False)
    assert DeepSpeedZeroConfig(**zero).stage == said["zero_stage"]


def test_the_slurm_script_is_bash_and_hands_the_rank_on():
    script = "recipes/accelerate/slurm.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    text = Path(script).read_text()
    options = set(re.findall(r"--([a-z_]+)", text)) & set(launch.Options.__dataclass_fields__)
    assert options >= {"launcher", "nodes", "node_rank", "main_address", "main_port"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student and a wider teacher with the same tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "model": save_tiny(folder / "student"),
        "teacher_model": save_tiny(folder / "teacher", seed=1, hidden_size=48),
        "second_teacher_model": save_tiny(folder / "second", seed=2, hidden_size=48),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKE)
def test_a_smoke_recipe_trains(
    name: str,
    folders: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp())
    argv = ["--config", name, "--max_steps", "2", "--output_dir", str(tmp_path)]
    for key, folder in folders.items():
        if f"{key}_name_or_path" in load_yaml(name):
            argv += [f"--{key}_name_or_path", str(folder)]
    main(argv)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)
    promised = re.search(r"the first loss is ((?:\d )?ln \d|\d+)", header(name))
    if promised:
        assert steps[0]["loss"] == pytest.approx(FIRST_LOSS[promised[1]], abs=1e-5)
    assert (tmp_path / "adapter_model.safetensors").is_file()


# ---- The runs on real models, on tiny ones of the same family ----

FAMILY = {"mistral_7b": "mistral", "qwen25_1_5b": "qwen2", "smollm3_3b": "smollm3"}
"""By the model in a recipe's name; the others are Llamas."""
FIRST = {"apo": 1.0, "dpo": math.log(2), "nca": 2 * math.log(2), "infonca": math.log(4)}
"""What the first loss must be while policy and reference are the same."""


class Place:
    """A folder in which recipes are tried as recipes/README.md says, each command once.

    Args:
        folder: Gets the tiny models, and all that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: set[str] = set()
        self._lines = commands_in("\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)))

    def words(self, command: Command) -> list[str]:
        """A command with the documented words after its recipe, those of the nearest example."""

        def nearness(line: Command) -> tuple[bool, int]:
            same = Path(line.recipe).parent == Path(command.recipe).parent
            ends = [reversed(Path(each.recipe).stem.split("_")) for each in (line, command)]
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(*ends, strict=False))
            return same, len(list(alike))

        line = max((each for each in self._lines if each.verb == command.verb), key=nearness)
        model = re.sub("_(on|off)line|_simpo", "", Path(command.recipe).stem).rpartition("_")[0]
        family = FAMILY.get(model, "llama")
        more = [re.sub("^runs/tiny", f"runs/{family}", word) for word in line.more]
        for name in {word for word in more if word.startswith(f"runs/{family}")}:
            if not Path(name).exists():
                wide = {"seed": 1, "hidden_size": 48} if name.endswith("-teacher") else {}
                save_tiny(name, family, **wide)
        return [*command.verb.split(), "--config", command.recipe, *more]

    def once(self, command: Command) -> None:
        """Runs a command that several runs share."""
        if command.recipe not in self._done:
            dispatch(self.words(command))
            self._done.add(command.recipe)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Where recipes find themselves and the programs that stand in for models."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    return Place(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_three_commands_of_a_recipe_run(
    name: str, place: Place, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place.folder / "cache")
    build, train, evaluate = commands_of(name)
    if "merge" in header(name):
        assert load_recipe(name)["model_name_or_path"].startswith("runs/models/")
    place.once(build)
    rows = list(read_rows(options_of(build.recipe).output))
    assert len(rows) >= 4

    words = place.words(train)
    recipe = parse_recipe(words[1:])
    dispatch(words)
    out = Path(recipe.training.output_dir)
    assert_trained(recipe, out)

    if not evaluate.more:  # ZeRO-3 differs in the model alone
        place.once(evaluate)
        options = options_of(evaluate.recipe)
        asked = "answers.jsonl" if evaluate.verb == "eval translation" else "results.json"
        assert (Path(options.output) / asked).is_file()


def assert_trained(recipe: Recipe, out: Path) -> None:
    """One step was taken, on rows of which none was rejected, from where the method must begin."""
    assert not (out / "rejects.jsonl").exists(), (out / "rejects.jsonl").read_text()[:2000]
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (step,) = [row for row in logged if "loss" in row]
    assert math.isfinite(step["loss"])
    assert step["grad_norm"] > 0
    if recipe.training.objective in FIRST:
        assert step["loss"] == pytest.approx(FIRST[recipe.training.objective], abs=2e-2)
    saved = "adapter_model" if recipe.model.use_peft else "model"
    assert (out / f"{saved}.safetensors").is_file()
