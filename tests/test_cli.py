"""Options from YAML and the command line, and what a user sees when they are wrong."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from alignment.cli import UserError, load_recipe, load_yaml, nearest, parse, quieten, run


@dataclass
class Options:
    """Builds something."""

    model: str = field(metadata={"help": "the model to ask"})
    learning_rate: float = 1e-5
    samples: int | None = None
    resume: bool = False
    order: Literal["both", "published"] = "both"
    names: list[str] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Path | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"`samples` must be at least 1, got {self.samples}")


def options(*argv: str) -> Options:
    return parse(Options, argv, "alignment test")


def test_command_line_values_take_the_types_of_the_fields() -> None:
    got = options(
        *(
            "--model",
            "m",
            "--learning-rate=5e-7",
            "--samples",
            "3",
            "--resume",
            "--order",
            "published",
        ),
        *("--names", "a", "yes", "--kwargs", '{"beta": 0.1}', "--output", "out/x"),
    )
    assert got == Options(
        "m", 5e-7, 3, True, "published", ["a", "yes"], {"beta": 0.1}, Path("out/x")
    )


def test_a_list_may_be_one_word_or_json() -> None:
    assert options("--model", "m", "--names", "a").names == ["a"]
    assert options("--model", "m", "--names", '["a", "b"]').names == ["a", "b"]


def test_a_value_may_be_negative_and_a_flag_may_be_switched_off() -> None:
    got = options("--model", "m", "--learning_rate", "-1", "--resume", "false", "--samples", "null")
    assert (got.learning_rate, got.resume, got.samples) == (-1.0, False, None)


def test_null_takes_a_path_of_a_recipe_back(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\noutput: out\n")
    assert options("--config", str(path)).output == Path("out")
    assert options("--config", str(path), "--output", "null").output is None


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: from_file\nlearning_rate: 5e-7\nsamples: 4\nnames: [a]\n")
    got = options("--config", str(path), "--samples", "2")
    assert (got.model, got.learning_rate, got.samples, got.names) == ("from_file", 5e-7, 2, ["a"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--modle", "m"), "unknown option of `alignment test` `--modle`; did you mean `--model`?"),
        ((), "`alignment test` needs `--model` (the model to ask); see `alignment test --help`"),
        (("--model", "m", "--samples", "3.5"), "`--samples` expects a whole number or null"),
        (("--model", "m", "--samples", "0"), "`samples` must be at least 1, got 0"),
        (
            ("--model", "m", "--learning-rate", "hot"),
            "`--learning-rate` expects a number, got `hot`",
        ),
        (("--model", "m", "--order", "one"), "`--order` expects one of both, published, got `one`"),
        (("--model", "m", "--kwargs", "3"), "`--kwargs` expects a mapping"),
        (("--model", "m", "--resume", "maybe"), "`--resume` expects true or false"),
        (("--model", "a", "b"), "`--model` takes one value, got 2"),
        (("m",), "`alignment test` takes no bare word `m`"),
    ],
)
def test_a_wrong_option_is_named_with_its_remedy(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        options(*argv)
    assert str(caught.value).startswith(message)


def test_a_wrong_key_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\nlearnig_rate: 1\n")
    with pytest.raises(UserError, match=r"unknown key in .*run\.yaml `learnig_rate`; did you mean"):
        options("--config", str(path))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "just words\n", "1: 2\n"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.yaml"):
        load_yaml(path)


def test_a_recipe_has_the_keys_of_those_it_extends_and_its_own_go_before(tmp_path: Path) -> None:
    """Paths are relative to the file that names them; a whole value is replaced, also a mapping."""
    (tmp_path / "below").mkdir()
    (tmp_path / "first.yaml").write_text("model: m\nsamples: 1\nkwargs: {a: 1, b: 2}\n")
    (tmp_path / "below/second.yaml").write_text("extends: ../first.yaml\nsamples: 2\n")
    third = tmp_path / "third.yaml"
    third.write_text("extends: below/second.yaml\nkwargs: {a: 3}\n")
    assert load_recipe(third) == {"model": "m", "samples": 2, "kwargs": {"a": 3}}
    assert options("--config", str(third), "--samples", "4") == Options(
        "m", samples=4, kwargs={"a": 3}
    )


def test_a_key_that_is_null_goes_before_the_one_that_is_extended(tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("model: m\nsamples: 1\n")
    (tmp_path / "second.yaml").write_text("extends: first.yaml\nsamples: null\n")
    assert options("--config", str(tmp_path / "second.yaml")).samples is None


@pytest.mark.parametrize(
    ("extended", "message"),
    [
        ("other.yaml", "run.yaml extends itself, by way of"),
        ("run.yaml", "run.yaml extends itself, by way of"),
        ("missing.yaml", "missing.yaml: No such file"),
        ("[other.yaml]", "run.yaml: `extends` takes the path of a recipe, got"),
    ],
)
def test_a_recipe_that_cannot_be_extended_is_named(
    tmp_path: Path, extended: str, message: str
) -> None:
    (tmp_path / "run.yaml").write_text(f"extends: {extended}\n")
    (tmp_path / "other.yaml").write_text("extends: run.yaml\n")
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "run.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_lists_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        options("--help")
    shown = capsys.readouterr().out
    assert "--model <str>  required; the model to ask" in shown
    assert "--learning-rate <float>  default 1e-05" in shown


def test_nearest_is_none_where_nothing_is_like_it() -> None:
    assert nearest("lerning_rate", ["learning_rate", "seed"]) == "learning_rate"
    assert nearest("zzz", ["learning_rate", "seed"]) is None


def test_a_user_error_becomes_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_: list[str]) -> None:
        raise UserError("two\nlines")

    with pytest.raises(SystemExit) as ended:
        run(main, [])
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: two lines\n")


def test_a_missing_file_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda _: Path("no/such/file").read_text(), [])
    assert (ended.value.code, capsys.readouterr().err) == (
        2,
        "error: No such file or directory: no/such/file\n",
    )


def test_words_before_the_first_option_go_to_the_field_that_takes_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for argv in (["m", "--samples", "2"], ["--samples", "2", "--model", "m"]):
        got = parse(Options, argv, "alignment test", bare="model")
        assert (got.model, got.samples) == ("m", 2)
    with pytest.raises(UserError, match="`--model` takes one value, got 2"):
        parse(Options, ["m", "n"], "alignment test", bare="model")
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], "alignment test", bare="model")
    assert capsys.readouterr().out.startswith("usage: alignment test MODEL [--config")


def test_what_libraries_say_of_a_missing_gpu_is_no_alarm() -> None:
    quieten()
    logger = logging.getLogger("DeepSpeed")

    def passes(message: str) -> bool:
        record = logger.makeRecord("DeepSpeed", logging.WARNING, "", 0, message, (), None)
        return bool(logger.filter(record))

    assert not passes("Setting accelerator to CPU. If you have GPU or other accelerator, ...")
    assert passes("another word")
