"""Options of commands that ask models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignment.cli import check_counts
from alignment.llm.shards import Shard


@dataclass(kw_only=True)
class CallOptions:
    """What every command that asks models takes beside its own options."""

    resume: bool = field(default=False, metadata={"help": "go on with an output that exists"})
    overwrite: bool = field(default=False, metadata={"help": "start anew where an output exists"})
    dry_run: bool = field(
        default=False, metadata={"help": "say how many calls and dollars it takes; send nothing"}
    )
    ledger: Path | None = field(
        default=None, metadata={"help": "keeps finished calls; a file beside the output if unset"}
    )
    mode: Literal["live", "batch"] = field(
        default="live",
        metadata={"help": "batch: through the provider's batch API, within a day, at its price"},
    )
    batch_requests: int = field(
        default=10_000, metadata={"help": "most calls in a batch, and rows in work meanwhile"}
    )
    poll_interval: float = field(
        default=60.0, metadata={"help": "seconds between two looks at a batch"}
    )
    concurrency: int = field(default=16, metadata={"help": "most calls in flight"})
    attempts: int = field(default=8, metadata={"help": "most requests sent for one call"})
    timeout: float = field(default=600.0, metadata={"help": "seconds for one request"})
    api_key_env: str | None = field(
        default=None,
        metadata={"help": "variable with the API key; OPENAI_API_KEY for OpenAI itself, else none"},
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "tells models of one name apart in the ledger"}
    )
    price: tuple[float, ...] | None = field(
        default=None, metadata={"help": "dollars for a million prompt and completion tokens"}
    )
    max_cost: float | None = field(
        default=None,
        metadata={"help": "most dollars that the ledger may come to; needs `--price`"},
    )
    requests_per_minute: float | None = field(
        default=None, metadata={"help": "most requests sent in a minute"}
    )
    tokens_per_minute: float | None = field(
        default=None, metadata={"help": "most tokens, read and written, in a minute"}
    )
    device: str | None = field(
        default=None, metadata={"help": "where a model in this process runs"}
    )
    batch_size: int = field(
        default=16, metadata={"help": "prompts that a model in this process answers together"}
    )

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise ValueError("`--resume` and `--overwrite` exclude each other")
        check_counts(self, "concurrency", "attempts", "batch_size", "batch_requests")
        if self.price is not None and len(self.price) != 2:
            raise ValueError("`price` takes two numbers: for prompt and for completion tokens")
        if self.max_cost is not None and self.price is None:
            raise ValueError("`max_cost` needs `price`: dollars for a million tokens of each kind")
        if self.mode == "batch" and (self.requests_per_minute or self.tokens_per_minute):
            raise ValueError("`mode: batch` knows no rates: the provider paces its batches itself")
        for name in ("max_cost", "requests_per_minute", "tokens_per_minute", "poll_interval"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` is {value}; it must be above 0")


@dataclass(kw_only=True)
class ShardOptions(CallOptions):
    """Options of a command whose calls may be shared out among machines."""

    engine: Literal["local", "ray"] = field(
        default="local", metadata={"help": "ray: calls are made in shards on a Ray cluster"}
    )
    shards: int = field(default=64, metadata={"help": "parts into which `engine: ray` deals rows"})
    workers: int | None = field(
        default=None,
        metadata={"help": "most shards at work at the same time; the cluster's CPUs if unset"},
    )
    shard: str | None = field(
        default=None, metadata={"help": "K/N: make the calls of this part alone, and no output"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "shards", "workers")
        if self.part is not None and self.engine == "ray":
            raise ValueError("`engine: ray` runs all shards; leave out `shard` or `engine`")
        if self.mode == "batch" and (self.part is not None or self.engine == "ray"):
            raise ValueError("`mode: batch` leaves the work to the provider; it takes no shards")

    @property
    def part(self) -> Shard | None:
        """The shard that this process is, None where it is the whole job."""
        return None if self.shard is None else Shard.read(self.shard)


def part_of(options: CallOptions) -> Shard | None:
    """The shard that a process is, by its options; None where it is the whole job."""
    return options.part if isinstance(options, ShardOptions) else None
