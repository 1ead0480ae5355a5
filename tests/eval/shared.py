"""AlpacaEval's published files, as tests and benchmarks read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from eval.annotations import Annotations, Benchmark, read_annotations, read_reference
from eval.length_control import Rows

MODELS = (
    *("FuseChat-Gemma-2-9B-Instruct", "FuseChat-Llama-3.2-1B-Instruct", "claude-2"),
    *("gpt-3.5-turbo-1106_concise", "Mixtral-8x7B-Instruct-v0.1_concise"),
    *("vicuna-13b-v1.5-togetherai", "oasst-rlhf-llama-33b", "alpaca-7b", "text_davinci_001"),
)


class Published(NamedTuple):
    """The benchmark, its reference rows, and what was published for each model."""

    folder: Path
    benchmark: Benchmark
    reference: Rows
    expected: dict[str, Any]

    @classmethod
    def read(cls, shared_dir: Path) -> Published:
        folder = shared_dir / "data" / "alpaca_eval"
        benchmark = Benchmark(folder / "prompts.jsonl.gz")
        reference = read_reference(folder / "lc_reference.csv.gz", benchmark)
        expected = json.loads((folder / "expected.json").read_text())["models"]
        return cls(folder, benchmark, reference, expected)

    def annotations(self, model: str) -> Path:
        return self.folder / "annotations" / f"{model}.jsonl.gz"

    def verdicts(self, model: str) -> Annotations:
        return read_annotations(self.annotations(model), self.benchmark)
