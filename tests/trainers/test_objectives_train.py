"""Every objective trains through the command, and bad input ends in one line before a model is."""

import gzip
import json
import math
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment.cli import run
from alignment.objectives import available_objectives, load_objective
from alignment.train import main
from alignment.trainers import loading
from data_builders.clair import parse_revision
from tests.conftest import ROOT
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

DATA = ROOT / "recipes" / "data"
PAIR = {"prompt": "What is a cat?", "chosen": " A mammal.", "rejected": " A bird, I think."}
SCORED = {"prompt": "What is a cat?", "responses": [" A mammal.", " A bird."], "rewards": [1, 0]}

Train = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that is wider than the student, with 24 rows of padding in its vocabulary."""
    return save_tiny(tmp_path_factory.mktemp("teacher"), seed=1, hidden_size=48, vocab_size=344)


@pytest.fixture(scope="module")
def second_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the teacher started from, so to speak: another model of the same family."""
    return save_tiny(tmp_path_factory.mktemp("second"), seed=2, vocab_size=344)


@pytest.fixture(scope="module")
def reader_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose tokenizer knows some English, so that real texts stay short."""
    folder = tmp_path_factory.mktemp("reader")
    tiny_model(vocab_size=1024, num_hidden_layers=1).save_pretrained(folder)
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    tiny_tokenizer([text], vocab_size=1000).save_pretrained(folder)
    return folder


@pytest.fixture
def train(model_dir: Path, tmp_path: Path) -> Train:
    """Runs the command on a file or on rows, and returns what each step logged."""

    def run_it(data: Path | Iterable[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        main(command(model_dir, data, tmp_path, **options))
        lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "loss" in row]

    return run_it


def command(
    model: Path, data: Path | Iterable[dict[str, Any]], folder: Path, **options: Any
) -> list[str]:
    """The words of a short run on the CPU, every step logged and nothing saved on the way."""
    if not isinstance(data, Path):
        rows, data = data, folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": folder / "out",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "max_steps": 1,
        "global_batch_size": 4,
        **options,
    }
    words = []
    for name, value in chosen.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def rows_of(path: Path, count: int) -> list[dict[str, Any]]:
    """The first rows of a compressed file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in islice(lines, count)]


# ---- The first step ----

GROUPS = [
    {
        "prompt": f"Name {k} animals.",
        "responses": [f" cat {i}" for i in range(k)],
        "rewards": [*range(k)],
    }
    for k in (2, 3, 4, 5)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "kwargs", "data", "expected"),
    [
        ("nca", {}, GROUPS, 2 * math.log(2)),
        ("nca", {"tau": 1.0, "beta": 0.5}, GROUPS, 2 * math.log(2)),
        ("nca", {"form": "pair"}, DATA / "pairs.jsonl", 2 * math.log(2)),
        ("nca", {"form": "pair", "biased": True}, DATA / "pairs.jsonl", 2 * math.log(2)),
        ("infonca", {}, DATA / "groups.jsonl", math.log(4)),
        ("infonca", {"tau": 1.0}, GROUPS, math.log(2 * 3 * 4 * 5) / 4),
        ("infonca", {"form": "pair"}, DATA / "pairs.jsonl", math.log(2)),
        ("apo", {}, DATA / "pairs.jsonl", 1.0),
        ("apo", {"variant": "down"}, DATA / "pairs.jsonl", 1.0),
        ("apo", {"form": "unpaired"}, DATA / "unpaired.jsonl", 0.5),
        ("dpo", {}, DATA / "pairs.jsonl", math.log(2)),
    ],
)
def test_the_first_loss_is_the_identity_of_the_objective(
    objective: str, kwargs: dict[str, Any], data: Any, expected: float, train: Train
):
    (step,) = train(data, objective=objective, objective_kwargs=kwargs)
    assert step["loss"] == pytest.approx(expected, abs=1e-6)


# ---- A small set is learnt by heart ----


def data_for(needs: frozenset[str]) -> Path:
    """The file of recipes/data that serves an objective."""
    kinds = {
        **{"reward": "groups", "pairs": "pairs", "twin": "judgments"},
        **{"one_rejected": "sides", "spans": "spans", "scores": "segments"},
        "aspects": "aspects",
    }
    return DATA / f"{next((kinds[n] for n in kinds if n in needs), 'demonstrations')}.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("name", available_objectives())
def test_the_loss_falls_on_a_set_that_is_learnt_by_heart(
    name: str, teacher_dir: Path, second_dir: Path, train: Train
):
    """Sixteen steps on the same four groups take at least a tenth off the loss."""
    needs = load_objective(name).needs
    rows = [json.loads(line) for line in data_for(needs).read_text().splitlines()[:4]]
    options: dict[str, Any] = {"max_steps": 16, "learning_rate": 1e-2}
    if "teacher" in needs:
        options["teacher_model_name_or_path"] = teacher_dir
    if "aspects" in needs:
        options |= {"adapter": "panacea", "learning_rate": 1e-1}
    if "second_teacher" in needs:
        options["second_teacher_model_name_or_path"] = second_dir
    losses = [step["loss"] for step in train(rows, objective=name, **options)]
    assert len(losses) == 16
    assert losses[-1] < 0.9 * losses[0]


# ---- What a few methods need of the trainer ----


@pytest.mark.slow
def test_a_count_that_reads_the_policy_does_not_depend_on_micro_batches(train: Train):
    """FIGA's own count, over four pairs at once and two by two."""
    options = {"objective": "figa", "objective_kwargs": {"normalisation": "release"}}
    whole, halves = (
        train(
            DATA / "pairs.jsonl",
            **options,
            max_steps=2,
            gradient_accumulation_steps=parts,
            learning_rate=1e-3,
        )
        for parts in (1, 2)
    )
    for left, right in zip(whole, halves, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_a_value_head_is_trained_saved_with_the_adapter_and_trained_on(
    train: Train, model_dir: Path, tmp_path: Path
):
    options = {"objective": "awr", "use_peft": True, "lora_target_modules": "all-linear"}
    train(DATA / "segments.jsonl", **options, max_steps=3, learning_rate=1e-2)
    adapter = tmp_path / "out"
    saved = load_file(adapter / "adapter_model.safetensors")
    (name,) = [name for name in saved if name.endswith("value_head.weight")]
    assert saved[name].abs().sum() > 0
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_dir), adapter)
    assert not any("value_head" in name for name, _ in plain.named_modules())
    train(
        DATA / "segments.jsonl",
        objective="awr",
        adapter_name_or_path=adapter,
        output_dir=tmp_path / "on",
        learning_rate=1e-2,
    )
    moved = load_file(tmp_path / "on" / "adapter_model.safetensors")
    assert (moved[name] - saved[name]).abs().sum() > 0
    assert (moved[name] - saved[name]).abs().max() < saved[name].abs().max()


@pytest.mark.slow
def test_a_second_reference_changes_the_loss(second_dir: Path, train: Train):
    """The negative's log-ratio is no longer 0 at the start; the samples' is."""
    options = {"objective": "d2o", "objective_kwargs": {"references": "two"}}
    named = {"second_ref_model_name_or_path": second_dir}
    (step,) = train(DATA / "sides.jsonl", **options, **named)
    assert step["rewards/chosen"] == pytest.approx(0, abs=1e-6)
    assert abs(step["rewards/rejected"]) > 1e-3


# ---- Real data ----


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first"), [("nca", 2 * math.log(2)), ("infonca", math.log(8))])
def test_eight_scored_responses_train(
    name: str, first: float, shared_dir: Path, reader_dir: Path, train: Train
):
    """The answers of eight models to each prompt; the best one gains on the worst."""
    path = shared_dir / "data" / "rewards" / "alpaca_eval_k8.jsonl.gz"
    steps = train(
        rows_of(path, 4),
        model_name_or_path=reader_dir,
        objective=name,
        objective_kwargs={"beta": 0.1, "tau": 0.1},
        as_chat=True,
        max_length=160,
        truncation_mode="keep_start",
        max_steps=4,
        learning_rate=1e-3,
    )
    assert steps[0]["loss"] == pytest.approx(first, abs=1e-5)
    assert steps[-1]["loss"] < first
    assert steps[-1]["rewards/margins"] > 0


@pytest.mark.slow
def test_judged_responses_train_and_failed_judgments_are_rejected(
    shared_dir: Path, reader_dir: Path, train: Train, tmp_path: Path
):
    path = shared_dir / "data" / "judgments" / "cut_iter1.jsonl.gz"
    steps = train(
        path,
        model_name_or_path=reader_dir,
        objective="cut",
        as_chat=True,
        max_length=512,
        max_steps=4,
        global_batch_size=8,
        learning_rate=1e-3,
    )
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert 0 < steps[0]["cut/selected"] < 1
    lines = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in lines]
    assert reasons.count("judgment_error") == 47
    assert set(reasons) <= {"judgment_error", "too_long", "prompt_too_long"}


def clair_pairs(shared_dir: Path) -> list[dict[str, Any]]:
    """The published revisions as pairs: the revision chosen, the student's answer rejected."""
    text = (shared_dir / "data" / "clair" / "revisions.jsonl").read_text(encoding="utf-8")
    return [
        {
            "prompt": row["prompt"],
            "chosen": parse_revision(row["raw_completion"]).answer,
            "rejected": row["student"],
        }
        for row in map(json.loads, text.splitlines())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apo", "cpo"])
def test_revisions_train(name: str, shared_dir: Path, reader_dir: Path, train: Train):
    """One step on all fourteen pairs shows in the next one."""
    steps = train(
        clair_pairs(shared_dir),
        model_name_or_path=reader_dir,
        objective=name,
        as_chat=True,
        max_length=512,
        truncation_mode="keep_start",
        max_steps=2,
        global_batch_size=14,
        gradient_accumulation_steps=7,
        learning_rate=1e-3,
    )
    assert [step["step"] for step in steps] == [1, 2]
    assert steps[1]["loss"] < steps[0]["loss"]
    assert steps[1]["rewards/chosen"] > steps[0]["rewards/chosen"]


@pytest.mark.slow
def test_padding_of_the_teachers_vocabulary_changes_no_divergence(
    teacher_dir: Path, train: Train, tmp_path: Path
):
    """A wider teacher whose head has 24 rows more than the student's, and the same without them."""
    trimmed = tiny_model(seed=1, hidden_size=48, vocab_size=344)
    trimmed.resize_token_embeddings(320)
    trimmed.save_pretrained(tmp_path / "trimmed")
    tiny_tokenizer().save_pretrained(tmp_path / "trimmed")
    first = [
        train(
            DATA / "pairs.jsonl",
            objective="distillm2",
            objective_kwargs={"skew": "fixed"},
            teacher_model_name_or_path=teacher,
        )[0]["loss"]
        for teacher in (teacher_dir, tmp_path / "trimmed")
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert first[0] > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "file", "labels"),
    [
        ("dpo", "pairs", {"score_chosen": 1.0, "score_rejected": 0.0}),
        ("cut", "judgments", {"weight": 0.5}),
    ],
)
def test_rows_with_and_without_further_labels_train_together(
    objective: str, file: str, labels: dict[str, float], train: Train
):
    rows = [json.loads(line) for line in (DATA / f"{file}.jsonl").read_text().splitlines()[:4]]
    mixed = [{**row, **labels} if index % 2 else row for index, row in enumerate(rows)]
    (step,) = train(mixed, objective=objective, as_chat=True)
    assert math.isfinite(step["loss"])


# ---- Bad input ----


@pytest.fixture
def refusal(
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Runs the command and returns the one line it ends with; loading a model fails the test."""

    def loaded(*args: Any, **kwargs: Any) -> None:
        pytest.fail("a model was loaded before the input was checked")

    monkeypatch.setattr(loading, "create_model_from_path", loaded)

    def run_it(data: Path | Iterable[dict[str, Any]], **options: Any) -> str:
        with pytest.raises(SystemExit) as ended:
            run(main, command(model_dir, data, tmp_path, **options))
        assert ended.value.code == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
        return line

    return run_it


@pytest.mark.parametrize(
    ("objective", "row", "told"),
    [
        ("nca", {**SCORED, "rewards": None}, "NCA needs `rewards`; this row has no such labels"),
        ("nca", {**SCORED, "rewards": [1, None]}, "`rewards[1]` is not a number: None"),
        ("nca", {**SCORED, "rewards": [1, math.nan]}, "`rewards[1]` is nan"),
        ("infonca", {**SCORED, "rewards": [math.inf, 0]}, "`rewards[0]` is inf"),
        ("infonca", {**SCORED, "rewards": [1, 0, 2]}, "2 `responses` but 3 `rewards`"),
        ("nca", {**SCORED, "rewards": ["good", 0]}, "`rewards[0]` is not a number: 'good'"),
        (
            "dpo",
            {**SCORED, "responses": ["a"], "rewards": [1]},
            "DPO needs `chosen` and `rejected`",
        ),
        ("dpo", SCORED, "set `pair_rule: best_worst`"),
        ("kd", SCORED, "KD needs `chosen` and `rejected`, or a `label`"),
        ("cpo", {"prompt": "a", "completion": " b"}, "CPO needs `chosen` and `rejected`"),
        ("cut", {"instruction": "a", "output": " ", "judgment": "b"}, "response 0 is empty"),
        ("cut", {"instruction": "a", "output": "b", "judgment": "$ERROR$"}, "error: $ERROR$"),
        ("cut", {"instruction": "a", "output": "b"}, "CUT needs records with a `judgment`"),
        ("d2o", SCORED, "D2O needs one response of role -1 and at least one of role 1"),
        (
            "d2o",
            {"prompt": "a", "responses": [" b", " c"], "roles": [-1, -1]},
            "D2O needs one response of role -1",
        ),
        ("figa", SCORED, "FIGA needs `chosen` and `rejected`"),
        ("span_ascent", {"prompt": "a", "completion": " b"}, "SpanAscent needs `spans`"),
        ("span_unlikelihood", PAIR, "SpanUnlikelihood needs `spans`"),
        ("unlikelihood", PAIR, "Unlikelihood needs `segments` with scores, or a `reward`"),
        (
            "awr",
            {"prompt": "a", "completion": " b c", "segments": [{"text": " b", "score": 1}]},
            "cover 2 of the 4 characters of the response (' c' comes next)",
        ),
        ("clha", PAIR, "CLHA needs `rewards`"),
        ("ampo", PAIR, "AMPO needs `rewards`"),
        ("ulma", SCORED, "ULMA needs `chosen` and `rejected`, or a `label`"),
        (
            "nca",
            PAIR,
            "NCA needs `rewards`; this row has `chosen` and `rejected`: "
            "use `objective_kwargs: {form: pair}` or add rewards",
        ),
    ],
)
def test_rows_of_the_wrong_kind_are_named(
    objective: str,
    row: dict[str, Any],
    told: str,
    teacher_dir: Path,
    refusal: Callable[..., str],
):
    line = refusal([row], objective=objective, teacher_model_name_or_path=teacher_dir)
    assert told in line


def test_a_group_of_one_makes_no_pair(refusal: Callable[..., str]):
    row = {**SCORED, "responses": ["a"], "rewards": [1]}
    line = refusal([row], objective="apo", pair_rule="best_worst")
    assert "rows.jsonl:1" in line
    assert "needs two responses with rewards" in line


@pytest.mark.parametrize(
    ("objective", "kwargs", "told"),
    [
        ("nca", {"tau": 0}, "NCA.tau is 0: it must be above 0"),
        ("infonca", {"beta": -0.1}, "InfoNCA.beta is -0.1"),
        ("nca", {"biased": True}, "use form: pair"),
        ("apo", {"variant": "up"}, "APO.variant is 'up': choose one of 'zero', 'down'"),
        ("cpo", {"label_smoothing": 0.6}, "CPO.label_smoothing is 0.6"),
        ("cut", {"threshold": -1}, "CUT.threshold is -1"),
        ("distillm2", {"beta0": 1.5}, "DistiLLM2.beta0 is 1.5"),
        ("awr", {"alpha": 2}, "AWR.alpha is 2: it must be at least 0 and at most 1"),
        ("figa", {"negative_weight": 0.5}, "FIGA.negative_weight is 0.5: it must be at most 0"),
        ("clha", {"largest_group": 0}, "CLHA.largest_group is 0"),
        ("adpa", {"importance_sampling": "on"}, "choose one of 'off', 'sequence', 'release'"),
        ("gkd", {"beta": 1}, "GKD.beta is 1: it must be at least 0.01 and at most 0.99"),
        ("dpo", {"bta": 0.1}, "did you mean `beta`?"),
    ],
)
def test_hyper_parameters_out_of_range_are_named(
    objective: str, kwargs: dict[str, Any], told: str, refusal: Callable[..., str]
):
    line = refusal(DATA / "pairs.jsonl", objective=objective, objective_kwargs=kwargs)
    assert told in line


def test_a_missing_teacher_is_named(refusal: Callable[..., str]):
    line = refusal(DATA / "pairs.jsonl", objective="gkd")
    assert "GKD needs a teacher: set `teacher_model_name_or_path`" in line


def test_missing_second_models_are_named(teacher_dir: Path, refusal: Callable[..., str]):
    line = refusal(DATA / "pairs.jsonl", objective="adpa", teacher_model_name_or_path=teacher_dir)
    assert "ADPA needs a second teacher: set `second_teacher_model_name_or_path`" in line
    options: dict[str, Any] = {"objective": "d2o", "objective_kwargs": {"references": "two"}}
    line = refusal(DATA / "sides.jsonl", **options)
    assert "D2O needs a second reference: set `second_ref_model_name_or_path`" in line


def test_a_second_teacher_that_is_the_first_is_refused(
    teacher_dir: Path, tmp_path: Path, refusal: Callable[..., str]
):
    link = tmp_path / "link"
    link.symlink_to(teacher_dir)
    line = refusal(
        DATA / "pairs.jsonl",
        objective="adpa",
        teacher_model_name_or_path=teacher_dir,
        second_teacher_model_name_or_path=link,
    )
    assert "the second teacher is the first" in line
    assert "set `second_teacher_model_name_or_path` to the model that the teacher started" in line


@pytest.mark.parametrize("spelling", ["same", "link"])
def test_a_teacher_that_is_the_student_is_refused(
    spelling: str, model_dir: Path, tmp_path: Path, refusal: Callable[..., str]
):
    teacher = model_dir
    if spelling == "link":
        teacher = tmp_path / "link"
        teacher.symlink_to(model_dir)
    line = refusal(DATA / "pairs.jsonl", objective="gkd", teacher_model_name_or_path=teacher)
    assert "the teacher is the student itself" in line


def test_a_teacher_with_another_tokenizer_is_refused_with_ten_differences(
    tmp_path: Path, refusal: Callable[..., str]
):
    other = tmp_path / "other"
    save_tiny(other, seed=1)
    tiny_tokenizer(["zebras quietly juggle seven vexing boxes"]).save_pretrained(other)
    line = refusal(DATA / "pairs.jsonl", objective="distillm2", teacher_model_name_or_path=other)
    assert "has another tokenizer than the student" in line
    assert line.partition("student / teacher: ")[2].count(" / ") == 10


@pytest.mark.parametrize("role", ["reference", "second reference"])
def test_a_reference_with_another_tokenizer_is_refused(
    role: str, model_dir: Path, tmp_path: Path, refusal: Callable[..., str]
):
    other = tmp_path / "other"
    save_tiny(other, seed=1)
    tiny_tokenizer(["zebras quietly juggle seven vexing boxes"]).save_pretrained(other)
    models = {"ref_model_name_or_path": model_dir, "second_ref_model_name_or_path": model_dir}
    models[f"{role.replace('reference', 'ref').replace(' ', '_')}_model_name_or_path"] = other
    line = refusal(
        DATA / "sides.jsonl", objective="d2o", objective_kwargs={"references": "two"}, **models
    )
    assert f"{role} `{other}` has another tokenizer than the policy" in line
