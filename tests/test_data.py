"""Every row ends among the prepared groups or among the rejects, and is tokenised once."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from alignment.cli import UserError
from alignment.core.groups import CHOSEN, REJECTED, Group, Response
from alignment.core.rendering import Renderer
from alignment.data import (
    GroupDataset,
    Preparation,
    Source,
    fingerprint_sources,
    read_sources,
)
from alignment.objectives.ampo import AMPO
from alignment.objectives.apo import APO
from alignment.objectives.base import Objective
from alignment.objectives.cut import CUT
from alignment.objectives.dpo import DPO
from alignment.objectives.infonca import InfoNCA
from alignment.objectives.kd import KD
from alignment.objectives.nca import NCA
from alignment.objectives.seqkd import SeqKD
from alignment.objectives.sft import SFT
from alignment.objectives.ulma import ULMA
from alignment.objectives.unlikelihood import Unlikelihood


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def preparation(tokenizer: PreTrainedTokenizerFast, objective: Objective, **options: Any) -> Any:
    limit = options.pop("max_length", None)
    return Preparation(Renderer(tokenizer, limit), objective, **options)


def named(rows: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(f"rows[{index}]", row) for index, row in enumerate(rows)]


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {i}", "chosen": f" yes {i}", "rejected": " no"} for i in range(count)
    ]


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


MIXED: list[dict[str, Any]] = [
    *pairs(2),
    {"chosen": "a", "rejected": "a"},
    {"prompt": "question", "chosen": " yes", "rejected": ""},
    {"prompt": "", "chosen": " yes", "rejected": " no"},
    {"prompt": "question", "responses": [" a", " b"], "rewards": [1, 0]},
    {"prompt": "is t", "chosen": "he", "rejected": "hat"},
    {"prompt": "question " * 100, "chosen": " yes", "rejected": " no"},
    {"prompt": "question", "chosen": " yes" * 100, "rejected": " no"},
    {"prompt": "", "chosen": " yes", "rejected": " no"},
]
REJECTED_ROWS = [2, 3, 4, 5, 7, 8, 9]


# ---- Preparation ----


def test_every_row_is_kept_or_rejected_and_counted_by_reason(tokenizer: PreTrainedTokenizerFast):
    prepared = preparation(tokenizer, DPO(), max_length=60)(named(MIXED))
    assert len(prepared) + len(prepared.rejects) == len(MIXED)
    assert prepared.report.kept == len(prepared) == 3
    assert prepared.report.responses == 6
    assert prepared.report.rejected == {
        "no_prompt": 2,
        "identical": 1,
        "empty_response": 1,
        "lacks_pairs": 1,
        "prompt_too_long": 1,
        "too_long": 1,
    }
    assert prepared.report.notices == {"joined_as_ids": 1}
    assert [prepared[i].origin for i in range(3)] == ["rows[0]", "rows[1]", "rows[6]"]


def test_the_report_is_one_line_with_the_most_frequent_reason_first(
    tokenizer: PreTrainedTokenizerFast,
):
    line = str(preparation(tokenizer, DPO(), max_length=60)(named(MIXED)).report)
    assert line.startswith("3 groups kept; rejected 7 (2 no_prompt, ")
    assert line.endswith("; 1 joined_as_ids")
    assert str(preparation(tokenizer, DPO())(named(pairs(2))).report) == "2 groups kept"


def test_the_rejects_file_tells_where_why_and_what(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    prepared = preparation(tokenizer, DPO(), max_length=60)(named(MIXED))
    prepared.write_rejects(tmp_path / "rejects.jsonl")
    lines = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["origin"] for record in records] == [f"rows[{i}]" for i in REJECTED_ROWS]
    assert [record["row"] for record in records] == [MIXED[i] for i in REJECTED_ROWS]
    assert records[1]["reason"] == "empty_response"
    assert records[1]["message"] == "response 1 is empty"
    assert all(set(record) == {"origin", "reason", "message", "row"} for record in records)


def test_a_rejected_group_is_shown_with_its_responses(tokenizer: PreTrainedTokenizerFast):
    responses = (Response(" ä", role=CHOSEN), Response(" b", role=CHOSEN))
    rows: list[Any] = [Group("question", responses), *pairs(1)]
    (reject,) = preparation(tokenizer, DPO())(named(rows)).rejects
    assert reject["reason"] == "lacks_pairs"
    shown = json.loads(reject["row"])
    assert shown["prompt"] == "question"
    assert [response["content"] for response in shown["responses"]] == [" ä", " b"]


def test_half_of_a_surrogate_pair_is_rejected_and_written_as_json_has_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    """Also where the row is rejected for another reason, which its `id` has no part in."""
    bad = [
        {**pairs(1)[0], "rejected": "ä \ud83d"},
        {"prompt": "q", "chosen": "a", "rejected": "a", "id": "\ud83d"},
    ]
    path = write(tmp_path / "pairs.jsonl", [*bad, *pairs(2)])
    prepared = preparation(tokenizer, DPO())(read_sources([Source(str(path))]))
    assert prepared.report.kept == 2
    prepared.write_rejects(tmp_path / "rejects.jsonl")
    text = (tmp_path / "rejects.jsonl").read_text(encoding="utf-8")
    assert '"rejected": "ä \\ud83d"' in text
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["row"] for record in records] == bad
    assert [(record["origin"], record["reason"]) for record in records] == [
        ("pairs.jsonl:1", "bad_text"),
        ("pairs.jsonl:2", "identical"),
    ]


def test_a_group_that_holds_half_of_a_surrogate_pair_is_rejected(
    tokenizer: PreTrainedTokenizerFast,
):
    half: Any = Group("\ud83d", (Response(" a", 1.0), Response(" b", 0.0)))
    for options in ({}, {"pair_rule": "best_worst"}):
        with pytest.raises(UserError, match=r"rejected 1 \(1 bad_text\)"):
            preparation(tokenizer, NCA(form="group"), **options)(named([half]))


def test_prepared_groups_are_what_the_renderer_makes(tokenizer: PreTrainedTokenizerFast):
    row = {"prompt": "question", "responses": [" a", " b", " c"], "rewards": [0.1, 2, -3]}
    (group,) = [preparation(tokenizer, NCA(form="group"))(named([row]))[0]]
    assert group.prefix == tokenizer("question")["input_ids"]
    assert [tokenizer.decode(ids[:-1]) for ids in group.responses] == [" a", " b", " c"]
    assert group.reward == [0.1, 2.0, -3.0]
    assert group.role == [0, 0, 0]


def test_lengths_are_those_of_the_groups_in_each_layout(tokenizer: PreTrainedTokenizerFast):
    prepared = preparation(tokenizer, DPO())(named(pairs(12)))
    lengths = [prepared[i].lengths() for i in range(12)]
    assert prepared.lengths("shared").tolist() == [shared for shared, _ in lengths]
    assert prepared.lengths("plain").tolist() == [plain for _, plain in lengths]
    assert len(set(lengths)) > 1


def test_a_response_that_the_objective_does_not_read_is_not_kept(
    tokenizer: PreTrainedTokenizerFast,
):
    """SFT imitates the chosen side of a pair; an undesirable response alone gives it nothing."""
    rows = [*pairs(1), {"prompt": "question", "completion": " bad", "label": False}]
    prepared = preparation(tokenizer, SFT())(named(rows))
    assert prepared[0].role == [CHOSEN]
    assert tokenizer.decode(prepared[0].responses[0][:-1]) == " yes 0"
    assert prepared.report.rejected == {"no_response": 1}


def test_sources_with_and_without_labels_can_be_mixed_in_one_batch(
    tokenizer: PreTrainedTokenizerFast,
):
    with_scores = {**pairs(1)[0], "score_chosen": 2.0, "score_rejected": 1.0}
    prepared = preparation(tokenizer, DPO())(named([with_scores, *pairs(1)]))
    assert [prepared[i].reward for i in range(2)] == [None, None]
    assert [prepared[i].weight for i in range(2)] == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize(
    ("objective", "row", "reason", "remedy"),
    [
        (DPO(), {"prompt": "q", "completion": " a"}, "lacks_pairs", "chosen"),
        (
            DPO(),
            {"prompt": "q", "responses": [" a", " b"], "rewards": [1, 0]},
            "lacks_pairs",
            "pair_rule: best_worst",
        ),
        (NCA(form="group"), pairs(1)[0], "lacks_rewards", "rewards"),
        (
            APO(form="unpaired"),
            {"prompt": "q", "responses": [" a", " b"], "rewards": [1, 0]},
            "lacks_roles",
            "pair_rule: best_worst",
        ),
    ],
)
def test_a_row_without_the_labels_that_the_objective_needs_is_told_the_remedy(
    tokenizer: PreTrainedTokenizerFast,
    objective: Objective,
    row: dict[str, Any],
    reason: str,
    remedy: str,
):
    with pytest.raises(UserError, match=r"no row can be used") as caught:
        preparation(tokenizer, objective)(named([row]))
    message = str(caught.value)
    assert reason in message
    assert remedy in message
    assert "rows[0]" in message


SCORED: dict[str, Any] = {"prompt": "q", "responses": [" a", " b"]}
ONE: dict[str, Any] = {"prompt": "q", "completion": " a"}
MIXTURE = Unlikelihood(weighting="mixture")


@pytest.mark.parametrize(
    ("objective", "bad", "good", "told"),
    [
        (NCA(), {**ONE, "reward": 1}, {**SCORED, "rewards": [1, 2]}, "this row has one"),
        (InfoNCA(), {**ONE, "reward": 1}, {**SCORED, "rewards": [1, 2]}, "this row has one"),
        (AMPO(), {**ONE, "reward": 1}, {**SCORED, "rewards": [1, 2]}, "this row has one"),
        (
            AMPO(),
            {**SCORED, "rewards": [1, 2], "roles": [0, -1]},
            {**SCORED, "rewards": [1, 2], "roles": [1, -1]},
            "role 1 against those of role -1 and this row lacks one kind",
        ),
        (
            ULMA(preference="continuous"),
            {**SCORED, "rewards": [1, 9]},
            {**SCORED, "rewards": [1, 0.9]},
            "this row has 9: scale them",
        ),
        (MIXTURE, {**ONE, "reward": 5}, {**ONE, "reward": -0.5}, "this row has -5: scale them"),
        (
            CUT(),
            {**ONE, "label": False},
            {**ONE, "label": False, "judgment": "too short"},
            "by likelihood and this row has a rejected one: judge it",
        ),
    ],
)
def test_a_row_that_does_not_fit_the_objective_is_rejected(
    tokenizer: PreTrainedTokenizerFast,
    objective: Objective,
    bad: dict[str, Any],
    good: dict[str, Any],
    told: str,
):
    """What would teach nothing, no number, or the opposite."""
    prepared = preparation(tokenizer, objective)(named([bad, good]))
    assert (len(prepared), prepared.report.rejected) == (1, {"misfit": 1})
    with pytest.raises(UserError) as caught:
        preparation(tokenizer, objective)(named([bad]))
    assert told in str(caught.value)


@pytest.mark.parametrize("objective", [KD(), SeqKD(), SFT()])
def test_rejected_responses_are_not_computed_where_nothing_reads_them(
    tokenizer: PreTrainedTokenizerFast, objective: Objective
):
    assert preparation(tokenizer, objective)(named(pairs(1)))[0].role == [CHOSEN]


def test_plain_text_can_be_read_as_chat(tokenizer: PreTrainedTokenizerFast):
    group = preparation(tokenizer, DPO(), chat=True)(named(pairs(1)))[0]
    text = tokenizer.decode([*group.prefix, *group.responses[0]])
    assert text == (
        "<|im_start|>user\nquestion 0<|im_end|>\n<|im_start|>assistant\nyes 0<|im_end|>"
    )


def test_judgments_are_read_by_objectives_that_want_them_only(tokenizer: PreTrainedTokenizerFast):
    row = {"prompt": "question", "completion": " a", "judgment": "too short"}
    judged = preparation(tokenizer, CUT())(named([row]))[0]
    assert judged.twin == [-1, 0]
    assert judged.responses[0] == judged.responses[1]
    plain = preparation(tokenizer, APO(form="unpaired"))(named([row]))[0]
    assert (plain.twin, plain.role) == (None, [REJECTED])


# ---- Pairs of scored groups ----


def test_scored_groups_become_pairs_and_ties_are_counted(tokenizer: PreTrainedTokenizerFast):
    rows = [
        {"prompt": f"question {i}", "responses": [" a", " b", " c"], "rewards": rewards}
        for i, rewards in enumerate([[1, 0, 0.5], [1, 1, 0], [0, 1, 0], [1, 1, 1]])
    ]
    prepared = preparation(tokenizer, DPO(), pair_rule="best_worst")(named(rows))
    assert len(prepared) == 3
    assert all(prepared[i].role == [CHOSEN, REJECTED] for i in range(3))
    assert prepared.report.notices == {"tie_best": 1, "tie_worst": 1}
    assert prepared.report.rejected == {"no_gap": 1}
    sides = [tokenizer.decode(ids[:-1]) for ids in prepared[0].responses]
    assert sides == [" a", " b"]


def test_the_seed_decides_ties_and_nothing_else(tokenizer: PreTrainedTokenizerFast):
    rows = [
        {"prompt": f"question {i}", "responses": [" a", " b", " c"], "rewards": [1, 1, 0]}
        for i in range(30)
    ]

    def chosen(seed: int, order: int) -> list[Any]:
        prepared = preparation(tokenizer, DPO(), pair_rule="best_worst", seed=seed)
        groups = prepared(named(rows[::order]))
        return sorted((groups[i].prefix, groups[i].responses[0]) for i in range(30))

    assert chosen(1, 1) == chosen(1, -1)
    assert chosen(1, 1) != chosen(2, 1)


def test_the_published_preferences_make_a_pair_of_every_prompt(
    tokenizer: PreTrainedTokenizerFast, shared_dir: Path
):
    """Answers of eight models to 805 prompts: 5 ties at the top, 8 at the bottom."""
    path = shared_dir / "data" / "rewards" / "alpaca_eval_k8.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    rows = read_sources([Source(str(path))])
    prepared = preparation(tokenizer, DPO(), pair_rule="best_worst")(rows)
    assert prepared.report.kept == 805
    assert prepared.report.rejected == {}
    notices = prepared.report.notices
    assert (notices["tie_best"], notices["tie_worst"]) == (5, 8)


# ---- What stops a run ----


def test_a_broken_line_deep_in_a_file_is_one_line_with_its_number(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    path = write(tmp_path / "pairs.jsonl", pairs(1500))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "x",\n')
    prepare = preparation(tokenizer, DPO())
    sources = [Source(str(path))]
    with pytest.raises(UserError) as caught:
        prepare(read_sources(sources), fingerprint_sources(sources))
    assert f"{path}:1501: broken JSON" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_of_a_broken_run_is_taken_for_a_result(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    """The same fingerprint, first with rows that break off and then whole."""
    prepare = preparation(tokenizer, DPO())

    def broken() -> Iterable[tuple[str, Any]]:
        yield from named(pairs(5))
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        prepare(broken(), "content")
    assert len(prepare(named(pairs(7)), "content")) == 7


def test_data_without_a_usable_row_is_refused_with_the_first_reason(
    tokenizer: PreTrainedTokenizerFast,
):
    with pytest.raises(UserError) as caught:
        preparation(tokenizer, DPO())(named(MIXED[2:5]))
    message = str(caught.value)
    assert "0 groups kept; rejected 3" in message
    assert "first: rows[2" not in message
    assert "first: rows[0]: chosen and rejected are the same" in message


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv"])
def test_data_without_any_row_is_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="the data has no row"):
        preparation(tokenizer, DPO())(read_sources([Source(str(tmp_path / name))]))


def test_a_tokenizer_that_cannot_render_the_data_stops_the_run(
    tokenizer: PreTrainedTokenizerFast,
):
    tokenizer.chat_template = None
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(UserError, match="has no chat template"):
        preparation(tokenizer, SFT())(named([row]))


# ---- Cache ----


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The origins of the rows that are tokenised, as it happens."""
    origins: list[str] = []
    original = Renderer.__call__

    def counting(self: Renderer, group: Group, origin: str = "") -> Any:
        origins.append(origin)
        return original(self, group, origin)

    monkeypatch.setattr(Renderer, "__call__", counting)
    return origins


def test_the_same_rows_are_tokenised_once(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, rendered: list[str]
):
    sources = [Source(str(write(tmp_path / "pairs.jsonl", MIXED)))]

    def prepare() -> GroupDataset:
        prepared: GroupDataset = preparation(tokenizer, DPO())(
            read_sources(sources), fingerprint_sources(sources)
        )
        return prepared

    first = prepare()
    calls = len(rendered)
    second = prepare()
    assert calls > 0
    assert len(rendered) == calls
    assert second.report == first.report
    assert [second[i] for i in range(len(second))] == [first[i] for i in range(len(first))]
    assert second.rejects["row"][:] == first.rejects["row"][:]


@pytest.mark.parametrize(
    "changed",
    [
        {"max_length": 50},
        {"seed": 7},
        {"chat": True},
        {"objective": DPO(beta=0.2)},
        {"fingerprint": "other rows"},
        {"max_rows": 2},
        {"fingerprint": None},
    ],
    ids=str,
)
def test_whatever_changes_the_result_is_tokenised_anew(
    tokenizer: PreTrainedTokenizerFast, rendered: list[str], changed: dict[str, Any]
):
    def prepare(
        objective: Objective = DPO(),  # noqa: B008 - frozen
        fingerprint: str | None = "rows",
        max_rows: int | None = None,
        **options: Any,
    ) -> None:
        preparation(tokenizer, objective, **options)(named(pairs(3)), fingerprint, max_rows)

    prepare()
    assert len(rendered) == 3
    prepare()
    assert len(rendered) == 3
    prepare(**changed)
    assert len(rendered) > 3


def test_another_tokenizer_or_template_is_tokenised_anew(
    tokenizer: PreTrainedTokenizerFast, rendered: list[str]
):
    preparation(tokenizer, DPO())(named(pairs(3)), "rows")
    tokenizer.chat_template = f"{tokenizer.chat_template} "
    preparation(tokenizer, DPO())(named(pairs(3)), "rows")
    assert len(rendered) == 6
    tokenizer.add_tokens(["question"])
    preparation(tokenizer, DPO())(named(pairs(3)), "rows")
    assert len(rendered) == 9


@pytest.mark.parametrize(
    "changed",
    [
        {"needs": frozenset({"reward"})},
        {"roles": frozenset({1})},
        {"dimensions": 3},
        {"__module__": "elsewhere"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_rows_are_tokenised_anew_where_an_objective_of_the_same_name_reads_others(
    tokenizer: PreTrainedTokenizerFast, rendered: list[str], changed: dict[str, Any]
):
    """What an objective of one's own reads may change without a change of its fields."""
    pair = {**pairs(1)[0], "score_chosen": 1, "score_rejected": 0}
    for attributes in ({}, {}, changed):
        mine = type("Mine", (DPO,), attributes)
        group = preparation(tokenizer, mine())(named([pair]), "rows")[0]
    assert len(rendered) == 2
    assert group.reward == ([1.0, 0.0] if "needs" in changed else None)
    assert group.role == ([1] if "roles" in changed else [1, -1])


# ---- Sources ----


def origins_and_numbers(sources: list[Source]) -> list[tuple[str, Any]]:
    rows: Iterable[tuple[str, Any]] = read_sources(sources)
    return [(origin, row["n"]) for origin, row in rows]


def numbers(folder: Path, name: str, count: int) -> Source:
    return Source(str(write(folder / name, [{"n": f"{name[0]}{i}"} for i in range(count)])))


def test_sources_follow_one_another(tmp_path: Path):
    sources = [numbers(tmp_path, "a.jsonl", 2), numbers(tmp_path, "b.jsonl", 1)]
    assert origins_and_numbers(sources) == [
        ("a.jsonl:1", "a0"),
        ("a.jsonl:2", "a1"),
        ("b.jsonl:1", "b0"),
    ]


def test_fractions_keep_the_shares_without_repeating_a_row(tmp_path: Path):
    """3 : 1 of 10 and 8 rows: the first source ends first, so 10 and 10/3, rounded to 3."""
    first, second = numbers(tmp_path, "a.jsonl", 10), numbers(tmp_path, "b.jsonl", 8)
    mixture = [Source(first.path, fraction=0.75), Source(second.path, fraction=0.25)]
    got = [n for _, n in origins_and_numbers(mixture)]
    assert got == [*(f"a{i}" for i in range(10)), "b0", "b1", "b2"]
    none = [Source(first.path, fraction=1.0), Source(second.path, fraction=0.0)]
    assert len(origins_and_numbers(none)) == 10


def test_fractions_are_given_for_all_sources_or_none(tmp_path: Path):
    mixture = [Source("a.jsonl", fraction=0.5), Source("b.jsonl")]
    with pytest.raises(UserError, match="`fraction` must be set for all"):
        list(read_sources(mixture))


@pytest.mark.parametrize("fractions", [[0, 0.0], [1.5, -0.5], [1, float("nan")], ["half", 1]])
def test_fractions_are_shares(fractions: list[Any]):
    mixture = [Source("a.jsonl", fraction=fraction) for fraction in fractions]
    with pytest.raises(UserError, match=r"the fractions are \[.*; each must be a number of at"):
        list(read_sources(mixture))


def test_a_folder_stands_for_the_files_of_its_split(tmp_path: Path):
    for name in ("train-1.jsonl", "train-0.jsonl", "test.jsonl", "notes.txt"):
        write(tmp_path / name, [{"n": name}])
    assert [n for _, n in origins_and_numbers([Source(str(tmp_path))])] == [
        "train-0.jsonl",
        "train-1.jsonl",
    ]
    assert [n for _, n in origins_and_numbers([Source(str(tmp_path), split="test")])] == [
        "test.jsonl"
    ]


def test_a_folder_without_rows_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no file of a known kind"):
        list(read_sources([Source(str(tmp_path))]))


def test_a_builder_name_with_data_files_reads_local_files(tmp_path: Path):
    for name in ("b.jsonl", "a.jsonl"):
        numbers(tmp_path, name, 1)
    pattern = str(tmp_path / "*.jsonl")
    assert [n for _, n in origins_and_numbers([Source("json", data_files=pattern)])] == ["a0", "b0"]


def test_files_within_a_folder_are_found_by_folder_pattern_and_split(tmp_path: Path):
    (tmp_path / "a[1]").mkdir()  # no pattern, but a name
    for name in ("b.jsonl", "a.jsonl", "test.jsonl"):
        numbers(tmp_path / "a[1]", name, 1)

    def found(path: str | Path, **named: Any) -> list[Any]:
        return [n for _, n in origins_and_numbers([Source(str(path), **named)])]

    assert found(tmp_path, data_dir="a[1]", data_files="?.jsonl") == ["a0", "b0"]
    assert found(tmp_path / "a[1]", data_files=["test.jsonl", "a.jsonl"]) == ["t0", "a0"]
    by_split = {"train": "b.jsonl", "held_out": "t*.jsonl"}
    assert found(tmp_path / "a[1]", data_files=by_split) == ["b0"]
    assert found(tmp_path / "a[1]", data_files=by_split, split="held_out") == ["t0"]
    assert found("json", data_dir=str(tmp_path / "a[1]"), split="test") == ["t0"]
    with pytest.raises(UserError, match=r"unknown split of the .* `held_oot`; did you mean"):
        found(tmp_path / "a[1]", data_files=by_split, split="held_oot")
    with pytest.raises(UserError, match=r"no such file: .*absent\.jsonl"):
        found(tmp_path, data_files="absent.jsonl")
    with pytest.raises(UserError, match=r"`train\[:9%\]` is a slice, which sets of the Hub have"):
        found(tmp_path / "a[1]", split="train[:9%]")


def test_columns_are_the_only_ones_that_are_read(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", [{"n": 1, "m": 2}, {"m": 3}])
    assert list(read_sources([Source(str(path), columns=["n"])])) == [
        ("a.jsonl:1", {"n": 1}),
        ("a.jsonl:2", {}),
    ]
    with pytest.raises(UserError, match=r"no column `mm`; did you mean `m`\?"):
        list(read_sources([Source(str(path), columns=["n", "mm"])]))


def test_a_missing_file_is_refused_before_anything_is_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"no such file: .*nowhere\.jsonl"):
        fingerprint_sources([Source(str(tmp_path / "nowhere.jsonl"))])


def test_a_name_that_is_neither_here_nor_on_the_hub_is_one_line():
    with pytest.raises(UserError, match="no-such/data-set") as caught:
        list(read_sources([Source("no-such/data-set")]))
    assert "\n" not in str(caught.value)
    assert fingerprint_sources([Source("no-such/data-set")]) is None


def test_a_fingerprint_follows_files_order_and_shares(tmp_path: Path):
    first, second = numbers(tmp_path, "a.jsonl", 2), numbers(tmp_path, "b.jsonl", 2)
    names = [
        fingerprint_sources([first, second]),
        fingerprint_sources([second, first]),
        fingerprint_sources([first]),
        fingerprint_sources([Source(first.path, fraction=1.0)]),
        fingerprint_sources([Source(first.path, columns=["n"])]),
    ]
    write(Path(first.path), [{"n": 1}, {"n": 2}, {"n": 3}])
    names.append(fingerprint_sources([first]))
    assert len(set(names)) == len(names)
    assert fingerprint_sources([first]) == names[-1]


def test_compressed_rows_are_read_as_they_stream(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
):
    """Of a long file no more is read than asked for: the damage at its end is not met."""
    lines = "".join(json.dumps(row) + "\n" for row in pairs(2000)).encode()
    whole = gzip.compress(lines)
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    prepared = preparation(tokenizer, DPO())(read_sources([Source(str(path))]), max_rows=10)
    assert len(prepared) == 10


# ---- Parts ----


@pytest.mark.parametrize(("size", "count"), [(0.25, 5), (3, 3), (0.01, None), (20, None)])
def test_a_split_takes_a_share_or_a_number(
    tokenizer: PreTrainedTokenizerFast, size: float, count: int | None
):
    prepared = preparation(tokenizer, DPO())(named([*pairs(20), {"prompt": "x"}]))
    if count is None:
        with pytest.raises(UserError, match="leaves one part empty"):
            prepared.split(size, seed=0)
        return
    train, test = prepared.split(size, seed=0)
    assert (len(train), len(test)) == (20 - count, count)
    parts = [[part[i].origin for i in range(len(part))] for part in (train, test)]
    assert sorted(parts[0] + parts[1]) == sorted(f"rows[{i}]" for i in range(20))
    for part in (train, test):
        lengths = [part[i].lengths()[0] for i in range(len(part))]
        assert part.lengths("shared").tolist() == lengths
    assert (len(train.rejects), len(test.rejects)) == (1, 0)


def test_a_split_is_a_function_of_its_seed(tokenizer: PreTrainedTokenizerFast):
    prepared = preparation(tokenizer, DPO())(named(pairs(30)))

    def test_part(seed: int) -> list[str]:
        _, test = prepared.split(0.3, seed)
        return [test[i].origin for i in range(len(test))]

    assert test_part(1) == test_part(1)
    assert test_part(1) != test_part(2)
