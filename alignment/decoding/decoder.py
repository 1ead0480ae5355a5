"""A model in this process that answers by a contrast, and is measured on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch import Tensor

from alignment.cli import UserError
from alignment.contrasts import load_contrast
from alignment.contrasts.args import ARGS
from alignment.contrasts.base import Contrast, Second
from alignment.core.rendering import drops_system_turn
from alignment.core.tokenizers import check_same_tokenizer
from alignment.decoding import soft_prompts
from alignment.decoding.options import DecodingOptions
from alignment.decoding.passes import Pass, RewardPass
from alignment.decoding.processor import ContrastProcessor, DivergenceMeter
from alignment.decoding.prompting import Asked, Prompting
from alignment.llm.model import (
    Encoded,
    Encoder,
    Guide,
    Loaded,
    LocalModel,
    cut_short,
    load_pretrained,
)
from alignment.llm.protocol import CallError, Reply, Request, Sampling
from alignment.llm.rows import Row

logger = logging.getLogger(__name__)


class Views(NamedTuple):
    """A request as each pass reads it.

    Attributes:
        first: The pass that answers.
        second: Ids that the second pass reads; empty where there is none.
        start: Ids that the start reads whose KL is measured; empty where none is.
    """

    first: Encoded
    second: list[int]
    start: list[int]


class Answers(NamedTuple):
    """What a batch was answered.

    Attributes:
        replies: One for each request.
        kl: Nats from the start for each; None where they are not measured.
        measuring: Seconds that this took beside the answering.
    """

    replies: list[Reply]
    kl: list[float] | None
    measuring: float

    def replaced(self, rows: Sequence[int], others: Answers) -> Answers:
        """Those with others in the place of some."""
        replies, kl = list(self.replies), self.kl and list(self.kl)
        for position, row in enumerate(rows):
            replies[row] = others.replies[position]
            if kl and others.kl:
                kl[row] = others.kl[position]
        return Answers(replies, kl, self.measuring + others.measuring)


class Side(NamedTuple):
    """A model beside the one that answers.

    Attributes:
        loaded: The model.
        encoder: Tokens for it, by the tokenizer of the model that answers.
    """

    loaded: Loaded
    encoder: Encoder


class Decoder:
    """Answers batches as options of decoding say.

    All that the options name is loaded and checked here, before anything is asked.

    Args:
        options: The options.
        local: The model that answers.
        prompting: What the passes read.

    Raises:
        UserError: A contrast, model or soft prompt cannot be used; what, and the remedy, is named.
    """

    def __init__(self, options: DecodingOptions, local: LocalModel, prompting: Prompting) -> None:
        self._local = local
        self._prompting = prompting
        self._name = options.contrast
        self._contrast = _contrast(options)
        self._own = Side(
            Loaded(local.model, local.tokenizer, local.device, local.name, local.fingerprint),
            local.encoder,
        )
        if prompting.chat and (options.system or options.second_system):
            _check_system(local, prompting)
        self._second = self._load_second(options)
        self._start = self._load_causal(options.kl_from, ("model", "start"))
        self._soft = soft_prompts.Ids([], [])
        self._soft_digest = ""
        if options.soft_prompts is not None:
            vectors = soft_prompts.load(options.soft_prompts, local.fingerprint)
            _, self._soft = soft_prompts.install(local.model, vectors)
            self._soft_digest = sha256(vectors.numpy().tobytes()).hexdigest()[:16]

    def settings(self) -> dict[str, Any]:
        """All that answers depend on beside the model and how they are drawn."""
        found = self._prompting.settings()
        if self._contrast is not None:
            found["contrast"] = self._name
            found["contrast_kwargs"] = asdict(self._contrast)
        if self._second is not None and self._second is not self._own:
            found["second"] = self._second.loaded.fingerprint or self._second.loaded.name
        if self._soft_digest:
            found["soft_prompts"] = self._soft_digest
        return found

    @property
    def start(self) -> str | None:
        """Name of the model whose answers the KL is measured from."""
        return None if self._start is None else self._start.loaded.name

    def encode(self, request: Request, row: Row) -> Views:
        """The tokens of a request, for each pass.

        Raises:
            CallError: A prompt leaves no room for an answer.
            Reject: The row has no prompt for the second pass.
            UserError: Messages were given to a model without chat template.
        """
        first = self._local.encode(request)
        second: list[int] = []
        if isinstance(self._contrast, ARGS):
            second = _ids(self._second, request, Asked(request.verb, request.prompt))
        elif self._second is not None:
            second = _ids(self._second, request, self._prompting.second(row))
        start = _ids(self._start, request, self._prompting.plain(row))
        if self._soft.safe:
            first = first._replace(rows=[[*self._soft.safe, *first.rows[0]]])
            second = [*self._soft.adversarial, *second]
            if self._own.encoder.room(max(len(first.rows[0]), len(second))) < 1:
                told = "with the soft prompt before it the prompt leaves no room for an answer"
                raise CallError("failed", told)
        return Views(first, second, start)

    def answer(self, batch: Sequence[Views]) -> Answers:
        """The replies to requests of one verb and one sampling."""
        made = self._write(batch)
        most = [min(self._local.most(views.first), self._room(views)) for views in batch]
        if cut := cut_short(made.replies, most):
            made = made.replaced(cut, self.answer([batch[row] for row in cut]))
        return made

    def _write(self, batch: Sequence[Views]) -> Answers:
        """One pass, in which the prompt that leaves least room bounds all answers."""
        first = [views.first for views in batch]
        processors: list[Callable[[Tensor, Tensor], Tensor]] = []
        if self._contrast is not None and self._second is not None:
            second = self._pass(self._second, [views.second for views in batch])
            processors.append(ContrastProcessor(self._contrast, second))
        meter = None
        if self._start is not None:
            starts = [views.start for views in batch]
            meter = self._meter(self._start, starts, first[0].request.sampling)
            processors.append(meter)
        replies = self._local.write(first, Guide(processors, min(map(self._room, batch))))
        if meter is None:
            return Answers(replies, None, 0.0)
        return Answers(replies, meter.total.tolist(), meter.seconds)

    def _room(self, views: Views) -> int:
        """Most tokens that an answer may have in the pass that has least room for it."""
        own = (self._own, views.first.rows[0])
        sides = (own, (self._second, views.second), (self._start, views.start))
        return min(side.encoder.room(len(ids)) for side, ids in sides if side is not None)

    def _meter(self, start: Side, rows: Sequence[list[int]], sampling: Sampling) -> DivergenceMeter:
        ids, mask = self._local.padded(rows)
        # A row that a text has stopped goes on with padding.
        ends = self._local.ends | ({self._local.pad} if sampling.stop else set())
        return DivergenceMeter(Pass(start.loaded.model, ids, mask), ends)

    def _pass(self, side: Side, rows: Sequence[list[int]]) -> Pass:
        ids, mask = self._local.padded(rows)
        if isinstance(self._contrast, ARGS):
            return RewardPass(side.loaded.model, self._contrast, ids, mask)
        return Pass(side.loaded.model, ids, mask)

    def _load_second(self, options: DecodingOptions) -> Side | None:
        if self._contrast is None:
            return None
        if options.reward_model is not None:
            return self._load_reward(options.reward_model)
        if options.amateur is None:
            return self._own
        second = self._load_causal(options.amateur, ("expert", "amateur"))
        if second is not None:
            sizes = [_parameters(side.loaded.model) for side in (self._own, second)]
            if sizes[1] > sizes[0]:
                logger.warning(
                    "the amateur `%s` is larger than the expert (%d against %d parameters): the "
                    "contrast takes away what the better model knows; is it the other way round?",
                    options.amateur,
                    *sizes[::-1],
                )
        return second

    def _load_causal(self, name: str | None, roles: tuple[str, str]) -> Side | None:
        """A model beside the own; the same model where its folder is the same."""
        if name is None:
            return None
        loaded = self._own.loaded
        if not _same_folder(name, self._local.source):
            other = load_pretrained(name, "AutoModelForCausalLM", str(self._local.device))
            check_same_tokenizer(self._local.tokenizer, other.tokenizer, name, roles)
            loaded = other
        return Side(loaded, Encoder(self._local.tokenizer, name, loaded.longest))

    def _load_reward(self, name: str) -> Side:
        kind = "AutoModelForSequenceClassification"
        loaded = load_pretrained(name, kind, str(self._local.device))
        if loaded.model.config.num_labels != 1:
            outputs = loaded.model.config.num_labels
            raise UserError(f"{name} has {outputs} outputs; a reward model has one")
        check_same_tokenizer(
            self._local.tokenizer, loaded.tokenizer, name, ("model", "reward model")
        )
        # Which token is the last one of a row is told from this id.
        loaded.model.config.get_text_config().pad_token_id = self._local.pad
        return Side(loaded, Encoder(self._local.tokenizer, name, loaded.longest))


def _contrast(options: DecodingOptions) -> Contrast | None:
    """The contrast, with all that it needs among the options."""
    if options.contrast is None:
        return None
    try:
        contrast = load_contrast(options.contrast, options.contrast_kwargs)
    except ValueError as error:
        raise UserError(str(error)) from None
    flags = sorted(f"`--{name.replace('_', '-')}`" for name in contrast.second)
    if not any(getattr(options, name) is not None for name in contrast.second):
        raise UserError(f"`--contrast {options.contrast}` needs {' or '.join(flags)}")
    rewarded = isinstance(contrast, ARGS)
    for name in sorted({*get_args(Second)} - {"system"}):  # which is the first pass's
        if getattr(options, name) is not None and rewarded != (name == "reward_model"):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"`--contrast {options.contrast}` does not read `{flag}`")
    return contrast


def _check_system(local: LocalModel, prompting: Prompting) -> None:
    if drops_system_turn(local.tokenizer) and prompting.examples is None:
        raise UserError(
            f"the chat template of {local.name} drops system prompts; give a model whose template "
            "has them, or `--format complete`, which puts them before the text"
        )


def _ids(side: Side | None, request: Request, asked: Asked) -> list[int]:
    """The prompt's ids for a side; none where there is no side."""
    if side is None:
        return []
    return side.encoder.encode(replace(request, verb=asked.verb, prompt=asked.prompt)).rows[0]


def _parameters(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _same_folder(one: str, other: str) -> bool:
    if Path(one).is_dir() and Path(other).is_dir():
        return Path(one).resolve() == Path(other).resolve()
    return one == other
