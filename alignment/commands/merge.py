"""Merge an adapter into its base model, and show that the merged model says the same.

    alignment merge --adapter runs/apo --output runs/apo-merged [--dtype bfloat16]

What is written is read again and compared with base and adapter, token by token. Where a log-prob
differs by more than the precision allows, or where merging moves the tokens by more than half of
what the adapter does, because rounding has lost it, nothing is left behind. An adapter that was
trained on a base in 4 bit fits those weights and no others: `--load-in-4bit`, with the keys of the
recipe, merges it into the same weights, dequantised.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from alignment import compat
from alignment.adapters.base import load_adapter, read_settings
from alignment.cli import UserError, parse, say
from alignment.core.preflight import LOGP_TOLERANCE
from alignment.core.rows import read_rows
from alignment.trainers.loading import not_a_model

_TEXTS = (
    "Water boils at a hundred degrees at sea level, and at fewer in the mountains, because",
    "Dear Anna,\nthank you for your letter of 3 May. We have moved the meeting to Tuesday at 14:30",
    "def mean(values):\n    return sum(values) / len(values)\n\nprint(mean([1, 2, 3]))",
    "Die Sonne scheint, 太阳出来了, and 2 + 2 = 4; that much is certain.",
)
"""What is compared unless prompts are given: prose, numbers, code, several scripts."""

_MOST_OF_ADAPTER = 0.5
"""Share of what the adapter does that merging may differ by, both as root mean squares; it is about
1 where the adapter is lost or cannot be told from rounding."""

_LONGEST = 256
_MOST_PROMPTS = 16


@dataclass(kw_only=True)
class Options:
    """Options of `alignment merge`."""

    adapter: str = field(metadata={"help": "folder or hub id of the adapter"})
    output: Path = field(metadata={"help": "folder to write the merged model to"})
    base: str | None = field(
        default=None,
        metadata={"help": "the base model; unset, the one the adapter names, at its revision"},
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = field(
        default="auto", metadata={"help": "of the merged weights; auto: as the base is stored"}
    )
    prompts: Path | None = field(
        default=None, metadata={"help": "rows with `prompt` to compare on; unset, texts of its own"}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "the adapter was trained on a base in 4 bit"}
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = field(
        default="nf4", metadata={"help": "as in the recipe"}
    )
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "as in the recipe"})
    device: str = field(
        default="cpu", metadata={"help": "where to merge and compare: cpu, cuda, cuda:1"}
    )
    adapter_kwargs: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "what the adapter is merged with, such as '{\"preference\": [3, 1]}'"},
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "hub id to upload the merged model to, as a private model"}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "let code that comes with the model run"}
    )


class Source(NamedTuple):
    """Where a model lies.

    Attributes:
        name: A folder or hub id.
        revision: Branch, tag or commit there; a folder has none.
    """

    name: str
    revision: str = "main"


def main(argv: list[str]) -> None:
    """`alignment merge`.

    Raises:
        UserError: Base, adapter or output cannot be used, or the merged model says something else.
    """
    compat.ignore_renamed()
    options = parse(Options, argv, "alignment merge", __doc__)
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise UserError(f"{options.output} exists already: name another `--output`")
    base = _base_of(options)
    tokenizer = _tokenizer(base, options)
    texts = _texts(options, tokenizer)
    adapted = _adapted(base, options)
    before = _logps(adapted, texts)
    with adapted.disable_adapter():
        moved = before - _logps(adapted, texts)
    model = _merged(adapted, options)
    dtype = model.dtype
    staged = options.output.with_name(f".{options.output.name}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        del model, adapted
        difference = _logps(_load(Source(str(staged)), options), texts) - before
        bound = LOGP_TOLERANCE.get(dtype, LOGP_TOLERANCE[torch.float32])
        _check(difference, moved, bound, dtype)
        shutil.rmtree(options.output, ignore_errors=True)
        staged.rename(options.output)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    largest = float(difference.abs().max())
    say(f"merged into  {options.output} ({dtype})")
    say(f"compared     {len(before)} tokens: {largest:.2e} nats at most, bound {bound:g}")
    told = f"{_rms(moved):.2e} nats (rms), merging by {_rms(difference):.2e}"
    say(f"the adapter  moves them by {told}")
    if options.push_to_hub:
        say(f"uploaded to  {_upload(options.output, options.push_to_hub)}")


@torch.no_grad()
def token_logps(model: Any, ids: Sequence[int]) -> Tensor:
    """(T - 1,) nats, float32 on the CPU: log-prob of each token but the first."""
    tokens = torch.tensor([list(ids)], device=model.device)
    logits = model(input_ids=tokens).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).squeeze(1).cpu()


def _logps(model: Any, texts: Sequence[Sequence[int]]) -> Tensor:
    """(N,) nats: log-probs of the tokens of all texts."""
    return torch.cat([token_logps(model, ids) for ids in texts])


def _rms(nats: Tensor) -> float:
    return float(nats.square().mean().sqrt())


def _check(difference: Tensor, moved: Tensor, bound: float, dtype: torch.dtype) -> None:
    """Refuses a merged model that is not base and adapter.

    Args:
        difference: (N,) nats; of its log-probs to those of base and adapter.
        moved: (N,) nats; of those to the base's.
        bound: Nats that a token may differ by.
        dtype: Of the merged weights.

    Raises:
        UserError: A token differs by more, or the tokens differ by much of what the adapter does
            and by more than float32 rounds.
    """
    largest = float(difference.abs().max())
    if not largest <= bound:
        raise UserError(
            f"the merged model differs from base and adapter by {largest:.3g} nats in a token "
            f"(bound {bound:g} in {dtype}), so nothing is kept: merge with `--dtype float32`, "
            "and make sure that the base is the one the adapter was trained on"
        )
    lost, whole = _rms(difference), _rms(moved)
    if lost > max(_MOST_OF_ADAPTER * whole, LOGP_TOLERANCE[torch.float32]):
        raise UserError(
            f"rounding to {dtype} may lose the adapter, which moves tokens by {whole:.3g} nats "
            f"(rms): the merged model differs by {lost:.3g}, more than half of that, so nothing is "
            "kept: merge with `--dtype float32`"
        )


def _base_of(options: Options) -> Source:
    """The base that is asked for; at the adapter's revision where it is the one that it names."""
    config = read_settings(options.adapter)
    name = options.base or config.base_model_name_or_path
    if not name:
        raise UserError(f"`{options.adapter}` does not name its base model: set `--base`")
    is_its_own = name == config.base_model_name_or_path
    return Source(name, (config.revision if is_its_own else None) or "main")


def _tokenizer(base: Source, options: Options) -> PreTrainedTokenizerBase:
    """The one that lies with the adapter, whose template may be another; else that of the base."""
    for source in (Source(options.adapter), base):
        try:
            return AutoTokenizer.from_pretrained(
                source.name,
                revision=source.revision,
                trust_remote_code=options.trust_remote_code,
            )
        except (OSError, ValueError, KeyError) as error:
            last = error
    raise UserError(not_a_model(base.name, last))


def _texts(options: Options, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    texts: list[Any] = list(_TEXTS)
    if options.prompts is not None:
        texts = [row.get("prompt") for _, row in islice(read_rows(options.prompts), _MOST_PROMPTS)]
    encoded = []
    for text in texts:
        if isinstance(text, list):
            text = tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=True)
        encoded.append(tokenizer(str(text or ""))["input_ids"][:_LONGEST])
    encoded = [ids for ids in encoded if len(ids) > 1]
    if not encoded:
        raise UserError(f"{options.prompts} has no row with a `prompt` of two tokens or more")
    return encoded


def _adapted(base: Source, options: Options) -> PeftModel:
    model = _load(base, options, quantised=options.load_in_4bit)
    if options.load_in_4bit:
        model = model.dequantize()
        if options.dtype != "auto":
            model = model.to(getattr(torch, options.dtype))
    try:
        return load_adapter(model, options.adapter, options.adapter_kwargs).eval()
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"`{options.adapter}` is no adapter of `{base.name}`: {str(error).splitlines()[0]}"
        ) from None


def _merged(adapted: PeftModel, options: Options) -> Any:
    try:
        return adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise UserError(
            f"adapter `{options.adapter}` cannot be merged: {str(error).splitlines()[0]}"
        ) from None


def _load(source: Source, options: Options, *, quantised: bool = False) -> Any:
    kwargs: dict[str, Any] = {"dtype": options.dtype}
    if quantised:
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=options.use_bnb_nested_quant,
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.name,
            revision=source.revision,
            device_map=options.device,
            trust_remote_code=options.trust_remote_code,
            **kwargs,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(not_a_model(source.name, error)) from None
    except ImportError as error:
        raise UserError(f"`{source.name}`: {str(error).splitlines()[0]}") from None
    return model.eval()


def _upload(folder: Path, name: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        hub.create_repo(name, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"{folder} is written, but not uploaded to {name}: {str(error).splitlines()[0]}"
        ) from None
