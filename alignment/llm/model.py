"""A transformers model that answers batches of requests.

Importing this module is cheap: torch is loaded when a model is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from alignment.cli import UserError
from alignment.llm.fingerprint import fingerprint
from alignment.llm.prompts import as_text, shorten
from alignment.llm.protocol import CallError, Prompt, Reply, Request, Sampling

if TYPE_CHECKING:
    from torch import Tensor

PROVIDER = "transformers"
DEFAULT_MAX_TOKENS = 512


class Encoded(NamedTuple):
    """A request as tokens.

    Attributes:
        request: What was asked.
        rows: Token ids: the prompt for `chat` and `complete`, one row per continuation for `score`.
        scored: For `score`: how many of each row's last tokens belong to the continuation.
    """

    request: Request
    rows: list[list[int]]
    scored: list[int]


class Guide(NamedTuple):
    """What stands between a model's logits and the draw of an answer.

    Attributes:
        processors: Logits processors of transformers, which come before temperature and filters.
        room: Most tokens of an answer, where other passes than the model's own bound it.
    """

    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = ()
    room: int | None = None


NO_GUIDE = Guide()


class Encoder:
    """Turns requests into tokens as a model takes them.

    Args:
        tokenizer: A fast tokenizer of transformers.
        name: The model's, for messages.
        longest: Most tokens that the model takes, None where that is not known.
    """

    def __init__(self, tokenizer: Any, name: str, longest: int | None) -> None:
        self.tokenizer = tokenizer
        self.longest = longest
        self._name = name

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be put to this model."""
        return bool(self.tokenizer.chat_template)

    def room(self, width: int) -> int:
        """Most tokens that can follow a number of tokens."""
        return (self.longest or 10**9) - width

    def encode(self, request: Request) -> Encoded:
        """The tokens of a request.

        Raises:
            UserError: Messages were given to a model without chat template.
            CallError: The prompt leaves no room for an answer, a text to score is empty, one holds
                half of a surrogate pair, or the chat template refuses the messages.
        """
        text, special = self._text(request.prompt)
        for part in (text, *request.continuations):
            _refuse_halves(part)
        rows: list[list[int]] = []
        scored: list[int] = []
        for continuation in request.continuations if request.verb == "score" else [""]:
            tokens = self.tokenizer(
                text + continuation, add_special_tokens=special, return_offsets_mapping=True
            )
            rows.append(tokens.input_ids)
            if request.verb == "score":
                scored.append(sum(end > len(text) for _, end in tokens.offset_mapping))
        for index, row in enumerate(rows):
            if self.longest is not None and len(row) >= self.longest + bool(scored):
                told = f"the prompt has {len(row)} tokens, the model takes {self.longest}"
                raise CallError("failed", told)
            if not row or (scored and not 0 < scored[index] < len(row)):
                raise CallError("failed", "neither the prompt nor a text to score may be empty")
        return Encoded(request, rows, scored)

    def _text(self, prompt: Prompt) -> tuple[str, bool]:
        """The text of a prompt, and whether the tokenizer still has to add its special tokens."""
        if isinstance(prompt, str):
            return prompt, True
        if not self.has_chat_template:
            raise UserError(
                f"{self._name} has no chat template; give it plain text prompts, "
                "which it completes as they stand"
            )
        with refusals_told():
            text = self.tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, tokenize=False
            )
        return text, False


@contextmanager
def refusals_told() -> Iterator[None]:
    """Tells by a `CallError` that a chat template does not take a conversation.

    Templates refuse a system message, or roles that do not alternate, by errors of their own.
    """
    try:
        yield
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise CallError(
            "failed", f"the chat template refuses the conversation: {shorten(error)}"
        ) from None


def _refuse_halves(text: str) -> None:
    """Refuses what JSON can hold and no tokenizer takes: half of a surrogate pair.

    Raises:
        CallError: There is one in the text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode("ascii")
        raise CallError(
            "failed", f"the text holds half of a surrogate pair, `{half}`, which is no character"
        ) from None


def token_counter(folder: str) -> Callable[[Request], int]:
    """What counts the tokens of a request's prompt, without the model.

    Raises:
        UserError: The folder holds no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load the tokenizer in {folder} ({shorten(error)})") from None
    encoder = Encoder(tokenizer, folder, None)

    def count(request: Request) -> int:
        if not encoder.has_chat_template:
            request = replace(request, prompt=as_text(request.prompt))
        return sum(map(len, encoder.encode(request).rows))

    return count


class Loaded(NamedTuple):
    """A model with its tokenizer, where it runs.

    Attributes:
        model: In eval mode.
        tokenizer: The tokenizer.
        device: Where it runs.
        name: The folder's own name, or the hub id.
        fingerprint: Checksum of the folder, or the commit on the hub.
    """

    model: Any
    tokenizer: Any
    device: Any
    name: str
    fingerprint: str

    @property
    def longest(self) -> int | None:
        """Most tokens that the model takes, None where that is not known."""
        return getattr(self.model.config, "max_position_embeddings", None)


def load_pretrained(
    model: str,
    kind: str,
    device: str | None = None,
    dtype: str = "auto",
    adapter_kwargs: Mapping[str, Any] | None = None,
) -> Loaded:
    """Loads a model and its tokenizer.

    Args:
        model: A folder as `save_pretrained` writes it, or a hub id.
        kind: The class of transformers that loads it.
        device: Where it runs; by default an accelerator where there is one.
        dtype: Type of the weights; by default as they were saved.
        adapter_kwargs: What an adapter of ours is used with, where that is not what its file says.

    Raises:
        UserError: There is no such model.
    """
    import torch
    import transformers

    here = Path(model).is_dir()
    if not here and (model.startswith((".", "/")) or model.count("/") > 1):
        raise UserError(f"no model at {model}: there is no such folder")
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model, padding_side="left")
        loaded = _weights(model, getattr(transformers, kind), dtype, adapter_kwargs)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot load the model {model} ({shorten(error)}); give a folder, a hub id or the "
            "address of the server that has it"
        ) from None
    where = device or torch.accelerator.current_accelerator() or "cpu"
    loaded.to(where).eval()
    commit = getattr(loaded.config, "_commit_hash", None) or ""
    name = Path(model).resolve().name if here else model
    known = fingerprint(model) if here else commit
    if adapter_kwargs:
        known += json.dumps(adapter_kwargs, sort_keys=True)
    return Loaded(loaded, tokenizer, where, name, known)


def cached_commit(model: str) -> str | None:
    """The commit of a hub id that lies in the cache here; None for anything else."""
    if Path(model).is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None  # a path
    return Path(file).parent.name if isinstance(file, str) else None


def _weights(model: str, cls: Any, dtype: str, settings: Mapping[str, Any] | None) -> Any:
    """A model; transformers puts peft's adapters on the newest revision of their base alone."""
    from transformers.utils import find_adapter_config_file

    if find_adapter_config_file(model) is None:
        if settings:
            raise UserError(f"{model} is no adapter, so that it takes no adapter_kwargs")
        return cls.from_pretrained(model, dtype=dtype)
    from alignment.adapters.base import AdapterConfig, load_adapter, read_settings

    config = read_settings(model)
    if not (isinstance(config, AdapterConfig) or settings or config.revision):
        return cls.from_pretrained(model, dtype=dtype)
    base = config.base_model_name_or_path
    if not base:
        raise UserError(f"the adapter {model} does not name its base model")
    loaded = cls.from_pretrained(base, dtype=dtype, revision=config.revision or "main")
    return load_adapter(loaded, model, settings)


class LocalModel:
    """A causal language model with its tokenizer, ready to answer batches.

    Answers are drawn with one generator per request, so that an answer depends neither on its
    neighbours in the batch (but for rounding) nor on what was drawn before.

    Args:
        model: A folder as `save_pretrained` writes it, of a model or of an adapter, or a hub id.
        device: Where it runs; by default an accelerator where there is one.
        dtype: Type of the weights; by default as they were saved.
        adapter_kwargs: What an adapter of ours is used with, where that is not what its file says.

    Attributes:
        name: The folder's own name, or the hub id.
        fingerprint: Checksum of the folder, or the commit on the hub.
        source: The folder or hub id as it was given; empty where `adapter_kwargs` make another
            model of what lies there.
        ends: Tokens that end an answer.
        pad: What rows of a batch are padded with.

    Raises:
        UserError: There is no such model.
    """

    def __init__(
        self,
        model: str,
        device: str | None = None,
        dtype: str = "auto",
        adapter_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        loaded = load_pretrained(model, "AutoModelForCausalLM", device, dtype, adapter_kwargs)
        self.model, self.tokenizer, self.device, self.name, self.fingerprint = loaded
        self.source = "" if adapter_kwargs else model
        ends = self.model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}
        self.ends.discard(None)
        self.pad = self.tokenizer.pad_token_id
        if self.pad is None:
            self.pad = self.tokenizer.eos_token_id or 0
        self.encoder = Encoder(self.tokenizer, model, loaded.longest)

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be put to this model."""
        return self.encoder.has_chat_template

    def encode(self, request: Request) -> Encoded:
        """The tokens of a request, as `Encoder.encode` has it."""
        return self.encoder.encode(request)

    def answer(self, batch: Sequence[Encoded]) -> list[Reply]:
        """The replies to requests of one verb and one sampling."""
        import torch

        if batch[0].request.verb == "score":
            with torch.inference_mode():
                return [self._score(encoded) for encoded in batch]
        replies = self.write(batch)
        if cut := cut_short(replies, list(map(self.most, batch))):
            again = self.answer([batch[row] for row in cut])
            for row, reply in zip(cut, again, strict=True):
                replies[row] = reply
        return replies

    def write(self, batch: Sequence[Encoded], guide: Guide = NO_GUIDE) -> list[Reply]:
        """The replies of one pass over requests of one sampling.

        The prompt that leaves least room for an answer bounds all of them: see `cut_short`.

        Args:
            batch: The requests.
            guide: What changes the logits, made for this very batch.
        """
        import torch

        with torch.inference_mode():
            return self._generate(batch, guide)

    def most(self, encoded: Encoded) -> int:
        """Most tokens of an answer, where the request stands alone."""
        wanted = encoded.request.sampling.max_tokens or DEFAULT_MAX_TOKENS
        return min(wanted, self.encoder.room(len(encoded.rows[0])))

    def padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, (B, T) both, padded on the left."""
        import torch

        width = max(map(len, rows))
        ids = [[self.pad] * (width - len(row)) + row for row in rows]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _generate(self, batch: Sequence[Encoded], guide: Guide) -> list[Reply]:
        from transformers import GenerationConfig

        sampling = batch[0].request.sampling
        ids, mask = self.padded([encoded.rows[0] for encoded in batch])
        most = min(map(self.most, batch))
        if guide.room is not None:
            most = min(most, guide.room)
        top = sampling.top_logprobs
        config = GenerationConfig(
            do_sample=False,  # the noise below does the drawing
            max_new_tokens=most,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self.pad,
            stop_strings=list(sampling.stop) or None,
            output_logits=top is not None,
            return_dict_in_generate=True,
        )
        made = self.model.generate(
            ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=_processors(
                guide.processors, sampling, [encoded.request for encoded in batch]
            ),
            tokenizer=self.tokenizer if sampling.stop else None,
        )
        replies = []
        for row, encoded in enumerate(batch):
            tokens = made.sequences[row, ids.shape[1] :].tolist()
            length = next((i for i, token in enumerate(tokens) if token in self.ends), len(tokens))
            text = self.tokenizer.decode(tokens[:length], skip_special_tokens=True)
            cut = min((text.find(stop) for stop in sampling.stop if stop in text), default=-1)
            while cut >= 0 and tokens[length - 1] == self.pad:
                length -= 1  # the others of the batch went on
            closed = length < len(tokens) and cut < 0
            tops = None if top is None else self._top(made.logits[: length + closed], row, top)
            replies.append(
                Reply(
                    text[:cut] if cut >= 0 else text,
                    "stop" if closed or cut >= 0 else "length",
                    len(encoded.rows[0]),
                    length,
                    top_logprobs=tops,
                )
            )
        return replies

    def _top(self, logits: Sequence[Tensor], row: int, count: int) -> tuple[dict[str, float], ...]:
        """For each position the likeliest tokens of one row with their log-probs."""
        tops = []
        for step in logits:
            values, tokens = step[row].float().log_softmax(-1).topk(count)
            pairs = zip(tokens.tolist(), values.tolist(), strict=True)
            tops.append({self.tokenizer.decode([token]): value for token, value in pairs})
        return tuple(tops)

    def _score(self, encoded: Encoded) -> Reply:
        ids, mask = self.padded(encoded.rows)
        kept = max(encoded.scored) + 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=kept
        ).logits[:, :-1]  # (continuations, kept - 1, V)
        wanted = ids[:, -(kept - 1) :, None]
        logps = logits.float().log_softmax(-1).gather(-1, wanted)[..., 0].tolist()
        scores = zip(logps, encoded.scored, strict=True)
        return Reply(
            prompt_tokens=int(mask.sum()),
            completion_tokens=0,
            logps=tuple(tuple(row[-count:]) for row, count in scores),
        )


def cut_short(replies: Sequence[Reply], most: Sequence[int]) -> list[int]:
    """The rows of a batch whose answers ended early because a neighbour had no more room.

    That neighbour is not among them, so that asking them again by themselves comes to an end.

    Args:
        replies: Of the batch.
        most: Most tokens of each answer, where its request stands alone.
    """
    return [
        row
        for row, (reply, own) in enumerate(zip(replies, most, strict=True))
        if reply.outcome == "truncated" and (reply.completion_tokens or 0) < own
    ]


def _processors(
    guides: Sequence[Callable[[Tensor, Tensor], Tensor]],
    sampling: Sampling,
    requests: Sequence[Request],
) -> Any:
    """What turns logits into the scores whose maximum is the drawn token."""
    from transformers import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    if sampling.temperature == 0:
        return LogitsProcessorList(guides)
    made: list[Any] = [*guides]
    if sampling.temperature is not None and sampling.temperature != 1:
        made.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k is not None and sampling.top_k > 0:
        made.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        made.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList([*made, _GumbelNoise([request.draw() for request in requests])])


class _GumbelNoise:
    """Adds Gumbel noise, each row from a generator of its own: the maximum is then a fair draw.

    Args:
        seeds: One per row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = seeds
        self._generators: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores with noise."""
        import torch

        if not self._generators:
            make = torch.Generator
            self._generators = [make(scores.device).manual_seed(seed) for seed in self._seeds]
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.log()
