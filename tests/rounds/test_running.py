"""Rounds go on while they help; what they come to is told, and the best is kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alignment.cli import UserError, parse
from alignment.reporting.report import gather
from alignment.rounds.loop import Loop
from alignment.rounds.options import Asked, Options, check_keys
from alignment.rounds.report import draw, lines
from alignment.rounds.round import Policy, Round
from alignment.rounds.running import Running
from alignment.rounds.store import Store
from alignment.stages import Stage

PROMPTS = [f"question {number}, of some length" for number in range(10)]


@dataclass(frozen=True)
class Echo(Loop):
    """Trains on its prompts."""

    objective: ClassVar[str] = "sft"
    asks: ClassVar[bool] = False

    def data(self, at: Round) -> Path:
        return at.prompts


def file(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Scripted:
    """Stages that cost nothing, and scores by round that a test sets."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores = scores
        self.trained: list[list[str]] = []
        self.policies: list[object] = []

    def generate(self, at: Round, prompts: Path, *, name: str, **_: Any) -> Path:
        def work(folder: Path) -> None:
            rows = [{"prompt": p, "response": f"{p} in round {at.number}"} for p in PROMPTS]
            file(folder / "answers.jsonl", rows)

        return at.store.make(at.place, name, {}, work) / "answers.jsonl"

    def train(self, at: Round, data: Path, *_: Any) -> Path:
        self.policies.append(at.policy.model)
        self.trained.append([json.loads(line)["prompt"] for line in data.open()])
        return at.store.make(at.place, "train", {}, lambda f: (f / "adapter").mkdir()) / "adapter"

    def judge(self, at: Round, answers: Path, baseline: Path, asked: Asked) -> Path:
        score = self.scores[at.number - 1]

        def work(folder: Path) -> None:
            (folder / "winrate").mkdir()
            report = {"win_rate": score, "win_rate_ci": [score, score]}
            (folder / "winrate/results.json").write_text(json.dumps(report))
            file(
                folder / "winrate/verdicts.jsonl", [{"prompt": p, "score": score} for p in PROMPTS]
            )

        return at.store.make(at.place, "judged", {}, work) / "winrate"


@pytest.fixture
def words(tmp_path: Path, model_dir: Path) -> list[str]:
    pool = file(tmp_path / "pool.jsonl", [{"prompt": f"ask {n} anew"} for n in range(100, 140)])
    held_out = file(tmp_path / "held_out.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    given = {
        **{"method": "echo", "model": model_dir, "prompts": pool, "held_out": held_out},
        **{"output": tmp_path / "run", "prompts_per_round": 10},
        "judge_model": "program:alignment.quickstart.world.judge",
    }
    return [str(word) for name, value in given.items() for word in (f"--{name}", value)]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(words: list[str], scores: Sequence[float], *more: str) -> tuple[Scripted, Any]:
        script = Scripted(scores)
        for name in ("generate", "train", "judge"):
            act = getattr(script, name)
            monkeypatch.setattr(Round, name, lambda at, *a, act=act, **k: act(at, *a, **k))
        options = parse(Options, [*words, *more], "alignment loop")
        return script, Running(options, Echo()).run()

    return run


def test_each_round_starts_from_the_last_with_prompts_that_none_has_seen(
    words: list[str], scripted: Any
):
    script, results = scripted(words, [0.6, 0.7, 0.8])
    seen = [prompt[0]["content"] for prompts in script.trained for prompt in prompts]
    assert len(seen) == len(set(seen)) == 30
    first, second, third = script.policies
    assert Path(first).name == Path(words[3]).name
    assert "round-1" in str(second)
    assert "round-2" in str(third)
    assert [row["score"] for row in results["rounds"]] == [0.6, 0.7, 0.8]
    assert [round(row["gain"], 9) for row in results["rounds"]] == [0.1, 0.1, 0.1]
    assert results["best_round"] == 3
    assert results["stopped"] is None


def test_a_round_that_does_not_help_is_the_last_and_the_best_is_kept(
    words: list[str], scripted: Any, tmp_path: Path
):
    script, results = scripted(words, [0.6, 0.6, 0.9])
    assert len(script.trained) == 2
    assert results["stopped"] == "1 round without gain"
    assert results["best_round"] == 1
    assert (tmp_path / "run/adapter").is_dir()
    assert json.loads((tmp_path / "run/results.json").read_text()) == results
    rounds = gather(tmp_path / "run", 4, 0).sections[0]
    assert rounds.headline == [("round 1", "best"), ("2", "rounds")]
    told = list(lines(results))
    assert told[-1] == "best: round 1"
    assert "stopped early: 1 round without gain" in told
    pytest.importorskip("matplotlib")
    draw(tmp_path, results)
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_patience_lets_rounds_pass_and_null_never_stops(words: list[str], scripted: Any):
    _, results = scripted(words, [0.6, 0.5, 0.7], "--patience", "2")
    assert results["best_round"] == 3
    assert results["rounds"][2]["gain"] == pytest.approx(0.1)  # over round 1, not round 2


def test_where_no_round_helps_no_adapter_is_kept(words: list[str], scripted: Any, tmp_path: Path):
    _, results = scripted(words, [0.4, 0.3, 0.2], "--patience", "null")
    assert len(results["rounds"]) == 3
    assert results["best_round"] == 0
    assert not (tmp_path / "run/adapter").exists()
    assert list(lines(results))[-1].startswith("best: the start")


def test_a_folder_of_something_else_is_left_alone(words: list[str], scripted: Any, tmp_path: Path):
    (tmp_path / "run/adapter").mkdir(parents=True)
    with pytest.raises(UserError, match="holds something else than a loop"):
        scripted(words, [0.6])
    assert (tmp_path / "run/adapter").is_dir()


def test_too_few_prompts_are_told_before_any_round(words: list[str], scripted: Any):
    with pytest.raises(UserError, match="has 40 prompts that may be used, the rounds need 50"):
        scripted(words, [0.6], "--rounds", "5")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rounds", "0"], "`rounds` is 0; it must be at least 1"),
        (["--train", '{"output_dir": "x"}'], "`train.output_dir` is set by the loop itself"),
        (["--train", '{"datasets": []}'], "`train.datasets` is set by the loop itself"),
        (["--train", '{"model_revision": "v1"}'], "`train.model_revision` is set by the loop"),
        (["--generate", '{"samples": 2}'], "`generate.samples` is set by the loop itself"),
        (["--generate", '{"model_revision": "v1"}'], "`generate.model_revision` is set by the"),
        (["--train", '{"learning_rat": 1}'], "did you mean `learning_rate`?"),
        (["--evaluate", '{"resample": 1}'], "did you mean `resamples`?"),
        (["--build", '{"judge_model": "x"}'], "`build.judge_model` is set by the loop itself"),
        (["--serve", "run {model} {port} --name 'x"], "`serve` is no command (No closing quota"),
        (["--build", '{"word": "x"}'], "`build` has no use: the loop `echo` has no builder"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(
    words: list[str], more: list[str], message: str
):
    with pytest.raises(UserError) as caught:
        check_keys(parse(Options, [*words, *more], "alignment loop"), builder=None)
    assert message in str(caught.value)


def test_a_loop_that_asks_needs_somebody_to_ask(words: list[str]):
    class Asking(Echo):
        asks = True

    with pytest.raises(UserError, match="asks about answers: set `builder_model`"):
        Running(parse(Options, words, "alignment loop"), Asking())


@pytest.mark.parametrize("name", ["builder_model", "judge_model", "audit_model"])
def test_a_program_that_does_not_exist_is_told_before_any_work(words: list[str], name: str):
    options = parse(Options, [*words, f"--{name}", "program:no_such.judge"], "alignment loop")
    with pytest.raises(UserError, match=r"no program `no_such\.judge`"):
        Running(options, Echo())


def test_rounds_without_a_prompt_that_both_have_judged_are_not_compared(
    words: list[str], scripted: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Running, "_gains", lambda *_: [])
    with pytest.raises(UserError, match="no held-out prompt was judged in this round and in"):
        scripted(words, [0.6])


def test_files_without_prompts_are_told_by_their_own_names(
    words: list[str], scripted: Any, tmp_path: Path
):
    empty = file(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match=r"empty\.jsonl holds no prompts"):
        scripted(words, [0.6], "--held-out", str(empty))
    with pytest.raises(UserError, match=r"empty\.jsonl.*the file holds no rows"):
        scripted(words, [0.6], "--prompts", str(empty))


def test_an_adapter_of_another_kind_begins_in_the_first_round_and_goes_on_in_the_others(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    given: list[tuple[str, ...]] = []

    def noted(_: str, words: tuple[object, ...], output: Path) -> Stage:
        given.append(tuple(map(str, words)))
        return Stage("train", {}, lambda: None)

    monkeypatch.setattr("alignment.rounds.round.training", noted)
    train = '{"adapter": "panacea", "adapter_kwargs": {"r": 4}}'
    options = parse(Options, [*words, "--train", train], "alignment loop")
    for adapter in (None, tmp_path / "run/round-1/train/adapter"):
        policy = Policy(options.model, adapter)
        at = Round(
            1,
            options=options,
            store=Store(options.output),
            policy=policy,
            prompts=options.prompts,
            held_out=options.held_out,
        )
        at.train(options.prompts, "panacea", {})
    first, second = given
    assert "--use_peft" not in first
    assert first[first.index("--adapter") + 1] == "panacea"
    assert "--adapter_name_or_path" not in first
    assert not {"--adapter", "--adapter_kwargs"} & {*second}
    assert "--adapter_name_or_path" in second
