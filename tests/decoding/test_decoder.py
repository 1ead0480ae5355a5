"""`alignment generate` with contrasts: plain where it must be, errors in one line."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError, parse
from alignment.commands.generate import Options, generate
from alignment.core.rows import read_rows
from alignment.decoding.figures import Figures
from alignment.decoding.training_free import generate_words
from alignment.llm.model import LocalModel
from alignment.llm.protocol import Stopped
from tests.tiny import save_tiny, save_tiny_reward, tiny_tokenizer

SYSTEM = {"system": "Be brief.", "second_system": "Be long."}


@pytest.fixture(scope="module")
def amateur(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("amateur"), seed=1, num_hidden_layers=1)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_reward(tmp_path_factory.mktemp("rewards"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    rows = [
        {"id": i, "prompt": "what the user asked " * (i % 4 + 1), "bare": "what is it"}
        for i in range(7)
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(work: Path, model: Path, name: str = "out.jsonl", **settings: Any) -> list[dict[str, Any]]:
    given = {
        "model": model,
        "prompts": work / "prompts.jsonl",
        "output": work / name,
        "max_tokens": 6,
        "chunk_size": 3,
        "batch_size": 2,
        "temperature": 0,
        "device": "cpu",
        **settings,
    }
    generate(parse(Options, generate_words(given), "alignment generate"))
    return [dict(row) for _, row in read_rows(work / name)]


def texts(rows: list[dict[str, Any]]) -> list[str]:
    return [row["response"] for row in rows]


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_model_against_itself_or_at_strength_zero_answers_as_without(
    work: Path, model_dir: Path, amateur: Path, temperature: float
):
    plain = texts(run(work, model_dir, temperature=temperature))
    unmasked: dict[str, Any] = {"contrast": "obrien_lewis", "temperature": temperature}
    settings = {**unmasked, "amateur": model_dir, "contrast_kwargs": {"alpha": 0.0}}
    same = run(work, model_dir, "same.jsonl", **settings)
    settings = {**unmasked, "amateur": amateur, "contrast_kwargs": {"alpha": 0.0, "beta": 0.0}}
    zero = run(work, model_dir, "zero.jsonl", **settings)
    assert texts(same) == texts(zero) == plain
    moved = run(work, model_dir, "moved.jsonl", **unmasked, amateur=amateur)
    assert texts(moved) != plain
    assert moved[0]["meta"]["decoding"]["contrast"] == "obrien_lewis"
    assert moved[0]["meta"]["decoding"]["contrast_kwargs"] == {"beta": 0.5, "alpha": 0.1}


@pytest.mark.slow
def test_every_contrast_answers_and_a_batch_answers_as_its_rows_do(
    work: Path, model_dir: Path, amateur: Path, rewards: Path
):
    ways: dict[str, dict[str, Any]] = {
        "contrastive": {"amateur": amateur},
        "obrien_lewis": {"amateur": amateur},
        "adversarial": SYSTEM,
        "linear_alignment": {"system": "Be brief."},
        "input": {"second_column": "bare"},
        "adacad": {"second_column": "bare", "contrast_kwargs": {"threshold": 0.5}},
        "args": {"reward_model": rewards, "contrast_kwargs": {"weight": 100}},
    }
    plain = texts(run(work, model_dir))
    for contrast, settings in ways.items():
        settings = {**settings, "contrast": contrast}
        made = run(work, model_dir, f"{contrast}.jsonl", **settings)
        assert texts(made) != plain, contrast
        alone = run(work, model_dir, f"{contrast}-alone.jsonl", **settings, batch_size=1)
        assert texts(alone) == texts(made), contrast


def test_an_interrupted_contrast_goes_on_and_another_one_is_refused(
    work: Path, model_dir: Path, amateur: Path, monkeypatch: pytest.MonkeyPatch
):
    settings: dict[str, Any] = {"contrast": "contrastive", "amateur": amateur}
    settings["report"] = work / "report.json"
    run(work, model_dir, "whole.jsonl", **settings)
    whole = Figures.read(work / "report.json")
    write, asked = LocalModel.write, list[int]()

    def interrupted(self: LocalModel, *batch: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return write(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(LocalModel, "write", interrupted)
        with pytest.raises(Stopped, match="4 of 7 rows are missing"):
            run(work, model_dir, **settings)
    other = {**settings, "contrast_kwargs": {"amateur_weight": 2.0}, "resume": True}
    with pytest.raises(UserError, match="another contrast_kwargs; repeat that run's options"):
        run(work, model_dir, **other)
    with pytest.raises(UserError, match="another contrast, contrast_kwargs, second"):
        run(work, model_dir, resume=True)
    run(work, model_dir, **settings, resume=True)
    assert (work / "out.jsonl").read_bytes() == (work / "whole.jsonl").read_bytes()
    assert Figures.read(work / "report.json").tokens == whole.tokens == 42


def test_a_report_that_comes_too_late_is_told_of(
    work: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
):
    run(work, model_dir)
    run(work, model_dir, resume=True, report=work / "report.json")
    assert "report.json is not written: the answers were finished before" in caplog.text
    assert not (work / "report.json").exists()


def test_a_report_tells_speed_memory_and_the_kl_from_the_start(
    work: Path, model_dir: Path, amateur: Path
):
    report = work / "report.json"
    run(work, model_dir, kl_from=model_dir, report=report)
    plain = Figures.read(report)
    assert (plain.answers, plain.kl_per_answer) == (7, pytest.approx(0, abs=1e-4))
    assert plain.tokens_per_second > 0
    assert plain.memory > 1e6
    settings: dict[str, Any] = {"contrast": "obrien_lewis", "amateur": amateur, "report": report}
    made = run(work, model_dir, "moved.jsonl", kl_from=model_dir, **settings)
    found = json.loads(report.read_text())
    assert found["kl"] == pytest.approx(sum(row["meta"]["kl"] for row in made))
    assert found["kl_per_answer"] == pytest.approx(found["kl"] / 7)
    assert all(row["meta"]["kl"] > 0.01 for row in made)
    assert found["decoding"]["contrast"] == "obrien_lewis"


def test_the_kl_under_a_system_prompt_is_that_from_the_plain_prompt(work: Path, model_dir: Path):
    made = run(work, model_dir, system="Be brief.", kl_from=model_dir)
    assert all(row["meta"]["kl"] > 1e-3 for row in made)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contrast": "adacat"}, "contrast `adacat` is unknown: did you mean `adacad`?"),
        ({"contrast": "obrien_lewis"}, "`--contrast obrien_lewis` needs `--amateur`"),
        ({"contrast": "adacad"}, "`--contrast adacad` needs `--second-column`"),
        ({"contrast": "args"}, "`--contrast args` needs `--reward-model`"),
        (
            {"contrast": "adversarial", "system": "a"},
            "needs `--second-system` or `--soft-prompts`",
        ),
        (
            {"contrast": "obrien_lewis", "amateur": "a", "contrast_kwargs": {"beta": -1.0}},
            r"OBrienLewis.beta is -1.0: it must be at least 0",
        ),
        (
            {"contrast": "obrien_lewis", "amateur": "a", "reward_model": "b"},
            "`--contrast obrien_lewis` does not read `--reward-model`",
        ),
        (
            {"contrast": "args", "reward_model": "a", "amateur": "b"},
            "`--contrast args` does not read `--amateur`",
        ),
        ({"amateur": "a"}, "`amateur` is read with `contrast` alone"),
        ({"contrast": "obrien_lewis", "amateur": "./none"}, "no model at ./none"),
        ({"kl_from": "./none"}, "no model at ./none"),
        ({"in_context": "retrieved"}, "`in_context: retrieved` and `demonstrations` need each"),
        ({"shots": 0}, "`shots` is 0; it must be at least 1"),
        (
            {"contrast": "adacad", "second_column": "bare", "base_url": "http://localhost:1"},
            "`--contrast` needs a model in this process, whose logits can be read",
        ),
        ({"kl_from": "a", "base_url": "http://localhost:1"}, "`--kl-from` needs a model in this"),
        ({"contrast": "adversarial", "soft_prompts": "nowhere"}, "nowhere holds no soft prompts"),
    ],
)
def test_what_cannot_be_contrasted_is_told_before_anything_is_generated(
    work: Path,
    model_dir: Path,
    settings: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(LocalModel, "write", lambda *_: 1 / 0)
    with pytest.raises(UserError, match=message.replace("?", r"\?")) as caught:
        run(work, model_dir, **settings)
    assert "\n" not in str(caught.value)
    assert not (work / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("option", "settings"),
    [
        ("amateur", {"contrast": "obrien_lewis"}),
        ("reward_model", {"contrast": "args"}),
        ("kl_from", {}),
    ],
)
def test_a_model_with_another_tokenizer_is_told_with_the_first_differences(
    work: Path, model_dir: Path, rewards: Path, option: str, settings: dict[str, Any]
):
    other = rewards if option == "reward_model" else save_tiny(work / "other")
    folder = work / "tokenizer"
    folder.mkdir()
    for path in other.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tiny_tokenizer(["other words make other merges"]).save_pretrained(folder)
    with pytest.raises(UserError, match=r"another tokenizer than the .*the first as .* 26\d: '"):
        run(work, model_dir, "out.jsonl", **{**settings, option: folder})


def test_an_amateur_larger_than_the_expert_is_warned_of(
    work: Path, model_dir: Path, caplog: pytest.LogCaptureFixture
):
    large = save_tiny(work / "large", seed=1, hidden_size=48)
    with caplog.at_level(logging.WARNING):
        run(work, model_dir, contrast="obrien_lewis", amateur=large)
    assert "is larger than the expert" in caplog.text


def test_a_reward_model_with_two_outputs_is_told(work: Path, model_dir: Path):
    folder = save_tiny_reward(work / "two", num_labels=2)
    with pytest.raises(UserError, match="has 2 outputs; a reward model has one"):
        run(work, model_dir, contrast="args", reward_model=folder)


def test_a_template_that_drops_system_prompts_is_told(work: Path):
    folder = save_tiny(work / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="drops system prompts; give a model whose template"):
        run(work, folder, contrast="adversarial", **SYSTEM)
    run(work, folder, contrast="adversarial", **SYSTEM, format="complete")


def test_a_row_without_the_second_column_is_rejected_by_name(work: Path, model_dir: Path):
    (work / "prompts.jsonl").write_text('{"prompt": "a", "bare": "b"}\n{"prompt": "c"}\n')
    assert len(run(work, model_dir, contrast="input", second_column="bare")) == 1
    (rejected,) = [row for _, row in read_rows(work / "out.jsonl.rejects.jsonl")]
    assert (rejected["reason"], rejected["source"]) == ("no_second_prompt", "prompts.jsonl:2")


def test_a_second_prompt_that_leaves_no_room_is_rejected(work: Path, model_dir: Path):
    small = save_tiny(work / "small", seed=1, max_position_embeddings=24)
    (work / "prompts.jsonl").write_text(
        json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "x" * 60}) + "\n"
    )
    made = run(work, model_dir, contrast="obrien_lewis", amateur=small, max_tokens=50)
    assert len(made) == 1
    (rejected,) = [row for _, row in read_rows(work / "out.jsonl.rejects.jsonl")]
    assert "the model takes 24" in rejected["message"]


@pytest.mark.parametrize("small", ["model", "second"])
def test_an_answer_is_not_cut_because_a_neighbour_has_no_more_room(work: Path, small: str):
    """Prompts of several lengths before models one of which takes 64 tokens."""
    folders = [save_tiny(work / "model", max_position_embeddings=64 if small == "model" else 4096)]
    folders += [save_tiny(work / "second", seed=1, max_position_embeddings=64)]
    settings: dict[str, Any] = {"contrast": "obrien_lewis", "amateur": folders[1]}
    settings |= {"kl_from": folders[1], "max_tokens": 30, "chunk_size": 7}
    (work / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": "the user " * n, "id": n}) + "\n" for n in (24, 1, 9, 16, 2))
    )
    alone = run(work, folders[0], "alone.jsonl", **settings, batch_size=1)
    together = run(work, folders[0], **settings, batch_size=5)
    assert texts(together) == texts(alone)
    assert len({len(row["response"]) for row in alone}) > 1
    assert [row["meta"]["kl"] for row in together] == pytest.approx(
        [row["meta"]["kl"] for row in alone], abs=1e-4
    )
