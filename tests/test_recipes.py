"""Every file under recipes/ is a whole run: it parses, says how to start it, and trains."""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
from pathlib import Path

import datasets
import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from alignment import launch
from alignment.cli import load_yaml, parse
from alignment.core.rows import is_local
from alignment.objectives import load_objective
from alignment.train import main, parse_recipe
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("recipes/**/*.yaml"))
ACCELERATE = [name for name in FILES if name.startswith("recipes/accelerate/")]
RUNS = [name for name in FILES if name not in ACCELERATE]
SMOKE = [name for name in RUNS if name.endswith("/smoke.yaml")]

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
    match = re.search(rf"(-m alignment\.train|alignment [\w ]+?) --config {name}\b", header(name))
    assert match, f"{name}: the header has no launch line with `--config {name}`"
    words = match[1].split()
    packages = {"build": "data_builders", "eval": "eval"}
    if words[0] == "-m" or words[1] == "train":
        return "alignment.train"
    return f"{packages.get(words[1], 'alignment.commands')}.{words[-1]}"


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
def test_a_recipe_parses_and_repeats_no_default(name: str):
    module = module_of(name)
    if module == "alignment.train":
        recipe = parse_recipe(["--config", name])
        kinds = [type(part) for part in vars(recipe).values()]
    else:
        options = importlib.import_module(module).Options
        parse(options, ["--config", name], "alignment")
        kinds = [options]
    defaults = {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}
    repeated = [key for key, value in load_yaml(name).items() if defaults[key] == value]
    assert [key for key in repeated if key != "objective"] == []  # a run names its method


@pytest.mark.parametrize("name", [n for n in RUNS if module_of(n) == "alignment.train"])
def test_a_training_recipe_names_what_exists(name: str):
    recipe = parse_recipe(["--config", name])
    kwargs = recipe.training.objective_kwargs
    assert not isinstance(kwargs, str)
    objective = load_objective(recipe.training.objective, kwargs)
    cited = set(re.findall(r"arXiv (\d{4}\.\d{5})", header(name)))
    assert cited <= set(re.findall(r"\d{4}\.\d{5}", type(objective).__doc__ or ""))
    assert cited or recipe.training.objective in WITHOUT_ARXIV
    assert Path(name).parent.name == recipe.training.objective
    sources = [recipe.data.dataset_name, *(d.path for d in recipe.mixture.datasets)]
    named = [source for source in sources if source is not None]
    assert named
    assert [path for path in named if is_local(path) and not Path(path).exists()] == []


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
