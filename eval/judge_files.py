"""Judges from files: one YAML says what is asked, what a verdict is and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from alignment.cli import UserError, nearest, parse
from alignment.llm.connect import connect, load_dotted
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.options import CallOptions
from alignment.llm.prompts import Template
from alignment.llm.protocol import Reply, Sampling
from eval.judge import PAIRWISE_FIELDS, Judge, RewardJudge
from eval.verdicts import Preference, Rating, Ratings, TokenPreference, read_letter

JUDGES = Path(__file__).parent / "judges"
PREFERENCES = ("letter", "tokens", "reward")
"""Verdict types that say which of two answers is better."""

_KINDS: dict[str, tuple[type, ...]] = {
    "letter": (Preference,),
    "tokens": (Preference,),
    "rating": (float, int),
    "ratings": (tuple, list),
}
"""What a verdict of each type is read as."""


@dataclass(kw_only=True)
class JudgeFile:
    """A judge's YAML. Paths in it are relative to the file."""

    verdict: Literal["letter", "tokens", "rating", "ratings", "reward"] = field(
        metadata={"help": "letter or tokens: of two answers; rating: of one; ratings: of several"}
    )
    prompt: Path | None = field(default=None, metadata={"help": "prompt file"})
    system: str | None = field(default=None, metadata={"help": "what the system's message says"})
    parser: str | None = field(
        default=None,
        metadata={"help": "module.function(reply) that reads the verdict in the type's place"},
    )
    tokens: tuple[str, ...] = field(
        default=("A", "B"), metadata={"help": "tokens that name the first and the second answer"}
    )
    require_logprobs: bool = field(
        default=False, metadata={"help": "end where a server ignores the wish for log-probs"}
    )
    scale: tuple[float, ...] = field(
        default=(1.0, 10.0), metadata={"help": "lowest and highest rating"}
    )
    temperature: float = field(default=0.0, metadata={"help": "of the judge"})
    max_tokens: int | None = field(default=1024, metadata={"help": "longest reply of the judge"})
    top_logprobs: int = field(default=5, metadata={"help": "tokens asked for, for `tokens`"})
    again: int = field(
        default=0, metadata={"help": "how often a reply that cannot be read is asked for anew"}
    )
    model: str | None = field(default=None, metadata={"help": "the model, as `--judge-model`"})
    url: str | None = field(default=None, metadata={"help": "its address, as `--judge-url`"})

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.verdict == "reward"):
            told = "has no `prompt`" if self.prompt else "needs a `prompt`"
            raise ValueError(f"a judge with `verdict: {self.verdict}` {told}")
        for name in ("tokens", "scale"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"`{name}` takes two values, got {len(getattr(self, name))}")

    def reader(self) -> Callable[[Reply], Any]:
        """The function that reads a verdict.

        Raises:
            UserError: There is no such parser.
        """
        if self.parser is not None:
            read: Callable[[Reply], Any] = load_dotted(self.parser, "parser")
            return read
        low, high = self.scale
        first, second = self.tokens
        readers: dict[str, Callable[[Reply], Any]] = {
            "letter": read_letter,
            "tokens": TokenPreference((first, second), self.require_logprobs),
            "rating": Rating((low, high)),
            "ratings": Ratings((low, high)),
        }
        return readers[self.verdict]


def read_judge(judge: str | Path, verdicts: Sequence[str] | None = None) -> JudgeFile:
    """Reads a judge's YAML.

    Args:
        judge: A file, or the name of one that comes along, such as `pairwise`.
        verdicts: Verdict types that the caller has a use for; all where it is None.

    Raises:
        UserError: There is no such judge, a key in it is unknown or wrong, or its verdicts are of
            another type.
    """
    path = Path(judge)
    if path.suffix not in (".yaml", ".yml"):
        path = JUDGES / f"{judge}.yaml"
        if not path.is_file():
            known = sorted(file.stem for file in JUDGES.glob("*.yaml"))
            near = nearest(str(judge), known)
            hint = f"did you mean `{near}`?" if near else f"known: {', '.join(known)}"
            raise UserError(f"no judge `{judge}`; give a YAML file, or a known name: {hint}")
    try:
        made = parse(JudgeFile, ["--config", str(path)], str(path))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if verdicts is not None and made.verdict not in verdicts:
        raise UserError(
            f"{path}: this command has no use for `verdict: {made.verdict}`; give a judge whose "
            f"`verdict` is {' or '.join(verdicts)}"
        )
    if made.prompt is not None:
        made.prompt = path.parent / made.prompt
    return made


@dataclass(kw_only=True)
class JudgeOptions(CallOptions):
    """What every command with a judge takes."""

    judge: str = field(
        default="pairwise",
        metadata={"help": "YAML of the judge, or the name of one in eval/judges"},
    )
    judge_model: str | None = field(
        default=None, metadata={"help": "the judge's model: a name on its server, or a folder"}
    )
    judge_url: str | None = field(
        default=None, metadata={"help": "address of the judge's server; unset, it runs here"}
    )
    judge_prompt: Path | None = field(
        default=None, metadata={"help": "prompt file in the place of the judge's own"}
    )


def open_judge(
    options: JudgeOptions,
    ledger: Ledger,
    fields: Collection[str] = PAIRWISE_FIELDS,
    verdicts: Sequence[str] = PREFERENCES,
    judge: str | Path | None = None,
) -> Judge[Any] | RewardJudge:
    """The judge that a command's options ask for.

    Args:
        options: Which judge, and how to ask.
        ledger: Where finished calls are kept.
        fields: What its prompt file may show.
        verdicts: Verdict types that the command has a use for.
        judge: Another judge's YAML than that of the options.

    Raises:
        UserError: The YAML, the prompt file or the model cannot be used.
    """
    made = read_judge(judge or options.judge, verdicts)
    model, url = judge_model(options, made)
    if model is None:
        raise UserError("no judge: give `--judge-model`, or `model` in the judge's YAML")
    if made.verdict == "reward" and options.judge_prompt is not None:
        raise UserError("a reward model reads no prompt file: leave out `--judge-prompt`")
    return judge_over(connect(model, url, ledger, options), made, options.judge_prompt, fields)


def judge_model(options: JudgeOptions, made: JudgeFile) -> tuple[str | None, str | None]:
    """The model that options or a judge's YAML name, and the address of its server.

    Returns:
        The name as `connect` takes it, None where neither names one; the address.
    """
    model, url = (
        (options.judge_model, options.judge_url)
        if options.judge_model is not None
        else (made.model, options.judge_url or made.url)
    )
    if model and made.verdict == "reward" and not model.startswith(("reward:", "program:")):
        model = f"reward:{model}"
    return model, url


def judge_over(
    llm: LLM,
    made: JudgeFile,
    prompt: Path | None = None,
    fields: Collection[str] = PAIRWISE_FIELDS,
) -> Judge[Any] | RewardJudge:
    """The judge that a YAML makes of a model.

    Args:
        llm: The model.
        made: The YAML.
        prompt: A prompt file in the place of the YAML's own.
        fields: What the prompt file may show.

    Raises:
        UserError: The prompt file cannot be used.
    """
    if made.verdict == "reward":
        return RewardJudge(llm)
    template = Template(prompt or str(made.prompt), fields)
    tokens = made.verdict == "tokens"
    sampling = Sampling(
        made.temperature,
        max_tokens=made.max_tokens,
        top_logprobs=made.top_logprobs if tokens else None,
    )
    return Judge(
        *(llm, template, made.reader(), sampling, made.system, made.again),
        keep_truncated=tokens,
        kinds=_KINDS[made.verdict],
    )
