"""Triplets: candidates, scorers and their mean, the dropped middle, a reference that may lose."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from alignment.cli import UserError, parse
from alignment.llm.prompts import as_text, sections
from alignment.llm.protocol import Reply, Request
from alignment.llm.rows import Row
from data_builders.triplets import Options
from tests.data_builders.checks import builds_on, survives_a_kill, trains
from tests.data_builders.running import build, reasons, report, write
from tests.llm.real_server import running, save_parrot
from tests.llm.server import Answer, Body, last_words, listening

HERE = f"program:{__name__}"
WRITER = ("--model", f"{HERE}.writer")
JUDGE = ("--judge-model", f"{HERE}.judge")


def run(folder: Path, rows: Sequence[Row], *words: object) -> list[dict[str, Any]]:
    return build(folder, "triplets", rows, *words)


def writer(request: Request) -> str | Reply:
    """A candidate of a worth from 1 to 5 by its sample; the sixth is cut off, the seventh empty."""
    if request.sample in (5, 6):
        return Reply("cut", "length") if request.sample == 5 else ""
    return f"worth {1 + request.sample % 5}"


def judge(request: Request) -> str:
    return ratings_of(as_text(request.prompt))


def ratings_of(prompt: str) -> str:
    worths = [text.split()[1] for name, text in sections(prompt).items() if name != "task"]
    blocks = [f"Answer {n}\nRating: {w}\nRationale: so" for n, w in enumerate(worths, 1)]
    return "\n".join(blocks)


def systems(*worths: int, reference: int | None = None, **more: Any) -> Row:
    row = {f"s{index}": f"worth {worth}" for index, worth in enumerate(worths)}
    return {"prompt": "p", **row, "reference": reference and f"worth {reference}", **more}


def multi(count: int) -> tuple[str, ...]:
    return ("--candidates", "multi", "--columns", *(f"s{index}" for index in range(count)))


def test_samples_of_the_model_are_the_default_and_the_middle_is_dropped(tmp_path: Path):
    (pair,) = run(tmp_path, [{"prompt": "p"}], *WRITER, *JUDGE)
    assert (pair["chosen"], pair["rejected"]) == ("worth 5", "worth 1")
    assert (pair["score_chosen"], pair["score_rejected"]) == (5.0, 1.0)
    assert not any(f"worth {middle}" in json.dumps(pair) for middle in (2, 3, 4))
    meta = pair["meta"]
    assert meta["on_policy"] == {"chosen": True, "rejected": True}
    assert meta["models"]["chosen"] == f"{HERE}.writer"
    assert meta["sampling"] == {"temperature": 1.0, "max_tokens": 2048, "seed": 0}
    assert [scored["judge"] for scored in meta["candidates"]] == [1, 2, 3, 4, 5]


def test_candidates_that_are_cut_empty_or_alike_are_left_out_and_counted(tmp_path: Path):
    run(tmp_path, [{"prompt": "p"}], *WRITER, *JUDGE, "--samples", "9")
    left_out = report(tmp_path)["candidates_left_out"]
    assert left_out == {"truncated": 1, "empty": 1, "identical": 2}


@pytest.mark.parametrize(
    ("reference", "chosen", "rejected"), [(1, "s1", "reference"), (5, "reference", "s0")]
)
def test_a_reference_is_a_candidate_like_the_others_and_may_be_rejected(
    tmp_path: Path, reference: int, chosen: str, rejected: str
):
    (pair,) = run(tmp_path, [systems(2, 4, reference=reference)], *multi(2), *JUDGE)
    assert pair["meta"]["models"] == {"chosen": chosen, "rejected": rejected}
    assert pair["meta"]["on_policy"] == {"chosen": False, "rejected": False}


def test_systems_may_be_files_and_models_too(tmp_path: Path):
    file = write(tmp_path / "other.jsonl", [{"prompt": "p", "response": "worth 3"}])
    words = ("--candidates", "multi", "--answers", file, *WRITER, *JUDGE)
    (pair,) = run(tmp_path, [{"prompt": "p"}, {"prompt": "q"}], *words)
    assert pair["meta"]["models"] == {"chosen": "other", "rejected": f"{HERE}.writer"}
    assert reasons(tmp_path) == ["unmatched"]


def test_each_scorer_is_kept_and_the_mean_decides(tmp_path: Path):
    """Judge: 1, 5, 3. The program: 10 times the length. Means: 35.5, 37.5, 41.5 of 7, 7, 8."""
    row = {"prompt": "p", "s0": "worth 1", "s1": "worth 5", "s2": "worth 3 "}
    with scoring(lambda asked: [10 * len(text) for text in asked["candidates"]]) as server:
        words = ("--scorer", "judge", f"scorer:{server.url}")
        (pair,) = run(tmp_path, [row], *multi(3), *JUDGE, *words)
    assert (pair["chosen"], pair["rejected"]) == ("worth 3 ", "worth 1")
    assert (pair["score_chosen"], pair["score_rejected"]) == (41.5, 35.5)
    scores = pair["meta"]["scores"]
    assert scores["chosen"] == {"judge": 3.0, f"scorer:{server.url}": 80.0}
    assert scores["rejected"] == {"judge": 1.0, f"scorer:{server.url}": 70.0}


def test_a_tie_is_drawn_by_the_seed_and_counted_or_dropped(tmp_path: Path):
    rows = [systems(5, 1, 3, prompt=f"p{i}", s3="worth 5 too") for i in range(20)]
    made = run(tmp_path / "a", rows, *multi(4), *JUDGE)
    assert {pair["chosen"] for pair in made} == {"worth 5", "worth 5 too"}
    assert made == run(tmp_path / "b", rows, *multi(4), *JUDGE)
    assert report(tmp_path / "a")["ties_broken_by_the_seed"] == {"tie_best": 20}
    with pytest.raises(UserError, match=r"tie \(20 rows\)"):
        run(tmp_path / "c", rows, *multi(4), *JUDGE, "--drop-ties")


def test_gaps_lengths_and_numbers_that_do_not_do_have_reasons(tmp_path: Path):
    rows = [
        systems(1, 5),
        {**systems(3), "s1": "worth 3 too"},
        systems(2, 3),
        {**systems(5), "s1": "worth 1 " + "x" * 100},
        {**systems(5), "s1": "worth  5"},
        {**systems(5), "s1": ""},
        {**systems(5), "s1": 7},
        {**systems(5), "prompt": [{"role": "assistant", "content": "p"}]},
    ]
    words = ("--min-gap", "2", "--max-len", "50")
    assert len(run(tmp_path, rows, *multi(2), *JUDGE, *words)) == 1
    assert reasons(tmp_path) == [
        *("no_gap", "small_gap", "too_few_candidates", "too_few_candidates"),
        *("no_s1", "bad_type", "prompt_ends_with_assistant"),
    ]
    told = report(tmp_path)
    assert told["kept"] + sum(told["dropped"].values()) == len(rows)


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_sacrebleu_scores_against_the_reference_which_is_no_candidate(tmp_path: Path, metric: str):
    metrics = pytest.importorskip("sacrebleu.metrics")
    good, bad = "the cat sat on the mat", "the mat is a cat on it"
    rows: list[Row] = [
        {"prompt": "p", "s0": bad, "s1": good, "reference": "the cat sat on a mat"},
        {"prompt": "q", "s0": bad, "s1": good},
    ]
    (pair,) = run(tmp_path, rows, *multi(2), "--scorer", metric)
    scores = pair["meta"]["candidates"]
    assert [scored["system"] for scored in scores] == ["s0", "s1"]
    theirs = metrics.BLEU(effective_order=True) if metric == "bleu" else metrics.CHRF()
    for text, scored in zip((bad, good), scores, strict=True):
        expected = theirs.sentence_score(text, ["the cat sat on a mat"]).score
        assert scored[metric] == pytest.approx(expected, abs=1e-12)
    assert pair["meta"]["models"] == {"chosen": "s1", "rejected": "s0"}
    assert "version:" in pair["meta"]["scorers"][metric]
    assert reasons(tmp_path) == ["no_reference"]


class Scoring(SimpleNamespace):
    """A scorer behind an address: what it was asked, and with which headers."""

    url: str
    asked: list[Any]
    keys: list[str | None]


@contextmanager
def scoring(score: Callable[[Any], Any], *, status: int = 200) -> Iterator[Scoring]:
    """Serves a function as a scorer; the first answer has `status`."""
    server = Scoring(url="", asked=[], keys=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.asked.append((self.path, asked))
            server.keys.append(self.headers.get("authorization"))
            self.send_response(status if len(server.asked) == 1 else 200)
            content = json.dumps({"scores": score(asked)}).encode()
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            """Stays silent."""

    with listening(Handler) as address:
        server.url = address.removesuffix("/v1") + "/metrics/score"
        yield server


def lengths(asked: Any) -> list[int]:
    return [len(text) for text in asked["candidates"]]


def test_a_scorer_behind_an_address_is_asked_as_documented_and_once(tmp_path: Path):
    row = {"prompt": "Translate: x", "source": "x", "s0": "abc", "s1": "ab", "reference": "ref!"}
    with scoring(lengths, status=503) as server:
        words = (*multi(2), "--scorer", f"scorer:{server.url}")
        (pair,) = run(tmp_path, [row], *words)
        question = {"source": "x", "candidates": ["abc", "ab", "ref!"], "reference": None}
        assert server.asked == [("/metrics/score", question)] * 2
        assert run(tmp_path, [row], *words, "--resume") == [pair]
        assert len(server.asked) == 2
    assert (pair["chosen"], pair["rejected"]) == ("ref!", "ab")


def test_a_scorer_sees_no_key_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODEL_KEY", "for-the-model")
    monkeypatch.setenv("SCORER_KEY", "for-the-scorer")
    with scoring(lengths) as server:
        words = (*multi(2), "--scorer", f"scorer:{server.url}", "--api-key-env", "MODEL_KEY")
        run(tmp_path / "a", [systems(1, 25)], *words)
        run(tmp_path / "b", [systems(1, 25)], *words, "--scorer-api-key-env", "SCORER_KEY")
    assert server.keys == ["Bearer none", "Bearer for-the-scorer"]


@pytest.mark.parametrize("said", [[1], ["a", "b"], "12", None, [1, True], [1, float("nan")]])
def test_anything_but_a_number_for_each_candidate_is_no_answer(tmp_path: Path, said: Any):
    with (
        scoring(lambda asked: said) as server,
        pytest.raises(UserError, match="did not answer with 2 `scores`"),
    ):
        run(tmp_path, [systems(1, 25)], *multi(2), "--scorer", f"scorer:{server.url}")


def test_a_wrong_address_of_a_scorer_is_told(tmp_path: Path):
    with (
        scoring(lengths, status=404) as server,
        pytest.raises(UserError, match=r"answered 404; a scorer's address takes POST"),
    ):
        run(tmp_path, [systems(1, 25)], *multi(2), "--scorer", f"scorer:{server.url}")
    with pytest.raises(UserError, match="`here` is no URL"):
        run(tmp_path, [systems(1, 25)], *multi(2), "--scorer", "scorer:here")


def comet(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for the library; it scores by length."""
    asked: list[Any] = []

    def predict(items: list[Any], batch_size: int, gpus: int, progress_bar: bool) -> Any:
        asked.append(items)
        return SimpleNamespace(scores=[len(item["mt"]) / 100 for item in items])

    module = ModuleType("comet")
    module.download_model = lambda name: f"/cache/{name}"  # type: ignore[attr-defined]
    module.load_from_checkpoint = lambda path: SimpleNamespace(  # type: ignore[attr-defined]
        predict=predict
    )
    monkeypatch.setitem(sys.modules, "comet", module)
    return asked


def test_comet_is_asked_once_and_its_scores_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = comet(monkeypatch)
    row = {"prompt": "p", "source": "x", "s0": "abc", "s1": "ab", "reference": "ref!"}
    for more in ((), ("--resume",)):
        (pair,) = run(tmp_path, [row], *multi(2), "--scorer", "comet:some/metric", *more)
    assert asked == [[{"src": "x", "mt": mt} for mt in ("abc", "ab", "ref!")]]
    assert pair["meta"]["scores"]["chosen"] == {"comet:some/metric": 0.04}


def test_samples_are_scored_with_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = comet(monkeypatch)
    words = (*WRITER, "--samples", "2", "--scorer", "comet:m")
    with pytest.raises(UserError, match="no_gap"):  # `worth 1` and `worth 2` are equally long
        run(tmp_path, [{"prompt": "p", "reference": "ref!"}], *words)
    assert asked == [[{"src": "p", "mt": f"worth {n}", "ref": "ref!"} for n in (1, 2)]]


def test_a_metric_without_reference_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = comet(monkeypatch)
    run(tmp_path, [{"prompt": "p", "s0": "abc", "s1": "ab"}], *multi(2), "--scorer", "comet:m")
    assert asked == [[{"src": "p", "mt": "abc"}, {"src": "p", "mt": "ab"}]]


def test_without_the_library_comet_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "comet", None)
    with pytest.raises(UserError, match="install the extra `comet`"):
        run(tmp_path, [systems(1, 2)], *multi(2), "--scorer", "comet:some/metric")


def test_without_sacrebleu_its_metrics_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match="install the extra `translation`"):
        run(tmp_path, [systems(1, 2)], *multi(2), "--scorer", "bleu")


def test_a_tokenizer_that_sacrebleu_lacks_is_refused(tmp_path: Path):
    pytest.importorskip("sacrebleu")
    words = ("--scorer", "bleu", "--bleu-tokenize", "none such")
    with pytest.raises(UserError, match="no tokenizer `none such`"):
        run(tmp_path, [systems(1, 2)], *multi(2), *words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "takes one model"),
        (["--model", "a", "b", "--judge-model", "j"], "takes one model, got 2"),
        (["--model", "a", "--samples", "1", "--judge-model", "j"], "at least 2"),
        (["--model", "a", "--columns", "b", "--judge-model", "j"], "for `candidates: multi`"),
        (["--candidates", "multi"], "needs systems"),
        (["--model", "a"], "go together"),
        (["--model", "a", "--scorer", "bleu", "--judge-model", "j"], "go together"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], told: str):
    with pytest.raises(UserError, match=told):
        parse(Options, ["--input", "a", "--output", "b.jsonl", *words], "alignment build triplets")


def test_an_unknown_scorer_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match="unknown scorer `blue`; did you mean `bleu`"):
        run(tmp_path, [systems(1, 2)], *multi(2), "--scorer", "blue")


def test_a_missing_column_names_the_nearest(tmp_path: Path):
    with pytest.raises(UserError, match=r"no column `s2`; did you mean `s[01]`"):
        run(tmp_path, [systems(1, 2)], *multi(3), *JUDGE)


@pytest.mark.slow
def test_killed_half_way_it_asks_nothing_twice(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        asked = last_words(body)
        worth = body.get("seed", 0) % 5 + 1
        return Answer(ratings_of(asked) if sections(asked) else f"worth {worth}")

    source = write(tmp_path / "prompts.jsonl", [{"prompt": f"task {i}"} for i in range(12)])
    words = ("build", "triplets", "--input", source, "--judge-model", "j", "--judge-url", "{url}")
    made = survives_a_kill(tmp_path, script, *words, "--samples", "4", models=2)
    assert made
    assert all(row["score_chosen"] > row["score_rejected"] for row in made)


@pytest.mark.slow
def test_a_real_server_writes_candidates_and_cpo_trains_on_the_pairs(tmp_path: Path):
    pytest.importorskip("sacrebleu")
    rows = [{"prompt": f"task {i}", "reference": "It is so."} for i in range(20)]
    source = write(tmp_path / "prompts.jsonl", rows)
    with running(save_parrot(tmp_path / "parrot", "It is so", "No", "It is")) as served:
        words = ("build", "triplets", "--input", source, "--scorer", "chrf", "--max-tokens", "8")
        made = builds_on(served, tmp_path, *words)
    assert len(made) > 10
    assert {row["chosen"] for row in made} <= {"It is so", "It is"}
    trains(tmp_path, tmp_path / "out.jsonl", "cpo")
