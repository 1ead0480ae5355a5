"""Groups of texts as groups of token ids.

Prompt and response are joined as ids at the boundary where generation would begin, so a response is
trained on the context that the model sees when it is used. A response that would lose its
end-of-turn token, and a template that renders the prompt differently once a response follows, are
reported and never trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from jinja2.exceptions import TemplateError

from alignment.cli import UserError
from alignment.core.groups import Content, Group, Response, RowError, check_text, text_of
from alignment.core.packing import TokenGroup
from alignment.core.token_labels import segment_scores, span_marks, token_ranges

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TruncationMode = Literal["drop", "keep_start", "keep_end"]


_PROBE = "system turn 4711"


def drops_system_turn(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template leaves a system turn out; one that refuses it does not."""
    turns = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "a"}]
    try:
        return _PROBE not in str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, TypeError, KeyError, ValueError):
        return False


@dataclass(frozen=True)
class Rendered:
    """A group as ids, with what a reader of the data should know about it.

    Attributes:
        group: The ids.
        notices: Codes of what was done to the row: `truncated`, `joined_as_ids`.
    """

    group: TokenGroup
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Renderer:
    """Turns groups into token ids.

    Attributes:
        tokenizer: With an end-of-sequence token, and a chat template where the data is
            conversational.
        max_length: Longest prompt plus response in tokens; None for no limit.
        truncation_mode: What happens to longer ones: `drop` rejects the row, `keep_start` cuts the
            response (as TRL does; the row then ends without an end-of-turn token and is reported),
            `keep_end` cuts the beginning of the prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = 1024
    truncation_mode: TruncationMode = "drop"

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"tokenizer `{self.tokenizer.name_or_path}` has no end-of-sequence token, so no "
                "response could ever end: set `eos_token` in its tokenizer_config.json"
            )

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a turn: the end of sequence, and special tokens named for it."""
        names = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<turn|>")
        added = self.tokenizer.added_tokens_decoder.items()
        ids = {index for index, token in added if token.content in names}
        return frozenset({self.tokenizer.eos_token_id} | ids)

    def __call__(self, group: Group, origin: str = "") -> Rendered:
        """Renders one group.

        Raises:
            RowError: The row cannot be used: `prompt_too_long`, `too_long`, `no_end_of_turn`,
                `prompt_not_prefix`, `template_error`, `views_differ`, `empty_prompt`, `bad_text`
                or `text_not_found`.
            UserError: The data is conversational and the tokenizer has no chat template, or one
                that drops a system turn of the data.
        """
        contexts, responses, marks, scores = [], [], [], []
        notices: set[str] = set()
        for response in group.responses:
            prompt = group.prompt if response.prompt is None else response.prompt
            render = self._text if isinstance(prompt, str) else self._messages
            context_ids, response_ids = render(prompt, response.content, notices)
            mark, score = self._labels(prompt, response, response_ids)
            context_ids, response_ids = self._fit(context_ids, response_ids, notices)
            contexts.append(context_ids)
            responses.append(response_ids)
            marks.append(mark and mark[: len(response_ids)])
            scores.append(score and score[: len(response_ids)])
        rewards = [response.reward for response in group.responses]
        weights = [response.weight for response in group.responses]
        aspects = [response.aspects for response in group.responses]
        twins = [response.twin for response in group.responses]
        for twin, view in zip(twins, responses, strict=True):
            if twin is not None and view != responses[twin]:
                raise RowError(
                    "views_differ",
                    "the judged view of the response has other tokens than its plain view; "
                    "raise `max_length` if it was cut",
                )
        tokens = TokenGroup.of(
            contexts,
            responses,
            role=[response.role for response in group.responses],
            reward=None if None in rewards else rewards,
            weight=None if None in weights else weights,
            aspects=None if None in aspects else aspects,
            twin=None if set(twins) == {None} else [-1 if t is None else t for t in twins],
            mark=None if None in marks else marks,
            score=None if None in scores else scores,
            origin=origin,
        )
        return Rendered(tokens, tuple(sorted(notices)))

    def _labels(
        self, prompt: Content, response: Response, ids: list[int]
    ) -> tuple[list[int] | None, list[float] | None]:
        """Marks and scores of a response's tokens, from its flagged spans and scored segments."""
        if response.spans is None and response.segments is None:
            return None, None
        ranges = self._ranges(prompt, response.content, ids)
        return (
            None if response.spans is None else span_marks(ranges, response.spans),
            None if response.segments is None else segment_scores(ranges, response.segments),
        )

    def _ranges(self, prompt: Content, response: Content, ids: list[int]) -> list[tuple[int, int]]:
        """The characters of a response's text that each of its tokens stands for."""
        if isinstance(prompt, str):
            return token_ranges(self.tokenizer, prompt, str(response), ids)
        before = self._rendered(prompt, add_generation_prompt=True)
        after = self._rendered([*prompt, *response])[len(before) :]
        text = text_of(response)
        start = after.find(text.strip())
        if start < 0:
            raise RowError(
                "text_not_found",
                "the chat template changes the response's text, so spans of it cannot be found",
            )
        start -= len(text) - len(text.lstrip())
        ranges = token_ranges(self.tokenizer, "", after, ids)
        return [(first - start, last - start) for first, last in ranges]

    def _text(
        self, prompt: Content, response: Content, notices: set[str]
    ) -> tuple[list[int], list[int]]:
        """Plain text: the end of sequence is appended, as TRL does."""
        eos = self.tokenizer.eos_token_id
        context_ids = self._ids(prompt)
        whole_ids = self._ids(f"{prompt}{response}")
        if self._ends_every_text:
            context_ids, whole_ids = context_ids[:-1], whole_ids[:-1]
        if not context_ids:
            raise RowError(
                "empty_prompt", "the prompt has no token, so nothing predicts the response"
            )
        if whole_ids[: len(context_ids)] == context_ids and len(whole_ids) > len(context_ids):
            response_ids = whole_ids[len(context_ids) :]
        else:
            # Tokens would merge across the boundary, which generation never sees.
            response_ids = self._ids(response, add_special_tokens=False)
            notices.add("joined_as_ids")
        if response_ids[-1:] != [eos]:
            response_ids = [*response_ids, eos]
        return context_ids, response_ids

    def _messages(
        self, prompt: Content, response: Content, notices: set[str]
    ) -> tuple[list[int], list[int]]:
        if self.tokenizer.chat_template is None:
            raise UserError(
                "the data is conversational but tokenizer "
                f"`{self.tokenizer.name_or_path}` has no chat template: set `chat_template_path` "
                "to a .jinja file, or give the data as plain text"
            )
        system = any(turn["role"] == "system" for turn in prompt if isinstance(turn, dict))
        if system and self._drops_system_turn:
            raise UserError(
                f"the chat template of tokenizer `{self.tokenizer.name_or_path}` drops the system "
                "turn, which the data has and the model would never see: mend the template "
                "(`chat_template_path`), or put its text into the first user turn"
            )
        try:
            before = self._rendered(prompt, add_generation_prompt=True)
            whole = self._rendered([*prompt, *response])
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise RowError(
                "template_error", f"the chat template refused the row: {error}"
            ) from error
        if not whole.startswith(before):
            raise RowError(
                "prompt_not_prefix",
                "the chat template renders the prompt differently once a response follows",
            )
        context_ids = self._ids(before, add_special_tokens=False)
        response_ids = self._ids(whole[len(before) :], add_special_tokens=False)
        length = self._end_of_turn(response_ids)
        if length is None:
            raise RowError(
                "no_end_of_turn",
                "the chat template ends the response without an end-of-turn token, so the model "
                "would not learn to stop",
            )
        # What the template writes after the end of the turn is never generated.
        return context_ids, response_ids[:length]

    def _end_of_turn(self, ids: list[int]) -> int | None:
        """How many tokens there are up to the one that ends the last turn; None where none does."""
        length = None
        for index in reversed(range(len(ids))):
            if ids[index] in self.end_tokens:
                length = index + 1
            elif self.tokenizer.decode(ids[index : index + 1]).strip():
                break
        return length

    def _fit(
        self, context_ids: list[int], response_ids: list[int], notices: set[str]
    ) -> tuple[list[int], list[int]]:
        limit, total = self.max_length, len(context_ids) + len(response_ids)
        if limit is None or total <= limit:
            return context_ids, response_ids
        if self.truncation_mode == "keep_end" and len(response_ids) < limit:
            notices.add("truncated")
            return context_ids[total - limit :], response_ids
        if len(context_ids) >= limit:
            raise RowError(
                "prompt_too_long",
                f"the prompt has {len(context_ids)} tokens, max_length is {limit}",
            )
        if self.truncation_mode == "keep_start":
            notices.add("truncated")
            return context_ids, response_ids[: limit - len(context_ids)]
        raise RowError(
            "too_long",
            f"prompt and response have {total} tokens, max_length is {limit}; "
            "raise it or set `truncation_mode`",
        )

    @cached_property
    def _drops_system_turn(self) -> bool:
        return drops_system_turn(self.tokenizer)

    @cached_property
    def _ends_every_text(self) -> bool:
        """Whether the tokenizer itself puts the end of sequence after a text."""
        return self._ids("a")[-1:] == [self.tokenizer.eos_token_id]

    def _ids(self, text: Content, **kwargs: Any) -> list[int]:
        check_text(str(text))
        ids: list[int] = self.tokenizer(str(text), verbose=False, **kwargs)["input_ids"]
        return list(ids)

    def _rendered(self, messages: Any, **kwargs: Any) -> str:
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, **kwargs)
        return str(text)
