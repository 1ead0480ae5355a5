"""BLEU and chrF are sacrebleu's; translations are found by prompt; COMET is a stand-in here.

COMET's newest release asks for transformers below 5, so it cannot be installed beside the core:
what is tested of it is how this project calls the names that its documentation shows.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from alignment.__main__ import dispatch
from alignment.cli import UserError
from alignment.llm.prompts import as_text
from alignment.llm.protocol import Reply, Request
from eval.translation import Segment, lexical, paired_bootstrap, read_segments

sacrebleu = pytest.importorskip("sacrebleu", reason="the extra `translation` is not installed")

WORDS = "the house is small and the garden behind it is green in every summer"
SENTENCES = [WORDS[4 * i : 4 * i + 40] for i in range(6)] * 5
REFERENCES = [f"{sentence} {i}" for i, sentence in enumerate(SENTENCES)]


def worse(text: str, drop: int) -> str:
    words = text.split()
    return " ".join(words[:drop] + words[drop + 2 :])


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def translations(folder: Path, name: str, texts: list[str]) -> Path:
    rows = [{"prompt": f"p{i}", "response": text} for i, text in enumerate(texts)]
    return write(folder / name, rows)


def references(folder: Path, **columns: Any) -> Path:
    rows = [{"prompt": f"p{i}", "reference": text} for i, text in enumerate(REFERENCES)]
    return write(folder / "references.jsonl", [{**row, **columns} for row in rows])


def report(
    folder: Path, capsys: pytest.CaptureFixture[str], *answers: Path, argv: tuple[object, ...] = ()
) -> dict[str, Any]:
    command = ["eval", "translation", "--references", folder / "references.jsonl", "--answers"]
    dispatch([str(word) for word in [*command, *answers, "--json", "-", *argv]])
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_scores_and_signatures_are_those_of_sacrebleu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    references(tmp_path)
    texts = [worse(text, 3) for text in REFERENCES]
    path = translations(tmp_path, "a.jsonl", list(texts))
    (made,) = report(tmp_path, capsys, path)["directions"].values()
    for name, expected in (
        ("BLEU", sacrebleu.corpus_bleu(texts, [REFERENCES])),
        ("chrF2", sacrebleu.corpus_chrf(texts, [REFERENCES])),
    ):
        own = made["metrics"][name]["systems"][str(path)]
        assert own["score"] == pytest.approx(expected.score, abs=1e-9)
        assert own["ci"][0] < expected.score < own["ci"][1]
        assert "p_value" not in own
    signature = made["metrics"]["BLEU"]["signature"]
    assert signature.startswith("nrefs:1|")
    assert all(part in signature for part in ("bs:1000", "seed:12345", "tok:13a", "version:"))


@pytest.mark.slow
def test_the_paired_test_is_that_of_sacrebleus_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base, better = [worse(text, 3) for text in REFERENCES], list(REFERENCES)
    better[:10] = [worse(text, 1) for text in better[:10]]
    references(tmp_path)
    made = report(
        *(tmp_path, capsys, translations(tmp_path, "b.jsonl", better)),
        argv=("--baseline", translations(tmp_path, "a.jsonl", base), "--resamples", 200),
    )
    files = {"ref.txt": REFERENCES, "base.txt": base, "better.txt": better}
    for name, lines in files.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    words = [sys.executable, "-m", "sacrebleu", "ref.txt", "-i", "base.txt", "better.txt"]
    words += ["-m", "bleu", "chrf", "--paired-bs", "--paired-bs-n", "200", "-f", "text"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = re.findall(r"\(p = ([\d.]+)\)", done.stdout)
    (part,) = made["directions"].values()
    p_values = [
        part["metrics"][name]["systems"][str(tmp_path / "b.jsonl")]["p_value"]
        for name in ("BLEU", "chrF2")
    ]
    assert [f"{p_value:.4f}" for p_value in p_values] == expected


def test_translations_are_found_by_prompt_and_not_by_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    references(tmp_path)
    path = translations(tmp_path, "a.jsonl", REFERENCES)
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert report(tmp_path, capsys, path)["average"]["BLEU"][str(path)] == pytest.approx(100.0)


def test_directions_are_scored_apart_and_averaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [
        {"prompt": "a", "reference": "the house is very small", "direction": "de-en"},
        {"prompt": "b", "reference": "房子很小但是花园很大", "direction": "en-zh"},
    ]
    write(tmp_path / "references.jsonl", rows)
    texts = {"a": "the house is very small", "b": "房子很小"}
    path = write(
        tmp_path / "a.jsonl", [{"prompt": p, "response": text} for p, text in texts.items()]
    )
    made = report(tmp_path, capsys, path, argv=("--resamples", 10))
    bleu = {name: part["metrics"]["BLEU"] for name, part in made["directions"].items()}
    assert "tok:13a" in bleu["de-en"]["signature"]
    assert "tok:zh" in bleu["en-zh"]["signature"]
    scores = [part["systems"][str(path)]["score"] for part in bleu.values()]
    assert made["average"]["BLEU"][str(path)] == pytest.approx(sum(scores) / 2)


def test_several_references_count():
    segments = [
        Segment("p", "s", ("a b c d e", "v w x y z"), ""),
        Segment("q", "s", ("k l m n",), ""),
    ]
    made = lexical({"one": ["v w x y z", "k l m n"]}, segments, 1, 5)
    assert made["BLEU"]["systems"]["one"]["score"] == pytest.approx(100.0)
    assert made["BLEU"]["signature"].startswith("nrefs:var")


def test_a_difference_that_is_always_the_same_is_no_chance():
    """1 of 101 resamples, the difference itself, is as far from the mean as it is from 0."""
    made = paired_bootstrap([0.5] * 30, seed=1, resamples=100)
    assert made == {"p_value": 1 / 101, "difference": 0.5, "difference_ci": (0.5, 0.5)}


def test_differences_around_nothing_are_chance():
    """Half 1, half -1: any resampled mean is farther off than 0 is from 0."""
    made = paired_bootstrap([1.0, -1.0] * 50, seed=1, resamples=200)
    assert made["p_value"] > 0.9
    assert made["difference_ci"][0] < 0 < made["difference_ci"][1]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """A module `comet` whose model scores the length of a translation, by source and reference."""
    asked: list[list[dict[str, str]]] = []

    class Model:
        def predict(self, rows: list[dict[str, str]], batch_size: int, gpus: int) -> Any:
            asked.append(rows)
            return SimpleNamespace(scores=[len(row["mt"]) / 100 for row in rows])

    module = ModuleType("comet")
    module.download_model = lambda name: f"/models/{name}"  # type: ignore[attr-defined]
    module.load_from_checkpoint = lambda path: Model()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comet", module)
    return asked


def test_comet_scores_segments_with_source_and_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asked = stand_in(monkeypatch)
    references(tmp_path, source="das Haus")
    base = translations(tmp_path, "base.jsonl", [worse(text, 2) for text in REFERENCES])
    path = translations(tmp_path, "a.jsonl", REFERENCES)
    argv = ("--baseline", base, "--comet", "Unbabel/wmt22-comet-da", "--resamples", 50)
    made = report(tmp_path, capsys, path, argv=argv)
    (part,) = made["directions"].values()
    own = part["metrics"]["Unbabel/wmt22-comet-da"]["systems"]
    mean = sum(map(len, REFERENCES)) / len(REFERENCES) / 100
    assert own[str(path)]["score"] == pytest.approx(mean)
    assert own[str(path)]["difference"] == pytest.approx(mean - own[str(base)]["score"])
    assert own[str(path)]["p_value"] == pytest.approx(1 / 51)
    assert asked[1][0] == {"src": "das Haus", "mt": REFERENCES[0], "ref": REFERENCES[0]}


def test_without_comet_its_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "comet", None)
    references(tmp_path)
    with pytest.raises(UserError, match="install the extra `comet`"):
        report(
            *(tmp_path, capsys, translations(tmp_path, "a.jsonl", REFERENCES)),
            argv=("--comet", "some-model"),
        )


def test_the_report_to_read_names_systems_and_tests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    references(tmp_path)
    base = translations(tmp_path, "base.jsonl", [worse(text, 2) for text in REFERENCES])
    path = translations(tmp_path, "a.jsonl", REFERENCES)
    command = ["eval", "translation", "--references", str(tmp_path / "references.jsonl")]
    out = tmp_path / "report.json"
    command += ["--answers", str(path), "--baseline", str(base), "--json", str(out)]
    dispatch([*command, "--resamples", "20"])
    told = capsys.readouterr().out
    assert "all: 30 segments\n" in told
    assert f"BLEU 100 [100, 100], p = 0.0476  {path}\n" in told
    assert json.loads(out.read_text())["baseline"] == str(base)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p0", "response": "x"}], "29 prompts have no translation.*first is `p1`"),
        ([{"prompt": "other", "response": "x"}], "30 prompts have no translation"),
        ([{"prompt": "p0"}], r"a\.jsonl:1: no column `response`"),
    ],
)
def test_translations_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], message: str
):
    references(tmp_path)
    with pytest.raises(UserError, match=message):
        report(tmp_path, capsys, write(tmp_path / "a.jsonl", rows))


def test_foreign_translations_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references(tmp_path)
    path = translations(tmp_path, "a.jsonl", [*REFERENCES, "one more"])
    with pytest.raises(UserError, match="1 prompts have no reference; the first is `p30`"):
        report(tmp_path, capsys, path)


@pytest.mark.parametrize("reference", [None, "", [], [""], 3])
def test_a_row_without_reference_is_named(tmp_path: Path, reference: Any):
    path = write(tmp_path / "references.jsonl", [{"prompt": "p", "reference": reference}])
    with pytest.raises(UserError, match=r"references\.jsonl:1: `reference` must be"):
        read_segments(path)


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_source_or_direction_of_nothing_is_not_told(tmp_path: Path, nothing: object):
    row = {"prompt": "p", "reference": "r", "source": nothing, "direction": nothing}
    assert read_segments(write(tmp_path / "r.jsonl", [row])) == [Segment("p", "p", ("r",), "")]


@pytest.mark.parametrize("column", ["source", "direction"])
def test_a_source_or_direction_that_is_no_text_is_named(tmp_path: Path, column: str):
    path = write(tmp_path / "references.jsonl", [{"prompt": "p", "reference": "r", column: 3}])
    with pytest.raises(UserError, match=rf"references\.jsonl:1: `{column}` must be text"):
        read_segments(path)


def test_a_file_that_is_given_twice_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    references(tmp_path)
    path = translations(tmp_path, "a.jsonl", REFERENCES)
    with pytest.raises(UserError, match="given twice"):
        report(tmp_path, capsys, path, argv=("--baseline", path))


def fluent(request: Request) -> str:
    return REFERENCES[int(as_text(request.prompt)[1:])]


def halting(request: Request) -> str:
    assert request.sampling.temperature == 0
    return worse(fluent(request), 2)


def test_models_are_asked_for_translations(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same numbers as from files of what they say."""
    references(tmp_path)
    command = ["eval", "translation", "--references", str(tmp_path / "references.jsonl")]
    command += ["--output", str(tmp_path / "out"), "--json", "-", "--resamples", "50"]
    for role, program in (("model", "fluent"), ("baseline-model", "halting")):
        command += [f"--{role}", f"program:{__name__}.{program}"]
    dispatch(command)
    made = json.loads(capsys.readouterr().out)
    files = [tmp_path / "out" / name for name in ("answers.jsonl", "baseline.jsonl")]
    argv = ("--baseline", files[1], "--resamples", 50)
    assert report(tmp_path, capsys, files[0], argv=argv) == made
    (direction,) = made["directions"].values()
    assert direction["metrics"]["chrF2"]["systems"][str(files[0])]["score"] == pytest.approx(100)


def prim(request: Request) -> Reply:
    """Refuses the first segment."""
    if as_text(request.prompt) == "p0":
        return Reply("No.", "refusal")
    return Reply(fluent(request))


def test_a_segment_that_a_model_refuses_is_left_out_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """29 of 30 are enough; the other system's mistakes in the one left out count in nothing."""
    references(tmp_path)
    base = translations(tmp_path, "base.jsonl", ["wrong", *REFERENCES[1:]])
    command = ["eval", "translation", "--references", str(tmp_path / "references.jsonl")]
    command += ["--baseline", str(base), "--output", str(tmp_path / "out"), "--resamples", "20"]
    dispatch([*command, "--model", f"program:{__name__}.prim", "--json", str(tmp_path / "r.json")])
    assert "all: 29 segments, 1 left out without a translation\n" in capsys.readouterr().out
    made = json.loads((tmp_path / "r.json").read_text())
    (part,) = made["directions"].values()
    assert (part["n"], part["unanswered"]) == (29, 1)
    for own in part["metrics"]["BLEU"]["systems"].values():
        assert own["score"] == pytest.approx(100.0)


def test_too_few_translated_segments_of_a_direction_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Two of three in one direction, none of one in the other, which no flag can score."""
    directions = ("de-en", "de-en", "de-en", "fr-en")
    rows = [
        {"prompt": f"p{i}", "reference": "the house is small", "direction": direction}
        for i, direction in enumerate(directions)
    ]
    write(tmp_path / "references.jsonl", rows)
    path = translations(tmp_path, "a.jsonl", ["the house is small"] * 3)
    refused = [{"reason": "refused", "row": rows[3]}, {"reason": "refused", "row": rows[2]}]
    rejects = write(tmp_path / "a.jsonl.rejects.jsonl", refused)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(
        UserError, match=r"only 2 of 3 segments of `de-en`.*`--allow-missing`"
    ) as caught:
        report(tmp_path, capsys, path)
    assert f"see {rejects}" in str(caught.value)
    with pytest.raises(UserError, match="only 0 of 1 segments of `fr-en`"):
        report(tmp_path, capsys, path, argv=("--allow-missing",))
    write(tmp_path / "references.jsonl", rows[:3])
    (part,) = report(tmp_path, capsys, path, argv=("--allow-missing",))["directions"].values()
    assert (part["n"], part["unanswered"]) == (2, 1)


def test_a_prompt_that_is_translated_too_often_is_not_excused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    references(tmp_path)
    rows = [{"prompt": f"p{i}", "response": text} for i, text in enumerate(REFERENCES)]
    path = write(tmp_path / "a.jsonl", [*rows, rows[0]])
    write(tmp_path / "a.jsonl.rejects.jsonl", [{"reason": "refused", "row": {"prompt": "p0"}}])
    with pytest.raises(UserError, match="1 prompts have no translation, or not as many"):
        report(tmp_path, capsys, path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give `--answers` .* or `--model` to be asked"),
        (["--model", "m"], "`--output` is needed"),
        (["--model", "m", "--answers", "a"], "give `--model` to be asked or `--answers`, not both"),
    ],
)
def test_translations_come_from_files_or_from_models(argv: list[str], message: str):
    with pytest.raises(UserError, match=message):
        dispatch(["eval", "translation", "--references", "r.jsonl", *argv])
