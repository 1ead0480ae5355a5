"""Any server that speaks OpenAI's protocol, through the `openai` client."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import openai

from alignment.cli import UserError, nearest
from alignment.llm.fingerprint import identity
from alignment.llm.prompts import as_messages, shorten
from alignment.llm.protocol import CallError, Outcome, Reply, Request, Verb
from alignment.llm.redaction import hide, redact, redact_all

OPENAI_HOST = "api.openai.com"
OPENAI_URL = f"https://{OPENAI_HOST}/v1"
_SHARING = 16
"""Most requests in flight over one client: for each it looks at all of its connections."""
_PASSING = frozenset({408, 409, 425, 429})
_ENDED = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn"})
_ENDS: Mapping[str, str] = {
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_length"), "length"),
    **dict.fromkeys(("content_filter", "safety", "refusal"), "content_filter"),
}
"""What servers call an answer that was cut or withheld -> what the protocol calls it."""
_BROKEN_OFF = frozenset({"abort", "error", "cancelled", "insufficient_system_resource", "load"})
_POLICY = ("content", "invalid_prompt")
"""Beginnings of the error codes of a provider that objects to a prompt."""


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

    Attributes:
        client: Sends requests; it neither retries nor follows redirects.

    Raises:
        UserError: The named variable holds no key, or the address is no URL or holds a password.
    """

    verbs: frozenset[Verb] = frozenset({"chat", "complete", "score"})
    hint = "the address of an OpenAI-compatible API usually ends in /v1"
    """What to check where nothing behind the address knows the path."""

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI_URL,
        api_key_env: str | None = None,
        revision: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        address = urlsplit(base_url)
        if address.username or address.password or address.query:
            raise UserError(
                "the server's address holds a password or a query; put the key into an "
                "environment variable and name it by `--api-key-env`"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UserError(f"`{base_url}` is no URL; it looks like http://localhost:8000/v1")
        self.model = model
        self.provider = address.hostname
        _, self.fingerprint = identity(model, revision)
        self.url = base_url
        at_openai = address.hostname == OPENAI_HOST
        self._key_name = "OPENAI_API_KEY" if api_key_env is None and at_openai else api_key_env
        self._limit = "max_completion_tokens" if at_openai else "max_tokens"
        self._key = read_key(self._key_name) if self._key_name else "none"
        self._timeout = openai.Timeout(timeout, connect=min(timeout, 10.0))
        self.client = self._new_client()
        self._clients = {self.client: 0}

    async def ask(self, request: Request) -> Reply:
        """Sends one request."""
        path, body = self.body(request)
        try:
            answer = await self._post(path, body)
        except openai.APIStatusError as error:
            if "max_tokens" in body and "max_completion_tokens" in error.response.text:
                self._limit = "max_completion_tokens"  # a model of OpenAI's behind another address
                return await self.ask(request)
            raise await self.failure(
                error.status_code, error.body, error.response.text, path, error.response.headers
            ) from None
        except openai.APIConnectionError as error:
            raise self.away(error) from None
        except ValueError as error:
            told = f"{self.url} answered with broken JSON: {error}"
            raise CallError("unparseable", told, retry=True) from None
        if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
            said = answer["error"]
            code = said.get("code") if isinstance(said, dict) else None
            status = code if isinstance(code, int) and code >= 400 else 500
            raise await self.failure(status, said, str(said), path)
        return self.read(request, answer)

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        """An answer over the first client that has room; a client's requests share connections."""
        client = next((c for c, busy in self._clients.items() if busy < _SHARING), None)
        if client is None:
            client = self._new_client()
        self._clients[client] = self._clients.get(client, 0) + 1
        try:
            return await client.post(path, cast_to=object, body=body)
        finally:
            self._clients[client] -= 1

    def _new_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self.url,
            max_retries=0,  # the engine retries
            timeout=self._timeout,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    async def close(self) -> None:
        """Closes the connections."""
        for client in self._clients:
            await client.close()

    def body(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path and the JSON of a request.

        Raises:
            UserError: The protocol has no such request.
        """
        path, body = _body(request, self.model)
        if request.verb == "chat" and "max_tokens" in body:
            body[self._limit] = body.pop("max_tokens")
        return path, body

    def read(self, request: Request, answer: Any) -> Reply:
        """The reply in the JSON of an answer, in which no key is left.

        Raises:
            CallError: There is none.
        """
        answer = redact_all(answer)
        try:
            return _reply(request, answer)
        except CallError as error:
            error.prompt_tokens, error.completion_tokens = _tokens(answer)  # which are billed
            raise
        except (KeyError, TypeError, AttributeError, IndexError):
            told = f"{self.url} does not answer as an OpenAI-compatible API: {shorten(answer)}"
            raise CallError("unparseable", told, retry=True, unreachable=True) from None

    def away(self, error: openai.APIConnectionError) -> CallError:
        """What it means that there was no response."""
        # By name: which HTTP library stands below is the client's affair and changes with its
        # version. A connection that never came about, unlike one that was dropped.
        never = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
        cause = redact(str(error.__cause__))
        if isinstance(error, openai.APITimeoutError):
            told = f"{self.url} did not answer in time"
        elif "CERTIFICATE_VERIFY_FAILED" in cause:
            told = (
                f"{self.url} shows no certificate to be trusted ({cause}); if it is your own, "
                "name the authority that signed it by SSL_CERT_FILE"
            )
        else:
            told = f"cannot reach {self.url} ({cause}); is the server running?"
        return CallError("failed", told, retry=True, unreachable=never)

    async def failure(
        self,
        status: int,
        body: Any,
        text: str,
        path: str,
        headers: Mapping[str, str] | None = None,
    ) -> Exception:
        """What a status other than 200 means: something for the user to mend, or a failed call.

        Args:
            status: HTTP status.
            body: The error as JSON has it, of any shape.
            text: The error as text, for what JSON does not tell.
            path: What was asked for.
            headers: Of the response, names in lower case.
        """
        body, headers = redact_all(body) if isinstance(body, dict) else {}, headers or {}
        said = str(body.get("message") or body.get("detail") or redact(text))
        code, told = str(body.get("code")), f"{self.url} answered {status}: {shorten(said)}"
        if status in (401, 403):
            read = f"read from {self._key_name}" if self._key_name else "not sent: `--api-key-env`"
            return UserError(f"{self.url} refuses the API key ({status}); the key was {read}")
        if status == 429 and code == "insufficient_quota":
            return UserError(f"{self.url} says that the quota is used up")
        if status in _PASSING or (status >= 500 and status != 501):
            outcome: Outcome = "rate_limited" if status == 429 else "failed"
            return CallError(outcome, told, retry=True, retry_after=_retry_after(headers))
        if self.model in said or code == "model_not_found":
            names = await self._models()
            if self.model not in names:
                return UserError(
                    f"{self.url} has no model `{self.model}`{_hint(self.model, names)}"
                )
        if 300 <= status < 400:
            place = redact(headers.get("location", "another address"))
            return UserError(
                f"{self.url} redirects to {place} ({status}), where no key is carried; if you "
                "trust it, give that address"
            )
        if status < 300 or status in (404, 405, 501):
            return UserError(f"{self.url}{path} answered {status}; {self.hint}")
        return CallError("refused" if code.startswith(_POLICY) else "failed", told)

    async def _models(self) -> list[str]:
        """The models that the server lists; not every server does."""
        try:
            listed: Any = await self.client.get("/models", cast_to=object)
            return [redact(str(item["id"])) for item in listed["data"]]
        except (openai.OpenAIError, ValueError, KeyError, TypeError):
            return []


def read_key(variable: str) -> str:
    """The key in an environment variable, which no log shows from now on.

    Raises:
        UserError: It is no name of a variable, or the variable holds no key.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
        raise UserError("`--api-key-env` takes the name of an environment variable, not a key")
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"no API key: the environment variable {variable} is not set")
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{variable} holds no API key: there is white space or no ASCII in it")
    hide(key)
    return key


def _body(request: Request, model: str) -> tuple[str, dict[str, Any]]:
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
    tokens = _tokens(answer)
    if not answer["choices"]:
        raise CallError("unparseable", "the answer has no choices", retry=True)
    if request.verb == "score":
        return Reply("", "stop", *tokens, logps=_scores(request, answer["choices"]))
    choice = answer["choices"][0]
    finish_reason = _finish_reason(choice)
    logprobs = choice.get("logprobs") or {}
    top = None
    if logprobs.get("content"):
        top = tuple(
            {item["token"]: item["logprob"] for item in position["top_logprobs"]}
            for position in logprobs["content"]
        )
    elif logprobs.get("top_logprobs"):
        top = tuple(logprobs["top_logprobs"])
    if request.verb == "complete":
        return Reply(_text(choice["text"]), finish_reason, *tokens, top_logprobs=top)
    message = choice["message"]
    if message.get("refusal"):
        return Reply(_text(message["refusal"]), "refusal", *tokens)
    content = message.get("content")
    if content is None and finish_reason not in _ENDS.values():
        thought = message.get("reasoning_content") or message.get("reasoning")
        told = "the model reasoned and then said nothing" if thought else "the answer has no text"
        raise CallError("unparseable", told)
    return Reply(_text(content), finish_reason, *tokens, top_logprobs=top)


def _tokens(answer: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens read and written, None where the server does not say."""
    usage = answer.get("usage") or {}
    return usage.get("prompt_tokens"), usage.get("completion_tokens")


def _finish_reason(choice: Mapping[str, Any]) -> str:
    """Why an answer ended, in the protocol's words where it was cut or withheld.

    Raises:
        CallError: It broke off, called a tool, or ended in a way that is not known to be an end.
    """
    said = choice.get("finish_reason") or "stop"
    reason = str(said).lower()
    if reason in _BROKEN_OFF:
        raise CallError("failed", f"the server broke off the answer ({said})", retry=True)
    if reason not in _ENDED and reason not in _ENDS:
        raise CallError("unparseable", f"the answer ended by `{said}`, which is no end of a text")
    return _ENDS.get(reason, str(said))


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


def _hint(model: str, names: list[str]) -> str:
    near = nearest(model, names)
    return f"; did you mean `{near}`?" if near else f"; it lists {', '.join(names[:5]) or 'none'}"


def _text(value: Any) -> str:
    """The text of a content: text, nothing, or parts of which those of text count."""
    if isinstance(value, list):
        return "".join(_text(part["text"]) for part in value if part["type"] == "text")
    if not isinstance(value, str | None):
        raise TypeError(f"expected text, got {type(value).__name__}")
    return value or ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait: a number, or a date to wait for."""
    header = headers.get("retry-after", "")
    try:
        return max(0.0, float(header))
    except ValueError:
        pass  # then it is a date, or nothing
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None
