"""What a run starts from: prompts on both sides of the split, and servers that answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.connect import connect
from alignment.llm.ledger import Ledger
from alignment.llm.options import CallOptions
from alignment.llm.prompts import as_messages, as_text
from alignment.llm.protocol import CallError, Message, Prompt, Sampling
from alignment.llm.redaction import redact
from alignment.llm.rows import Output, Reject, prompt_of
from alignment.quickstart import world

HELD_OUT_SHARE = 0.2
"""Most of a user's prompts that are held out."""


class Server(NamedTuple):
    """A model to ask, and where.

    Attributes:
        model: Its name.
        url: Address of its server; None for one in this process.
    """

    model: str
    url: str | None = None

    def words(self, model_option: str, url_option: str) -> tuple[object, ...]:
        """The options that name it on a command line."""
        return (model_option, self.model, *((url_option, self.url) if self.url else ()))


def write_world(
    folder: Path, *, demonstrations: int, train_prompts: int, held_out_prompts: int, seed: int
) -> None:
    """Writes the world's demonstrations, prompts and untrained model.

    Args:
        folder: Of the run.
        demonstrations: How many to imitate.
        train_prompts: How many to build pairs from.
        held_out_prompts: How many to evaluate on.
        seed: Of the draws and of the model's weights.
    """
    from alignment.quickstart.student import save_blank

    save_blank(folder / "blank", seed)
    shown = world.demonstrations(demonstrations, seed)
    rows: Iterable[Mapping[str, Any]] = (
        {
            "prompt": as_messages(row.prompt),
            "completion": [{"role": "assistant", "content": row.answer}],
        }
        for row in shown
    )
    _write(folder / "demonstrations.jsonl", rows)
    train = world.prompts("train", train_prompts, seed)
    held_out = world.prompts("held_out", held_out_prompts, seed)
    _write_prompts(folder, map(as_messages, train), map(as_messages, held_out))


def split_prompts(  # noqa: PLR0913 - all named
    folder: Path,
    model: str,
    source: Path,
    *,
    train_prompts: int,
    held_out_prompts: int,
    seed: int,
) -> None:
    """Splits a user's prompts into those to train on and those to evaluate on.

    Repeated prompts count once, so none is on both sides. Text becomes a user's message where the
    model has a chat template: then pairs are trained in the form that answers are drawn in.

    Args:
        folder: Of the run.
        model: Whose chat template is looked for.
        source: The file of prompts.
        train_prompts: Most to train on.
        held_out_prompts: Most to evaluate on; a fifth of all at most.
        seed: Of the split.

    Raises:
        UserError: A row has no prompt, or there are too few, or there is no such model.
    """
    prompts = distinct_prompts(source)
    held_out = min(held_out_prompts, int(HELD_OUT_SHARE * len(prompts)))
    if not held_out:
        raise UserError(f"{source}: {len(prompts)} distinct prompts are too few to split; give 5")
    prompts = as_asked(prompts, model, folder)
    random.Random(seed).shuffle(prompts)
    _write_prompts(folder, prompts[held_out : held_out + train_prompts], prompts[:held_out])


def distinct_prompts(source: Path) -> list[Prompt]:
    """The prompts of a file in its order, repeated ones once.

    Raises:
        UserError: The file cannot be read, or a row has no prompt.
    """
    found: dict[str, Prompt] = {}
    for name, row in read_rows(source):
        try:
            prompt = prompt_of(row)
        except Reject as error:
            raise UserError(f"{name}: {error}") from None
        found.setdefault(as_text(prompt), prompt)
    return list(found.values())


def as_asked(prompts: Iterable[Prompt], model: str, folder: Path) -> list[Prompt]:
    """Prompts as a user's messages where the model has a chat template, else as they are.

    So data is trained in the form that answers are drawn in.

    Args:
        prompts: Text or messages.
        model: A folder or hub id.
        folder: Of the run.

    Raises:
        UserError: There is no such model.
    """
    from alignment.trainers.config import GroupConfig
    from alignment.trainers.loading import load_tokenizer

    tokenizer = load_tokenizer(model, GroupConfig(output_dir=str(folder)))
    has_template = tokenizer.chat_template is not None
    return [as_messages(prompt) if has_template else prompt for prompt in prompts]


def find_server(model: str | None, url: str | None, api_key_env: str | None) -> Server:
    """A server's model by name, or the only one that it has.

    Raises:
        UserError: No name was given, and the server has several models or does not tell.
    """
    if model is not None:
        return Server(model, url)
    if url is None:
        raise UserError("a judge or reviser needs a name, an address or both")
    import openai

    from alignment.llm.openai import read_key

    client = openai.OpenAI(
        base_url=url,
        api_key=read_key(api_key_env) if api_key_env else "none",
        timeout=30.0,
        max_retries=1,
        http_client=openai.DefaultHttpxClient(follow_redirects=False),
    )
    try:
        listed: Any = client.get("/models", cast_to=object)
        names = [str(item["id"]) for item in listed["data"]]
    except openai.APIStatusError as error:
        raise UserError(
            f"{url} does not list its models (it answered {error.status_code}); name the one to "
            "ask: `--judge-model`, `--reviser-model`"
        ) from None
    except openai.OpenAIError as error:
        cause = redact(str(error.__cause__ or error))
        raise UserError(f"{url} does not list its models ({cause}); is it running?") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url} does not answer as an OpenAI-compatible API") from None
    if len(names) != 1:
        told = ", ".join(names[:5]) or "none"
        raise UserError(f"{url} has {told}: name one with `--judge-model` or `--reviser-model`")
    return Server(names[0], url)


def check_servers(servers: Iterable[Server], api_key_env: str | None) -> None:
    """Asks each server one short question, before anything expensive is done.

    Raises:
        UserError: One does not answer, or has no such model.
    """

    async def ask(server: Server) -> None:
        with Ledger() as ledger:
            options = CallOptions(api_key_env=api_key_env, attempts=3)
            async with connect(server.model, server.url, ledger, options) as llm:
                greeting: list[Message] = [{"role": "user", "content": "Say hello."}]
                await llm.chat(greeting, Sampling(max_tokens=8), keep_truncated=True)

    for server in sorted(servers):
        if server.url is None:
            continue
        try:
            asyncio.run(ask(server))
        except CallError as error:
            raise UserError(f"{server.url}, asked for `{server.model}`: {error}") from None


def _write_prompts(folder: Path, train: Iterable[Prompt], held_out: Iterable[Prompt]) -> None:
    for name, prompts in (("train", train), ("held_out", held_out)):
        _write(folder / f"prompts/{name}.jsonl", ({"prompt": prompt} for prompt in prompts))


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with Output(path) as file:
        for row in rows:
            file.write(row)
