"""Prompts with their responses, and how rows of the outside world become such groups.

This is the only file that knows column names. It needs nothing but the standard library.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeAlias

Message: TypeAlias = dict[str, Any]
Content: TypeAlias = "str | list[Message]"
"""Plain text, or chat messages with `role` and `content`."""

PairRule = Literal["best_worst", "best_random"]
"""Which response of a scored group is rejected beside the best."""

CHOSEN, NEITHER, REJECTED = 1, 0, -1

JUDGED_PROMPT = "{prompt}\n\nA judgment of the response that follows: {judgment}"
"""How a judgment joins the prompt under which a judged response is read once more."""

_JUDGE_FAILURE = re.compile(r"\W*(?:error|none|null|nan|n/?a)\W*", re.IGNORECASE)
"""What stands in the place of a judgment that there is none of, such as `$ERROR$`."""


class RowError(ValueError):
    """A row that cannot be used.

    Attributes:
        reason: A short stable code, one of the keys under which rejects are counted.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Segment(NamedTuple):
    """A part of a response's text with a score of its own.

    Attributes:
        start: Its first character.
        end: The character after its last one.
        score: Label from the data; objectives that read scores take higher for worse.
    """

    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Response:
    """One response to a prompt, with the labels that the data gives it.

    Attributes:
        content: Text, or the assistant's messages.
        reward: Label from the data, higher is better.
        role: `CHOSEN` (also desirable, teacher's), `REJECTED` (also undesirable, student's) or
            `NEITHER`.
        weight: Weight of this response from the data.
        aspects: Labels in several dimensions, higher is better, NaN where nobody judged.
        prompt: The prompt this response is read under where that is not the group's: a judged view.
        twin: For a judged view, the index in the group of the plain view of the same response.
        model: Who wrote it.
        spans: Flagged ranges (start, end) of characters of the text; None where nobody looked.
        segments: Scored parts that cover the text without gap; None where there are none.
    """

    content: Content
    reward: float | None = None
    role: int = NEITHER
    weight: float | None = None
    aspects: tuple[float, ...] | None = None
    prompt: Content | None = None
    twin: int | None = None
    model: str | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    segments: tuple[Segment, ...] | None = None


@dataclass(frozen=True)
class Group:
    """One prompt and its responses.

    Attributes:
        prompt: Plain text or messages; never what was added to it while generating.
        responses: At least one.
        meta: Anything else worth keeping, such as the builder, seeds and the generation prompt.
    """

    prompt: Content
    responses: tuple[Response, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conversational(self) -> bool:
        """Whether prompt and responses are chat messages rather than plain text."""
        return not isinstance(self.prompt, str)


def text_of(content: Content) -> str:
    """The words of a text or of messages, for checks and statistics."""
    if isinstance(content, str):
        return content
    return "\n".join(str(message.get("content") or "") for message in content)


def check_text(text: str) -> None:
    """Refuses what JSON can hold and no tokenizer takes: half of a surrogate pair.

    Raises:
        RowError: `bad_text`, there is one in the text.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode("ascii")
        raise RowError(
            "bad_text",
            f"the text holds half of a surrogate pair, `{half}`, which is no character: mend or "
            "delete it",
        ) from None


def scored_segments(response: Response) -> tuple[Segment, ...] | None:
    """The scored segments of a response; one with a reward alone is a single segment.

    A reward is better the higher it is and a score worse, so the score is minus the reward.
    """
    if response.segments is not None or response.reward is None:
        return response.segments
    return (Segment(0, len(text_of(response.content)), -response.reward),)


def group_from_row(row: Mapping[str, Any]) -> Group:
    """Reads one row of any of the known formats.

    | columns | becomes |
    |---|---|
    | `prompt`, `chosen`, `rejected` (TRL; `prompt` may be implicit) | a pair |
    | `prompt`, `responses`, `rewards` (or `text` and `reward` in each) | a scored group |
    | `prompt`, `responses`, `roles` (1, 0, -1; or `role` in each) | a group with sides |
    | `prompt`, `responses`, `aspects` (a list of numbers for each) | a group with several labels |
    | `instruction`, `completions` (UltraFeedback) | a scored group |
    | `prompt`, `completion`, `label` (TRL unpaired) | one response, desirable or not |
    | `prompt`, `completion` or `messages` (TRL) | one response |
    | `instruction`, `input`, `output` (Alpaca) | one response |
    | any single response and `judgment` (CUT; null: no fault found) | its plain and judged view |
    | any single response and `spans` of characters | a response with flagged spans |
    | `prompt`, `segments` (objects with `text` and `score`) | a response with scored parts |

    Texts may be strings or lists of chat messages.

    Args:
        row: Column name -> value.

    Returns:
        The group, already checked: a prompt, no empty response, chosen unlike rejected.

    Raises:
        RowError: The row cannot be used; `reason` says why in one word.
    """
    row = {key: value for key, value in row.items() if value is not None}
    if "chosen" in row and "rejected" in row:
        group = _pair(row)
    elif "responses" in row:
        group = _scored(row)
    elif "completions" in row:
        group = _ultrafeedback(row)
    elif "completion" in row:
        group = _single(row, row["completion"])
    elif "messages" in row:
        prompt, response = _split_messages(row["messages"])
        group = _single({**row, "prompt": prompt}, response)
    elif "output" in row and "instruction" in row:
        group = _alpaca(row)
    elif "segments" in row:
        group = _single(row, _joined(row))
    else:
        raise RowError(
            "unknown_format",
            f"columns {sorted(row)} fit no known format; see docs/data_format.md, "
            "for example `prompt`, `chosen`, `rejected`",
        )
    _check(group)
    return group


def binarise(
    group: Group, seed: int, rule: PairRule = "best_worst"
) -> tuple[Group, tuple[str, ...]]:
    """The pair of the best against a worse response by reward, with a strict gap.

    Args:
        group: A scored group.
        seed: Decides among equal rewards, together with the texts, so that row order plays no part.
        rule: Whether the worst is rejected, or any that is worse than the best, drawn.

    Returns:
        The pair, and which sides had a tie to break: `tie_best`, `tie_worst` where the worst is
        rejected.

    Raises:
        RowError: `no_reward` where a reward is missing, `no_gap` where all rewards are equal,
            `identical` where best and worst are the same text, `bad_text` where a text holds half
            of a surrogate pair.
    """
    rewards = [response.reward for response in group.responses]
    if len(rewards) < 2 or any(reward is None for reward in rewards):
        raise RowError("no_reward", "a best-against-worst pair needs two responses with rewards")
    scored = [(reward, index) for index, reward in enumerate(rewards) if reward is not None]
    high, low = max(scored)[0], min(scored)[0]
    if high == low:
        raise RowError("no_gap", f"all {len(scored)} responses have the reward {high}")
    rng = random.Random(f"{seed}\0{text_of(group.prompt)}".encode("utf-8", "surrogatepass"))
    best = [index for reward, index in scored if reward == high]
    worst = [index for reward, index in scored if reward == low]
    worse = worst if rule == "best_worst" else [i for reward, i in scored if reward < high]
    chosen = replace(group.responses[rng.choice(best)], role=CHOSEN)
    rejected = replace(group.responses[rng.choice(worse)], role=REJECTED)
    pair = replace(group, responses=(chosen, rejected))
    _check(pair)
    ties = {"tie_best": best, "tie_worst": worst if rule == "best_worst" else []}
    return pair, tuple(name for name, equal in ties.items() if len(equal) > 1)


def as_chat(group: Group) -> Group:
    """The group with its texts as a user's and an assistant's turn; messages stay as they are."""
    if group.conversational:
        return group

    def turn(role: str, content: Content | None) -> Any:
        return None if content is None else [{"role": role, "content": text_of(content).strip()}]

    responses = tuple(
        replace(
            _without_margins(r), content=turn("assistant", r.content), prompt=turn("user", r.prompt)
        )
        for r in group.responses
    )
    return replace(group, prompt=turn("user", group.prompt), responses=responses)


def _without_margins(response: Response) -> Response:
    """A response whose spans and segments count from where its text begins, without white space."""
    text = text_of(response.content)
    first, length = len(text) - len(text.lstrip()), len(text.strip())

    def moved(place: int) -> int:
        return min(max(place - first, 0), length)

    spans, segments = response.spans, response.segments
    if spans is not None:
        spans = tuple((moved(start), moved(end)) for start, end in spans)
        spans = tuple((start, end) for start, end in spans if start < end)
    if segments is not None:
        moved_parts = (Segment(moved(p.start), moved(p.end), p.score) for p in segments)
        segments = tuple(part for part in moved_parts if part.start < part.end)
    return replace(response, spans=spans, segments=segments)


def row_from_group(group: Group) -> dict[str, Any]:
    """The row of a group in TRL's columns.

    The inverse of `group_from_row` for pairs, scored groups and single responses.

    Raises:
        RowError: The group has judged views, which have no such row.
    """
    if any(response.twin is not None for response in group.responses):
        raise RowError("judged", "a group with judged views has no row in TRL's columns")
    roles = [response.role for response in group.responses]
    if sorted(roles) == [REJECTED, CHOSEN]:
        columns = _pair_columns(group.responses)
    elif len(roles) == 1 and roles[0] != NEITHER:
        columns = _single_columns(group.responses[0])
    else:
        columns = _group_columns(group.responses)
    meta = {"meta": dict(group.meta)} if group.meta else {}
    return {"prompt": group.prompt, **columns, **meta}


def _pair_columns(responses: Sequence[Response]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for response in sorted(responses, key=lambda response: -response.role):
        name = "chosen" if response.role == CHOSEN else "rejected"
        columns[name] = response.content
        columns |= _given({f"score_{name}": response.reward})
    return columns


def _single_columns(response: Response) -> dict[str, Any]:
    spans, segments = response.spans, response.segments
    return {"completion": response.content} | _given(
        {
            "label": False if response.role == REJECTED else None,
            "reward": response.reward,
            "weight": response.weight,
            "spans": None if spans is None else [list(span) for span in spans],
            "segments": None if segments is None else [part._asdict() for part in segments],
        }
    )


def _group_columns(responses: Sequence[Response]) -> dict[str, Any]:
    columns: dict[str, Any] = {"responses": [response.content for response in responses]}
    for name in ("reward", "role", "model"):
        values = [getattr(response, name) for response in responses]
        unset = (None, NEITHER) if name == "role" else (None, "")
        if any(value not in unset for value in values):
            columns[f"{name}s"] = values
    aspects = [response.aspects for response in responses]
    if None not in aspects:
        columns["aspects"] = [[None if math.isnan(x) else x for x in own or ()] for own in aspects]
    return columns


def _given(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in columns.items() if value is not None}


def _pair(row: Mapping[str, Any]) -> Group:
    chosen, rejected = row["chosen"], row["rejected"]
    for name in {"prompt", "chosen", "rejected"} & row.keys():
        _check_content(row[name], f"`{name}`")
    if chosen == rejected:
        raise RowError("identical", "chosen and rejected are the same text")
    if "prompt" in row:
        prompt = row["prompt"]
        if not isinstance(prompt, str) and not isinstance(chosen, str):
            chosen, rejected = _after(prompt, chosen), _after(prompt, rejected)
        elif isinstance(prompt, str) and not isinstance(chosen, str):
            # Binarised UltraFeedback has a plain prompt beside two whole conversations.
            prompt, chosen, rejected = _implicit_prompt(chosen, rejected, prompt)
    else:
        prompt, chosen, rejected = _implicit_prompt(chosen, rejected)
    return Group(
        prompt,
        (
            Response(chosen, _number(row, "score_chosen"), CHOSEN),
            Response(rejected, _number(row, "score_rejected"), REJECTED),
        ),
        _meta(row),
    )


def _scored(row: Mapping[str, Any]) -> Group:
    items, rewards, models, roles, aspects = (
        _list(row, name) for name in ("responses", "rewards", "models", "roles", "aspects")
    )
    items = items or []
    labels = {"rewards": rewards, "models": models, "roles": roles, "aspects": aspects}
    for name, values in labels.items():
        if values is not None and len(values) != len(items):
            raise RowError(
                "length_mismatch", f"{len(items)} `responses` but {len(values)} `{name}`"
            )
    responses = []
    for index, item in enumerate(items):
        record = item if isinstance(item, Mapping) else {"text": item}
        reward = rewards[index] if rewards is not None else record.get("reward")
        responses.append(
            Response(
                record.get("text") or record.get("response") or record.get("content") or "",
                None
                if reward is None and rewards is None
                else _finite(reward, f"rewards[{index}]"),
                _role(roles[index] if roles is not None else record.get("role", NEITHER), index),
                aspects=None if aspects is None else _aspects(aspects, index),
                model=models[index] if models is not None else record.get("model"),
            )
        )
    return Group(row.get("prompt", row.get("instruction", "")), tuple(responses), _meta(row))


def _aspects(aspects: Sequence[Any], index: int) -> tuple[float, ...]:
    """The labels of one response, as many as the first has; a null is NaN."""
    own, first = aspects[index], aspects[0]
    if not isinstance(own, list | tuple) or not own or len(own) != len(first):
        raise RowError(
            "bad_type",
            f"`aspects[{index}]` is {own!r}: it must be as many numbers as in `aspects[0]`",
        )
    return tuple(
        math.nan if value is None else _finite(value, f"aspects[{index}][{place}]")
        for place, value in enumerate(own)
    )


def _ultrafeedback(row: Mapping[str, Any]) -> Group:
    responses = []
    for index, item in enumerate(_objects(row, "completions")):
        score = item.get("overall_score", item.get("fine-grained_score"))
        reward = None if score is None else _finite(score, f"completions[{index}].overall_score")
        responses.append(Response(item.get("response", ""), reward, model=item.get("model")))
    return Group(row.get("instruction", row.get("prompt", "")), tuple(responses), _meta(row))


def _single(row: Mapping[str, Any], response: Content) -> Group:
    label = row.get("label", True)
    if not isinstance(label, bool | int) or label not in (0, 1):
        raise RowError("bad_label", f"`label` must be true or false, got {label!r}")
    prompt = row.get("prompt", "")
    plain = Response(
        response,
        _number(row, "reward"),
        CHOSEN if label else REJECTED,
        _number(row, "weight"),
        spans=_spans(row, response),
        segments=_segments(row, response),
    )
    judgment = str(row.get("judgment", "")).strip()
    _check_content(prompt, "`prompt`")
    if not judgment or not prompt:
        return Group(prompt, (plain,), _meta(row))
    if _JUDGE_FAILURE.fullmatch(judgment):
        raise RowError("judgment_error", f"the judgment is a placeholder for an error: {judgment}")
    plain = replace(plain, role=REJECTED)
    judged = replace(plain, prompt=_with_judgment(prompt, judgment), twin=0)
    return Group(prompt, (plain, judged), _meta(row))


def _role(value: Any, index: int) -> int:
    if value not in (CHOSEN, NEITHER, REJECTED) or isinstance(value, bool):
        raise RowError("bad_label", f"`roles[{index}]` must be 1, 0 or -1, got {value!r}")
    return int(value)


def _joined(row: Mapping[str, Any]) -> str:
    """The text that segments make up."""
    parts = [part.get("text") for part in _objects(row, "segments")]
    if not all(isinstance(part, str) for part in parts):
        raise RowError("bad_type", "`segments` without `completion` need a `text` each")
    return "".join(map(str, parts))


def _spans(row: Mapping[str, Any], response: Content) -> tuple[tuple[int, int], ...] | None:
    """Flagged ranges of characters: pairs of numbers, or objects with `start` and `end`."""
    items = _list(row, "spans")
    if items is None:
        return None
    length, spans = len(_one_text(response, "spans")), []
    for index, item in enumerate(items):
        ends = (item.get("start"), item.get("end")) if isinstance(item, Mapping) else item
        if not isinstance(ends, list | tuple) or not _is_range(ends, length):
            raise RowError(
                "bad_span",
                f"`spans[{index}]` is {item!r}: it must be a start and an end within the "
                f"{length} characters of the response",
            )
        spans.append((ends[0], ends[1]))
    return tuple(spans)


def _is_range(ends: Any, length: int) -> bool:
    whole = len(ends) == 2 and all(type(end) is int for end in ends)
    return whole and 0 <= ends[0] < ends[1] <= length


def _segments(row: Mapping[str, Any], response: Content) -> tuple[Segment, ...] | None:
    """Scored parts of a response, by `text` or by `start` and `end`; they must cover it."""
    if "segments" not in row:
        return None
    text, place, segments = _one_text(response, "segments"), 0, []
    for index, item in enumerate(_objects(row, "segments")):
        score = _finite(item.get("score"), f"segments[{index}].score")
        if "text" in item:
            fits = bool(item["text"]) and text.startswith(str(item["text"]), place)
            start, end = place, place + len(str(item["text"]))
        else:
            start, end = item.get("start", -1), item.get("end", -1)
            fits = _is_range((start, end), len(text)) and start == place
        if not fits:
            raise _uncovered(text, place, f"`segments[{index}]` does not go on there")
        segments.append(Segment(start, end, score))
        place = end
    if place != len(text):
        raise _uncovered(text, place, "no segment is left")
    return tuple(segments)


def _uncovered(text: str, place: int, why: str) -> RowError:
    rest = text[place : place + 20]
    return RowError(
        "segments_do_not_cover",
        f"the scored segments cover {place} of the {len(text)} characters of the response "
        f"({rest!r} comes next), and {why}: give every part of the text a score",
    )


def _objects(row: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    items = _list(row, name) or []
    for index, item in enumerate(items):
        if not isinstance(item, Mapping):
            kind = type(item).__name__
            raise RowError("bad_type", f"{name}[{index}] must be an object, got {kind}")
    return items


def _one_text(response: Content, name: str) -> str:
    """The text that `spans` and `segments` count the characters of."""
    if isinstance(response, list) and len(response) != 1:
        raise RowError("bad_type", f"`{name}` need a response of one message")
    return text_of(response)


def _with_judgment(prompt: Content, judgment: str) -> Content:
    if isinstance(prompt, str):
        end = prompt[len(prompt.rstrip()) :]
        return JUDGED_PROMPT.format(prompt=prompt.rstrip(), judgment=judgment) + end
    last = dict(prompt[-1])
    last["content"] = JUDGED_PROMPT.format(prompt=last["content"], judgment=judgment)
    return [*prompt[:-1], last]


def _alpaca(row: Mapping[str, Any]) -> Group:
    prompt = row["instruction"]
    if not isinstance(prompt, str):
        raise RowError("bad_type", f"`instruction` must be text, got {type(prompt).__name__}")
    if row.get("input"):
        prompt = f"{prompt}\n\n{row['input']}"
    return _single({**row, "prompt": f"{prompt}\n\n"}, row["output"])


def _split_messages(messages: Any) -> tuple[list[Message], list[Message]]:
    if not isinstance(messages, list) or not messages:
        raise RowError("bad_type", "`messages` must be a list of chat messages")
    _check_content(messages, "`messages`")
    if messages[-1].get("role") != "assistant":
        raise RowError("no_response", "`messages` must end with the assistant's turn")
    return list(messages[:-1]), [messages[-1]]


def _implicit_prompt(
    chosen: Content, rejected: Content, prompt: str | None = None
) -> tuple[Content, Content, Content]:
    shared = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        shared += 1
    if isinstance(chosen, str) and isinstance(rejected, str):
        # Words stay whole, and the space before a word belongs to it, as tokenizers have it.
        while shared and not chosen[shared - 1].isspace():
            shared -= 1
        while shared and chosen[shared - 1] == " ":
            shared -= 1
        return chosen[:shared], chosen[shared:], rejected[shared:]
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("bad_type", "`chosen` and `rejected` must both be text or both be messages")
    if not shared and prompt is not None:
        return [{"role": "user", "content": prompt}], chosen, rejected
    return list(chosen[:shared]), list(chosen[shared:]), list(rejected[shared:])


def _after(prompt: Any, messages: Any) -> list[Message]:
    """The response when a conversation repeats its prompt; the messages as they are otherwise."""
    if len(messages) > len(prompt) and list(messages[: len(prompt)]) == list(prompt):
        return list(messages[len(prompt) :])
    return list(messages)


def _list(row: Mapping[str, Any], name: str) -> list[Any] | None:
    value = row.get(name)
    if value is not None and not isinstance(value, list):
        raise RowError("bad_type", f"`{name}` must be a list, got {type(value).__name__}")
    return value


def _number(row: Mapping[str, Any], name: str) -> float | None:
    return _finite(row[name], name) if name in row else None


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RowError("bad_reward", f"`{name}` is not a number: {value!r}") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise RowError("bad_reward", f"`{name}` is {number}; it must be finite")
    return number


def _meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = row.get("meta", {})
    return meta if isinstance(meta, Mapping) else {"meta": meta}


def _check(group: Group) -> None:
    _check_content(group.prompt, "prompt")
    if not text_of(group.prompt).strip():
        raise RowError("no_prompt", "the row has no `prompt`, or an empty one")
    if isinstance(group.prompt, list) and group.prompt[-1].get("role") == "assistant":
        raise RowError("prompt_ends_with_assistant", "the prompt ends with the assistant's turn")
    if not group.responses:
        raise RowError("no_response", "the row has no response")
    for index, response in enumerate(group.responses):
        _check_content(response.content, f"response {index}")
        if not text_of(response.content).strip():
            raise RowError("empty_response", f"response {index} is empty")
        if isinstance(response.content, str) == group.conversational:
            raise RowError("bad_type", "prompt and responses must all be text or all be messages")
    if sorted(response.role for response in group.responses) == [REJECTED, CHOSEN]:
        chosen, rejected = (text_of(response.content).split() for response in group.responses)
        if chosen == rejected:
            raise RowError("identical", "chosen and rejected are the same text")


def _check_content(content: Any, name: str) -> None:
    if not isinstance(content, str | list):
        kind = type(content).__name__
        raise RowError("bad_type", f"{name} must be text or a list of messages, got {kind}")
    if isinstance(content, list) and not all(_is_message(message) for message in content):
        raise RowError("bad_type", f"{name}: every message needs `role` and `content`")
    check_text(text_of(content))


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and "role" in message and "content" in message
