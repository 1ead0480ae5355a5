"""Configurations of other projects become recipes that pass our own checks; nothing is lost."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.migration.draft import Draft
from alignment.migration.methods import choose_trainer
from alignment.migration.recipe import migrate
from alignment.migration.source import Source, read_source
from alignment.objectives import load_objective
from alignment.train import parse_recipe, recipe_keys

CONFIGS = Path(__file__).resolve().parent / "configs"
FILES = sorted(path.name for path in CONFIGS.iterdir())

OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "handbook.yaml": ("dpo", {"beta": 0.01}),
    "handbook_mixture.yaml": ("apo", {"beta": 0.05}),
    "simpo.yaml": ("simpo", {"beta": 2.5, "gamma": 1.0}),
    "cpo_simpo.yaml": (
        "cpo",
        {
            **{"loss_type": "simpo", "beta": 8, "cpo_alpha": 0.1, "simpo_gamma": 4.5},
            **{"label_smoothing": 0.0, "alpha": 0.0},
        },
    ),
    "distillm2.yaml": ("distillm2", {"form": "release", "skew": "fixed", "curriculum": "off"}),
    "trl_dpo.sh": ("nca", {"beta": 0.05, "form": "pair"}),
    "trl_cpo.yaml": (
        "cpo",
        {
            **{"loss_type": "simpo", "beta": 2.5, "cpo_alpha": 0.0, "simpo_gamma": 0.3},
            **{"label_smoothing": 0.0, "alpha": 0.25},
        },
    ),
    "trl_kto.yaml": (
        "apo",
        {"form": "unpaired", "beta": 0.2, "desirable_weight": 1.0, "undesirable_weight": 1.5},
    ),
    "trl_sft.yaml": ("sft", {}),
}


def drafted(name: str, **options: Any) -> Draft:
    return migrate(read_source(CONFIGS / name), recipe_keys(), **options)


def from_keys(keys: dict[str, Any], **options: Any) -> Draft:
    return migrate(Source("run.yaml", keys), recipe_keys(), **options)


def test_every_configuration_has_its_objective_here():
    assert set(FILES) == set(OBJECTIVES)


@pytest.mark.parametrize("name", FILES)
def test_the_written_recipe_is_one_that_training_takes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "recipe.yaml"
    dispatch(["migrate", str(CONFIGS / name), "--output", str(output)])
    recipe = parse_recipe(["--config", str(output), "--use_cpu", "true"])
    objective, kwargs = OBJECTIVES[name]
    assert recipe.training.objective == objective
    assert (recipe.training.objective_kwargs or {}) == kwargs
    assert load_objective(objective, kwargs)
    assert f"objective {objective}" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_the_source_is_in_the_recipe_or_told_of(name: str):
    source = read_source(CONFIGS / name)
    text = drafted(name).text([])
    assert len(source.keys) > 5
    assert [key for key in source.keys if key not in text] == []


def test_what_has_no_counterpart_is_listed_with_a_reason():
    lost = drafted("trl_dpo.sh").lost
    assert list(lost) == ["`ld_alpha` (0.5)"]
    text = drafted("handbook.yaml").text([])
    assert "# - `max_prompt_length` (512): `max_length` bounds" in text
    assert drafted("trl_kto.yaml").lost.keys() == {"`train_sampling_strategy` (sequential)"}


def test_a_key_that_nobody_knows_is_listed_with_its_neighbour():
    lost = from_keys({"loss_type": "sigmoid", "num_train_epoch": 3}).lost
    assert lost == {"`num_train_epoch` (3)": "no key of a recipe; near it is `num_train_epochs`"}


def test_the_batch_is_counted_over_all_processes_where_they_are_known():
    """2 a device x 8 passes x 4 processes are 64."""
    draft = drafted("simpo.yaml", processes=4)
    assert draft.recipe["global_batch_size"] == 64
    assert "per_device_train_batch_size" not in draft.recipe
    unknown = drafted("simpo.yaml").recipe
    assert "global_batch_size" not in unknown
    assert unknown["per_device_train_batch_size"] == 2
    assert unknown["gradient_accumulation_steps"] == 8
    assert drafted("trl_dpo.sh").recipe["global_batch_size"] == 8  # the launcher says 4


def test_the_margin_of_simpo_is_its_share_of_beta_times_beta():
    """2.5 x 0.4 = 1; with a likelihood it is a form of CPO, whose loss is the same."""
    keys = {"beta": 2.5, "gamma_beta_ratio": 0.4}
    assert from_keys(keys).recipe["objective_kwargs"] == {"beta": 2.5, "gamma": 1.0}
    kwargs = from_keys({**keys, "sft_weight": 0.1}).recipe["objective_kwargs"]
    assert (kwargs["simpo_gamma"], kwargs["cpo_alpha"]) == (1.0, 0.1)


def test_defaults_that_differ_from_ours_are_stated():
    recipe = from_keys({"dataset_mixer": {"a/b": 1.0}, "beta": 0.1}).recipe
    assert recipe["learning_rate"] == 5e-5
    assert recipe["max_length"] == 512
    assert recipe["truncation_mode"] == "keep_end"
    assert from_keys({"dataset_name": "a/b"}).recipe["truncation_mode"] == "keep_start"
    assert from_keys({"dataset_name": "a/b"}, trainer="kto", objective="apo").recipe
    given = from_keys({"dataset_mixer": {"a/b": 1}, "max_length": 9, "truncation_mode": "keep_end"})
    assert given.recipe["max_length"] == 9


def test_a_share_of_a_handbook_set_is_a_slice_of_its_split():
    draft = drafted("handbook.yaml")
    assert draft.recipe["datasets"] == [
        {"path": "some-org/pairs", "split": "train_prefs[:50%]"},
        {"path": "some-org/more", "split": "train_prefs"},
    ]
    assert draft.recipe["eval_strategy"] == "no"  # nothing to evaluate on is an error in training
    assert any("the splits test_prefs of several" in told for told in draft.lost.values())
    single = drafted("handbook_mixture.yaml").recipe
    assert single["dataset_train_split"] == "train[:25%]"
    assert single["test_split_size"] == 200
    odd = from_keys({"dataset_mixer": {"a/b": 0.333}})
    assert odd.recipe["dataset_train_split"] == "train"
    assert any("0.333" in told for told in odd.lost)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"loss_type": "ipo", "beta": 0.1}, "`loss_type: ipo`"),
        ({"loss_type": ["sigmoid", "sft"]}, "adds up sigmoid, sft"),
        ({"loss_type": ["sigmoid"], "loss_weights": [0.5]}, "`loss_weights`"),
        ({"loss_type": "kto"}, "apo_zero_unpaired"),
        ({"loss_type": "hinge", "gamma_beta_ratio": 0.5}, "`loss_type: hinge`"),
        ({"dataset_mixture": ["a/b"]}, "`dataset_mixture`"),
        ({"dataset_mixer": {"a/b": 1}, "dataset_configs": ["x", "y"]}, "2 of 1 data sets"),
        ({"gamma_beta_ratio": "auto"}, "`gamma_beta_ratio` is 'auto'"),
        ({"per_device_train_batch_size": "auto"}, "it must be a number"),
        ({}, "holds no key"),
    ],
)
def test_a_loss_without_counterpart_writes_no_recipe(keys: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        from_keys(keys)


def test_an_objective_of_ones_choice_takes_over_all_else():
    draft = from_keys({"loss_type": "ipo", "beta": 0.1, "learning_rate": 1e-6}, objective="apo")
    assert draft.recipe["objective"] == "apo"
    assert "`beta` (0.1)" in draft.lost
    assert "loss_type` ipo" in draft.text([])


@pytest.mark.parametrize(
    ("keys", "trainer"),
    [
        ({"beta": 0.1}, "dpo"),
        ({"loss_type": "apo_zero"}, "dpo"),
        ({"loss_type": "simpo"}, "cpo"),
        ({"cpo_alpha": 0.5}, "cpo"),
        ({"gamma_beta_ratio": 0.5}, "simpo"),
        ({"loss_type": "distillm_v1"}, "distillm"),
        ({"undesirable_weight": 1}, "kto"),
        ({"packing": True}, "sft"),
    ],
)
def test_a_trainer_is_known_by_the_keys_that_others_lack(keys: dict[str, Any], trainer: str):
    assert choose_trainer(keys) == trainer


def test_a_script_is_read_with_the_file_that_it_names(tmp_path: Path):
    (tmp_path / "training_configs").mkdir()
    (tmp_path / "training_configs/run.yaml").write_text("beta: 2.0\ngamma_beta_ratio: 0.5\n")
    (tmp_path / "runs").mkdir()
    script = tmp_path / "runs/run.sh"
    script.write_text(
        "torchrun --nproc_per_node 8 \\\n scripts/run_simpo.py training_configs/run.yaml --beta=4\n"
    )
    source = read_source(script)
    assert source.keys == {"beta": 4, "gamma_beta_ratio": 0.5}
    assert (source.trainer, source.processes) == ("simpo", 8)
    script.write_text("trl dpo --config training_configs/none.yaml\n")
    with pytest.raises(UserError, match=r"none\.yaml, which is not there"):
        read_source(script)
    script.write_text("trl grpo --output_dir x\n")
    with pytest.raises(UserError, match="the grpo trainer has no counterpart"):
        migrate(read_source(script), recipe_keys())
    with pytest.raises(UserError, match="is a program"):
        read_source(tmp_path / "dpo.py")
    script.write_text("echo nothing\n")
    with pytest.raises(UserError, match="holds 0 training commands"):
        read_source(script)


@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        ("torchrun --nproc_per_node=8", 8),
        ("torchrun --nnodes=2 --nproc-per-node 8", 16),
        ("torchrun --nnodes=1:4 --nproc_per_node=8", None),
        ("torchrun --nnodes=2 --nproc_per_node=gpu", None),
        ("deepspeed --num_gpus 8", 8),
        ("deepspeed --num_nodes 2 --num_gpus 8", 16),
        ("deepspeed --hostfile hosts --num_gpus 8", None),
        ("deepspeed -H hosts --num_nodes 3 --num_gpus 8", 24),
        ("accelerate launch --num_machines 2 --num_processes 16", 16),
        ("accelerate launch", None),
    ],
)
def test_processes_of_a_node_count_on_every_node(
    launcher: str, processes: int | None, tmp_path: Path
):
    script = tmp_path / "run.sh"
    script.write_text(f"{launcher} scripts/run_dpo.py --beta 0.1\n")
    assert read_source(script).processes == processes


def test_a_script_is_read_with_the_variables_that_it_sets(tmp_path: Path):
    script = tmp_path / "run.sh"
    start = "export MODEL=org/base\nN=2\nOPTS=''\nOPTS+=' --beta 0.2'\nOPTS+=' --max_length 64'\n"
    command = (
        "cd x && accelerate launch --num_processes ${N} run_dpo.py --model_name_or_path $MODEL "
    )
    script.write_text(
        f'{start}{command} --output_dir "out/$MODEL-$N" ${{OPTS}} "$@" > log 2>&1 &\n'
    )
    found = read_source(script)
    assert (found.trainer, found.processes) == ("dpo", 2)
    assert found.keys == {
        **{"model_name_or_path": "org/base", "output_dir": "out/org/base-2"},
        **{"beta": 0.2, "max_length": 64},
    }
    for unknown in ("$DATA", "${DATA:-x}", "$(date)"):
        script.write_text(f"{start}{command} --run_name a-{unknown}\n")
        with pytest.raises(UserError, match=r"run\.sh: the value of `\$.*` is not in the script"):
            read_source(script)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"dataset_mixer": {"a": "all"}}, "the share of `a` is `all`; it must be a number"),
        ({"dataset_mixer": {"a": 1, "b": 1}, "dataset_configs": "c"}, "names 1 of 2 data sets"),
        ({"loss_type": []}, "`loss_type` is an empty list; name a loss"),
        ({"dataset_mixture": {"datasets": []}}, "must hold `datasets`, each with an `id`"),
        ({"per_device_train_batch_size": 8.5}, "is 8.5; it must be a whole number"),
        ({"beta": "0.1"}, "`beta` is '0.1'; it must be a number"),
    ],
)
def test_a_configuration_that_says_nothing_clear_is_one_line(keys: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        from_keys(keys)


def test_one_split_of_a_handbook_set_may_stand_without_a_list():
    keys = {"dataset_mixer": {"a": 0.5}, "dataset_splits": "train_prefs"}
    assert from_keys(keys).recipe["dataset_train_split"] == "train_prefs[:50%]"


def test_a_value_that_training_would_refuse_writes_nothing(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("loss_type: sigmoid\nbeta: -1\nlearning_rate: 1.0e-6\n")
    output = tmp_path / "recipe.yaml"
    with pytest.raises(UserError, match=r"training would refuse this recipe: .*beta"):
        dispatch(["migrate", str(tmp_path / "run.yaml"), "--output", str(output)])
    assert not output.exists()


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("beta: 5e-2\nlearning_rate: 5e-7\nmodel_revision: a1e5\n")
    keys = read_source(tmp_path / "run.yaml").keys
    assert keys == {"beta": 0.05, "learning_rate": 5e-7, "model_revision": "a1e5"}


def test_an_output_that_is_there_is_kept(tmp_path: Path):
    output = tmp_path / "recipe.yaml"
    output.write_text("mine")
    words = ["migrate", str(CONFIGS / "simpo.yaml"), "--output", str(output)]
    with pytest.raises(UserError, match="--overwrite"):
        dispatch(words)
    assert output.read_text() == "mine"
    dispatch([*words, "--overwrite"])
    assert yaml.safe_load(output.read_text())["objective"] == "simpo"


def test_splits_that_the_handbook_does_not_come_to_are_told_of():
    """It pairs the splits of all sets in turn with the shares, of which each set has one."""
    keys = {"dataset_splits": ["train_sft", "train_gen", "test_sft", "test_gen"]}
    one = from_keys({"dataset_mixer": {"a": 1.0}, **keys})
    assert one.recipe["dataset_name"] == "a"
    assert one.recipe["dataset_train_split"] == "train_sft"
    assert one.recipe["dataset_test_split"] == "test_sft"
    assert list(one.lost) == ["`a` (train_gen)", "`a` (test_gen)"]
    assert "name it under `datasets`" in one.lost["`a` (train_gen)"]
    two = from_keys({"dataset_mixer": {"a": 1.0, "b": 0.5}, **keys})
    assert two.recipe["datasets"] == [
        {"path": "a", "split": "train_sft"},
        {"path": "a", "split": "train_gen[:50%]"},
    ]
    assert list(two.lost) == ["`b` (train_sft)", "`b` (train_gen)"]


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({"warmup_ratio": 0.1}, 0.1),
        ({"warmup_ratio": 0.1, "warmup_steps": 0}, 0.1),
        ({"warmup_ratio": 0.1, "warmup_steps": 20}, 20),
        ({"warmup_ratio": 0.0, "warmup_steps": 0}, 0),
    ],
)
def test_a_share_of_warmup_steps_counts_where_no_number_is_set(keys: dict[str, Any], steps: float):
    draft = from_keys({"dataset_name": "a", **keys})
    assert draft.recipe["warmup_steps"] == steps
    text = draft.text([])
    assert [key for key in keys if key not in text] == []
