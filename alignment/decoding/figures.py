"""What decoding takes and does: tokens per second, memory, the KL from a start."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.cli import UserError


@dataclass(frozen=True)
class Figures:
    """Sums over answers; they add up over the parts of a run.

    Attributes:
        answers: How many.
        tokens: Tokens written.
        seconds: Time of answering, without loading and measuring.
        memory: Most bytes in use: of an accelerator's tensors, else of the process.
        kl: Nats from the start, summed over answers; None where it is not measured.
    """

    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0
    memory: int = 0
    kl: float | None = None

    def __add__(self, other: Figures) -> Figures:
        """Of both parts together."""
        known = [part.kl for part in (self, other) if part.kl is not None]
        return Figures(
            self.answers + other.answers,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            max(self.memory, other.memory),
            sum(known) if known else None,
        )

    @property
    def tokens_per_second(self) -> float:
        """Tokens written in a second, over all rows of a batch."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def kl_per_answer(self) -> float | None:
        """Nats of an answer from the start, on average; None where it is not measured."""
        return None if self.kl is None else self.kl / max(self.answers, 1)

    def write(self, path: Path, **also: Any) -> None:
        """Writes the report of a run, with what it was about."""
        document = {
            **also,
            **vars(self),
            "tokens_per_second": self.tokens_per_second,
            "kl_per_answer": self.kl_per_answer,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Figures:
        """The figures of a report.

        Raises:
            UserError: There is no report in that file.
        """
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} holds no report ({error}); `alignment generate --report` writes one"
            ) from None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Figures:
        """The figures among the keys of a report."""
        return cls(**{name: document[name] for name in cls.__dataclass_fields__})


def peak_memory(device: Any) -> int:
    """Most bytes in use so far: of an accelerator's tensors, else of this process."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
