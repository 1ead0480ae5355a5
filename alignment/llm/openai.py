"""Any server that speaks OpenAI's protocol, through the `openai` client."""

from __future__ import annotations

import os
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai

from alignment.cli import UserError, nearest
from alignment.llm.fingerprint import fingerprint
from alignment.llm.prompts import as_messages, shorten
from alignment.llm.protocol import CallError, Outcome, Reply, Request, Verb

OPENAI_HOST = "api.openai.com"
OPENAI_URL = f"https://{OPENAI_HOST}/v1"
_PASSING = frozenset({408, 409, 425, 429})


class OpenAIBackend:
    """A model behind an OpenAI-compatible URL.

    Args:
        model: Name of the model, as the server knows it.
        base_url: Address of the API, usually ending in `/v1`.
        api_key_env: The environment variable that holds the key. By default `OPENAI_API_KEY`, which
            goes to OpenAI's own host alone; other servers get no key unless a variable is named.
        revision: Tells models of the same name apart, in the ledger. By default the checksum of the
            weights where the name is a folder here, else nothing.
        timeout: Seconds for one request.

    Raises:
        UserError: The named variable is not set, or the address is no URL.
    """

    verbs: frozenset[Verb] = frozenset({"chat", "complete", "score"})

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI_URL,
        api_key_env: str | None = None,
        revision: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(f"`{base_url}` is no URL; it looks like http://localhost:8000/v1")
        self.model = model
        self.provider = address.hostname
        self.fingerprint = revision or (fingerprint(model) if Path(model).is_dir() else "")
        self.url = base_url
        if api_key_env is None and address.hostname == OPENAI_HOST:
            api_key_env = "OPENAI_API_KEY"
        self._key_name = api_key_env
        self._key = os.environ.get(api_key_env, "") if api_key_env else "none"
        if not self._key:
            raise UserError(f"no API key: the environment variable {api_key_env} is not set")
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=base_url,
            max_retries=0,  # the engine retries
            timeout=openai.Timeout(timeout, connect=min(timeout, 10.0)),
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def ask(self, request: Request) -> Reply:
        """Sends one request."""
        path, body = _body(request, self.model)
        if self.provider == OPENAI_HOST and "max_tokens" in body and request.verb == "chat":
            body["max_completion_tokens"] = body.pop("max_tokens")
        try:
            answer = await self._client.post(path, cast_to=object, body=body)
        except openai.APIStatusError as error:
            raise await self._status_error(error, path) from None
        except openai.APITimeoutError as error:
            told, unreachable = f"{self.url} did not answer in time", _unreachable(error)
            raise CallError("failed", told, retry=True, unreachable=unreachable) from None
        except openai.APIConnectionError as error:
            told = f"cannot reach {self.url} ({error.__cause__}); is the server running?"
            unreachable = _unreachable(error)
            raise CallError("failed", told, retry=True, unreachable=unreachable) from None
        except ValueError as error:
            told = f"{self.url} answered with broken JSON: {error}"
            raise CallError("unparseable", told, retry=True) from None
        try:
            return _reply(request, answer)
        except (KeyError, TypeError, AttributeError, IndexError):
            told = f"{self.url} does not answer as an OpenAI-compatible API: {shorten(answer)}"
            raise CallError("unparseable", told, retry=True, unreachable=True) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def _status_error(self, error: openai.APIStatusError, path: str) -> Exception:
        """What a status means: something for the user to mend, or a failed call."""
        status, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        said = str(body.get("message") or body.get("detail") or error.response.text)
        if self._key_name:
            said = said.replace(self._key, "***")  # some servers repeat the key
        told = f"{self.url} answered {status}: {shorten(said)}"
        if status in (401, 403):
            read = f"read from {self._key_name}" if self._key_name else "not sent: `--api-key-env`"
            return UserError(f"{self.url} refuses the API key ({status}); the key was {read}")
        if status == 429 and body.get("code") == "insufficient_quota":
            return UserError(f"{self.url} says that the quota is used up")
        if status in _PASSING or (status >= 500 and status != 501):
            outcome: Outcome = "rate_limited" if status == 429 else "failed"
            return CallError(outcome, told, retry=True, retry_after=_retry_after(error.response))
        if self.model in said or body.get("code") == "model_not_found":
            return UserError(f"{self.url} has no model `{self.model}`{await self._known_models()}")
        if status < 400 or status in (404, 405, 501):
            return UserError(
                f"{self.url}{path} answered {status}; the address of an OpenAI-compatible API "
                "usually ends in /v1"
            )
        return CallError("refused" if "content" in str(body.get("code")) else "failed", told)

    async def _known_models(self) -> str:
        try:
            listed: Any = await self._client.get("/models", cast_to=object)
            names = [str(item["id"]) for item in listed["data"]]
        except (openai.OpenAIError, ValueError, KeyError, TypeError):
            return ""  # not every server lists its models
        near = nearest(self.model, names)
        return f"; did you mean `{near}`?" if near else f"; it has {', '.join(names[:5]) or 'none'}"


def _body(request: Request, model: str) -> tuple[str, dict[str, Any]]:
    """The path and the JSON of a request."""
    body: dict[str, Any] = {"model": model, **request.sampling.settings()}
    body |= body.pop("extra", {})
    if "seed" in body:
        body["seed"] = request.draw()
    top = body.pop("top_logprobs", None)
    if request.verb == "chat":
        body["messages"] = as_messages(request.prompt)
        if top is not None:
            body |= {"logprobs": True, "top_logprobs": top}
        return "/chat/completions", body
    if not isinstance(request.prompt, str):
        raise UserError(f"`{request.verb}` on a server takes text, not messages")
    if request.verb == "score":
        texts = [request.prompt + continuation for continuation in request.continuations]
        return "/completions", {
            **body,
            "prompt": texts,
            "echo": True,
            "logprobs": 0,
            "max_tokens": 0,
        }
    return "/completions", {**body, "prompt": request.prompt} | (
        {} if top is None else {"logprobs": top}
    )


def _reply(request: Request, answer: Any) -> Reply:
    """The reply in a server's JSON; KeyError and the like where it is something else."""
    usage = answer.get("usage") or {}
    tokens = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    if request.verb == "score":
        return Reply("", "stop", *tokens, logps=_scores(request, answer["choices"]))
    choice = answer["choices"][0]
    finish_reason = choice.get("finish_reason") or "stop"
    logprobs = choice.get("logprobs") or {}
    if request.verb == "complete":
        top = tuple(logprobs["top_logprobs"]) if logprobs.get("top_logprobs") else None
        return Reply(_text(choice["text"]), finish_reason, *tokens, top_logprobs=top)
    message = choice["message"]
    if message.get("refusal"):
        return Reply(_text(message["refusal"]), "refusal", *tokens)
    top = None
    if logprobs.get("content"):
        top = tuple(
            {item["token"]: item["logprob"] for item in position["top_logprobs"]}
            for position in logprobs["content"]
        )
    return Reply(_text(message.get("content") or ""), finish_reason, *tokens, top_logprobs=top)


def _scores(request: Request, choices: list[Any]) -> tuple[tuple[float, ...], ...]:
    """The log-probs of the echoed tokens that reach beyond the prompt."""
    scores = []
    for choice in sorted(choices, key=lambda choice: choice["index"]):
        logprobs = choice.get("logprobs")
        if not logprobs or not logprobs.get("text_offset"):
            raise UserError(
                "this server returns no log-probs of a prompt (`echo`), which `score` needs; "
                "vLLM and an in-process model do"
            )
        ends = [*logprobs["text_offset"][1:], len(choice["text"])]
        logps = zip(ends, logprobs["token_logprobs"], strict=True)
        scores.append(tuple(logp for end, logp in logps if end > len(str(request.prompt))))
    return tuple(scores)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value


def _unreachable(error: openai.APIConnectionError) -> bool:
    """Whether no connection came about, unlike one that was dropped."""
    # By name: which HTTP library stands below is the client's affair and changes with its version.
    return type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")


def _retry_after(response: Any) -> float | None:
    """Seconds a server asks to wait: a number, or a date to wait for."""
    header = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(header))
    except ValueError:
        pass  # then it is a date, or nothing
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
