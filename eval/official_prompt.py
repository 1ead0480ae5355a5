"""AlpacaEval's judge prompt, which is not this project's to ship: read from the user's file.

The file (`alpaca_eval_clf.txt` in the authors' package) marks its messages as ChatML does and names
its fields in single braces. Numbers are comparable with published ones only if it was used, which
its checksum tells.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.cli import UserError
from alignment.llm.prompts import Template
from alignment.llm.protocol import Message
from eval.judge import PAIRWISE_FIELDS, Judge, RewardJudge
from eval.verdicts import TokenPreference

OFFICIAL_DIGEST = "784227e6dc2832fc"
"""Begin of the SHA-256 of the judge prompt that the published numbers of AlpacaEval 2 come from."""
TOKENS = ("m", "M")
"""How that prompt names the first and the second answer."""

_MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
_FIELDS = {"instruction": "prompt", "output_1": "first", "output_2": "second"}
_FIELD = re.compile("{(" + "|".join(_FIELDS) + ")}")


class ChatMLPrompt(Template):
    """A prompt file in AlpacaEval's layout; used as any `Template` of two answers.

    Args:
        path: The file.

    Raises:
        UserError: It cannot be read, or is laid out otherwise.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.fields = PAIRWISE_FIELDS
        text = _read(path)
        self.messages = [(role, said.strip()) for role, said in _MESSAGE.findall(text)]
        lacking = [name for name in _FIELDS if f"{{{name}}}" not in text]
        if lacking or not self.messages:
            raise UserError(
                f"{path}: a prompt in AlpacaEval's layout holds `<|im_start|>user` and "
                f"{', '.join(f'`{{{name}}}`' for name in _FIELDS)}; "
                f"lacking: {', '.join(lacking) or 'messages'}"
            )
        self.digest = hashlib.sha256(text.encode()).hexdigest()[:16]

    def user_message(self, **values: str | Mapping[str, str]) -> list[Message]:
        """The conversation, every field filled in once: what stands in an answer is no field."""

        def filled(match: re.Match[str]) -> str:
            return str(values[_FIELDS[match[1]]])

        return [{"role": role, "content": _FIELD.sub(filled, said)} for role, said in self.messages]


def in_chatml(path: Path) -> bool:
    """Whether a prompt file is laid out as AlpacaEval's are."""
    return "<|im_start|>" in _read(path)


def with_chatml(judge: Judge[Any] | RewardJudge, path: Path) -> Judge[Any]:
    """A judge that is asked by a prompt in AlpacaEval's layout and answers with its tokens.

    Raises:
        UserError: The prompt cannot be used, or the judge reads none.
    """
    if not isinstance(judge, Judge):
        raise UserError("a reward model reads no prompt file: leave out `--judge-prompt`")
    required = isinstance(judge.read, TokenPreference) and judge.read.required
    reader = TokenPreference(TOKENS, required)
    return dataclasses.replace(judge, template=ChatMLPrompt(path), read=reader, system=None)


def is_official(judge: Mapping[str, Any]) -> bool:
    """Whether a judge, as `Judge.identity` tells of it, was asked by the official prompt."""
    return judge.get("prompt_digest") == OFFICIAL_DIGEST


def _read(path: str | Path) -> str:
    """The text of a prompt file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompt file {path}: {error}") from None
