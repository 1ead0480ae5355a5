"""Every way in which a server may answer, and what the user is told."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignment.cli import UserError
from alignment.llm.engine import LLM
from alignment.llm.ledger import Ledger
from alignment.llm.openai import OpenAIBackend
from alignment.llm.pacing import Limits
from alignment.llm.protocol import CallError, Message, Reply, Request, Sampling
from alignment.llm.rows import map_rows
from tests.llm.server import Answer, Body, Script, ScriptedServer, last_words, serve

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
FAST = Limits(attempts=4, backoff=0.0)


def chat(
    url: str, sampling: Sampling | None = None, model: str = "tiny", **options: Any
) -> tuple[Reply, LLM]:
    async def once() -> tuple[Reply, LLM]:
        async with LLM(OpenAIBackend(model, url, **options), limits=FAST) as llm:
            return await llm.chat(HELLO, sampling), llm

    return asyncio.run(once())


def fails(script: Script, model: str = "tiny", **options: Any) -> str:
    """The outcome of a call that gives no answer."""
    with serve(script) as server, pytest.raises(CallError) as caught:
        chat(server.url, model=model, **options)
    return caught.value.outcome


def user_error(script: Script, model: str = "tiny", **options: Any) -> str:
    with serve(script, models=("tiny-a", "tiny-b")) as server, pytest.raises(UserError) as caught:
        chat(server.url, model=model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(server.url, "URL")


def test_a_chat_is_sent_and_read_as_the_protocol_has_it():
    with serve([Answer("hi")]) as server:
        sampling = Sampling(0.5, 0.9, max_tokens=7, stop=("END",), extra={"min_p": 0.1})
        reply, llm = chat(server.url, sampling)
    assert reply == Reply("hi", "stop", 3, 2)
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": HELLO,
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 7,
            "stop": ["END"],
            "min_p": 0.1,
        }
    ]
    assert (llm.usage.prompt_tokens, llm.usage.completion_tokens) == (3, 2)


def test_a_seed_is_sent_as_the_seed_of_this_very_call():
    with serve([Answer("hi")]) as server:
        chat(server.url, Sampling(seed=1))
        chat(server.url, Sampling(seed=1))
        chat(server.url, Sampling(seed=2))
    first, again, other = (body["seed"] for body in server.bodies)
    assert first == again != other


def test_text_is_completed_without_a_chat():
    async def complete(url: str) -> Reply:
        async with LLM(OpenAIBackend("tiny", url), limits=FAST) as llm:
            return await llm.complete("once upon", Sampling(max_tokens=2))

    with serve([Answer(" a time")]) as server:
        assert asyncio.run(complete(server.url)).text == " a time"
    assert server.bodies == [{"model": "tiny", "prompt": "once upon", "max_tokens": 2}]


TOP = {
    "content": [
        {
            "token": "A",
            "logprob": -0.1,
            "top_logprobs": [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.4}],
        }
    ]
}


def test_top_logprobs_are_returned_for_each_position():
    with serve([Answer("A", choice={"logprobs": TOP})]) as server:
        reply, _ = chat(server.url, Sampling(top_logprobs=2))
    assert reply.top_logprobs == ({"A": -0.1, "B": -2.4},)
    assert (server.bodies[0]["logprobs"], server.bodies[0]["top_logprobs"]) == (True, 2)


def test_a_server_that_ignores_the_wish_for_logprobs_is_seen_to():
    with serve([Answer("A", choice={"logprobs": None})]) as server:
        reply, _ = chat(server.url, Sampling(top_logprobs=2))
    assert reply.top_logprobs is None


def scored(url: str) -> tuple[tuple[float, ...], ...]:
    async def score() -> tuple[tuple[float, ...], ...]:
        async with LLM(OpenAIBackend("tiny", url), limits=FAST) as llm:
            return await llm.score("ab ", ["cd", "e f"])

    return asyncio.run(score())


def test_scores_are_those_of_the_echoed_tokens_beyond_the_prompt():
    """The texts are `ab cd` and `ab e f`; the prompt ends at character 3.

    In the second the token ` e` straddles that end and counts as continuation.
    """
    choices = [
        {
            "index": 1,
            "text": "ab e f",
            "logprobs": {"text_offset": [0, 2, 4], "token_logprobs": [None, -2.0, -3.0]},
        },
        {
            "index": 0,
            "text": "ab cd",
            "logprobs": {"text_offset": [0, 3], "token_logprobs": [None, -1.0]},
        },
    ]
    raw = json.dumps({"choices": choices}).encode()
    with serve([Answer(raw=raw)]) as server:
        assert scored(server.url) == ((-1.0,), (-2.0, -3.0))
    assert server.bodies[0]["prompt"] == ["ab cd", "ab e f"]
    assert (server.bodies[0]["echo"], server.bodies[0]["max_tokens"]) == (True, 0)


@pytest.mark.parametrize("logprobs", [None, {"content": [{"token": "x", "logprob": -1.0}]}])
def test_a_server_that_cannot_score_is_named(logprobs: Any):
    """TGI ignores `echo`; llama.cpp does too, and has log-probs of its answer alone."""
    answer = Answer("x", choice={"logprobs": logprobs})
    with serve([answer]) as server, pytest.raises(UserError, match="no log-probs of a prompt"):
        scored(server.url)


def test_a_server_that_must_write_to_score_is_a_failed_call():
    said = {"object": "error", "message": "max_tokens must be at least 1, got 0"}
    answer = Answer(status=400, error=said)
    with serve([answer]) as server, pytest.raises(CallError, match="must be at least 1") as caught:
        scored(server.url)
    assert caught.value.outcome == "failed"


def test_log_probs_of_a_completion_are_read_in_either_form():
    """OpenAI and vLLM list them by position; llama.cpp answers as for a chat."""
    top = [{"A": -0.1, "B": -2.4}]
    for logprobs in ({"top_logprobs": top}, TOP):
        with serve([Answer("A", choice={"logprobs": logprobs})]) as server:

            async def complete(url: str = server.url) -> Reply:
                async with LLM(OpenAIBackend("tiny", url), limits=FAST) as llm:
                    return await llm.complete("a", Sampling(top_logprobs=2))

            assert asyncio.run(complete()).top_logprobs == tuple(top)


NULL = {"content": None}


@pytest.mark.parametrize("reason", ["stop", "eos_token", "stop_sequence", "end_turn", "EOS", None])
def test_every_servers_word_for_an_end_is_an_answer(reason: Any):
    """TGI says `eos_token` and `stop_sequence`; some servers say nothing."""
    with serve([Answer("hi", finish_reason=reason)]) as server:
        assert chat(server.url)[0].outcome == "answered"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer("half an", finish_reason="abort"), "failed"),  # vLLM, SGLang
        (Answer("half an", finish_reason="error"), "failed"),  # OpenRouter
        (Answer("", finish_reason="insufficient_system_resource"), "failed"),  # DeepSeek
        (Answer("half an", finish_reason="model_length"), "truncated"),  # Mistral
        (Answer("half an", finish_reason="MAX_TOKENS"), "truncated"),  # Gemini behind a proxy
        (Answer("no", finish_reason="SAFETY"), "refused"),
        (Answer("", message=NULL, finish_reason="tool_calls"), "unparseable"),
        (Answer("hm", finish_reason="something new"), "unparseable"),
        (Answer("", message=NULL), "unparseable"),
        (Answer("", message={**NULL, "reasoning_content": "so"}), "unparseable"),  # DeepSeek, vLLM
        (Answer("", message={**NULL, "reasoning": "so"}, finish_reason="length"), "truncated"),
        (Answer(raw=b'{"choices": [], "usage": null}'), "unparseable"),
        (Answer(raw=b'{"error": {"code": 502, "message": "upstream"}}'), "failed"),  # OpenRouter
        (Answer(raw=b'{"error": {"code": 429, "message": "slow down"}}'), "rate_limited"),
        (Answer(raw=b'{"error": "out of memory", "error_type": "generation"}'), "failed"),  # TGI
        (Answer(status=422, error={"error": "too long", "error_type": "validation"}), "failed"),
        (Answer(status=503, error={"error": {"message": "Loading model"}}), "failed"),  # llama.cpp
        (Answer(status=400, error={"error": {"code": "content_filter"}}), "refused"),  # Azure
        (Answer(status=400, error={"error": {"code": "invalid_prompt"}}), "refused"),  # OpenAI
    ],
)
def test_no_servers_failure_is_taken_for_an_answer(answer: Answer, expected: str):
    assert fails([answer]) == expected


def test_a_reasoning_models_answer_is_its_content_alone():
    with serve([Answer("4", message={"reasoning_content": "2 and 2"})]) as server:
        assert chat(server.url)[0].text == "4"


def test_content_in_parts_is_the_text_of_its_parts():
    parts = [{"type": "thinking", "thinking": []}, *({"type": "text", "text": t} for t in "ab")]
    with serve([Answer("", message={"content": parts})]) as server:
        assert chat(server.url)[0].text == "ab"


def test_an_answer_that_cannot_be_used_counts_its_tokens():
    with serve([Answer("", message=NULL)]) as server:
        backend = OpenAIBackend("tiny", server.url)
        with pytest.raises(CallError) as caught:
            asyncio.run(backend.ask(Request("chat", "hello")))
    assert (caught.value.prompt_tokens, caught.value.completion_tokens) == (3, 2)


def test_an_answer_without_usage_counts_no_tokens():
    raw = b'{"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}'
    with serve([Answer(raw=raw)]) as server:
        assert chat(server.url)[0] == Reply("hi", "stop", None, None)


def test_a_model_that_wants_max_completion_tokens_gets_them():
    said = {"error": {"message": "Unsupported: 'max_tokens'. Use 'max_completion_tokens' instead."}}

    def script(index: int, body: Body) -> Answer:
        return Answer(status=400, error=said) if "max_tokens" in body else Answer("ok")

    with serve(script) as server:
        assert chat(server.url, Sampling(max_tokens=7))[0].text == "ok"
    assert server.bodies[-1]["max_completion_tokens"] == 7


def test_an_error_that_names_a_model_which_is_there_is_a_failed_call():
    said = {"error": {"message": "tiny takes 8 tokens at most"}}
    assert fails([Answer(status=400, error=said)]) == "failed"


@pytest.mark.parametrize(
    "trouble",
    [
        Answer(status=500, error={"error": {"message": "oops"}}),
        Answer(status=503, raw=b"<html>busy</html>", content_type="text/html"),
        Answer(status=429, headers={"retry-after": "0"}),
        Answer(drop=True),
        Answer(raw=b'{"choices": [{"mess'),
        Answer(raw=b""),
    ],
    ids=["500", "503 in html", "429", "dropped", "truncated json", "empty"],
)
def test_trouble_that_may_pass_is_asked_again(trouble: Answer):
    with serve([trouble, trouble, Answer("at last")]) as server:
        reply, llm = chat(server.url)
    assert (reply.text, llm.usage.requests, llm.usage.calls) == ("at last", 3, 1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(status=500), "failed"),
        (Answer(status=429), "rate_limited"),
        (Answer(drop=True), "failed"),
        (Answer(raw=b'{"choices": [{"mess'), "unparseable"),
        (Answer("I would rather not", finish_reason="content_filter"), "refused"),
        (Answer("", message={"refusal": "I cannot", "content": None}), "refused"),
        (Answer("cut of", finish_reason="length"), "truncated"),
        (Answer(status=400, error={"error": {"message": "context is 8 tokens"}}), "failed"),
    ],
)
def test_a_call_without_an_answer_has_a_typed_outcome(answer: Answer, expected: str):
    assert fails([answer]) == expected


def test_a_bad_request_is_not_repeated():
    with serve([Answer(status=400, error={"detail": "too long"})]) as server:
        with pytest.raises(CallError, match=r"answered 400: .*too long"):
            chat(server.url)
        assert len(server.bodies) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_respected(form: str):
    asked = "0.3" if form == "seconds" else formatdate(time.time() + 1.3, usegmt=True)
    with serve([Answer(status=429, headers={"retry-after": asked}), Answer("ok")]) as server:
        started = time.monotonic()
        chat(server.url)
        assert time.monotonic() - started >= (0.3 if form == "seconds" else 0.2)


def test_a_url_that_does_not_answer_is_told_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(UserError, match=rf"cannot reach {url} .*is the server running\?"):
            chat(url)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(raw=b"<html>Welcome</html>", content_type="text/html"),
        Answer(raw=b'{"hello": "world"}'),
        Answer(raw=b"[1, 2]"),
        Answer(raw=b'{"choices": [{"message": {"content": 5}}]}'),
    ],
)
def test_a_url_that_answers_something_else_is_told_at_once(answer: Answer):
    assert "URL does not answer as an OpenAI-compatible API: " in user_error([answer])


@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_address_without_the_api_is_told_with_a_hint(status: int):
    assert user_error([Answer(status=status)]) == (
        f"URL/chat/completions answered {status}; the address of an OpenAI-compatible API "
        "usually ends in /v1"
    )


def test_what_is_no_url_is_refused():
    with pytest.raises(UserError, match="`localhost:8000` is no URL"):
        OpenAIBackend("tiny", "localhost:8000")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=404, error={"error": {"message": "no", "code": "model_not_found"}}),
        Answer(status=400, error={"detail": "Server is pinned to '/x'; requested 'tiny_a'."}),
    ],
)
def test_a_model_the_server_lacks_is_told_with_the_nearest_it_has(answer: Answer):
    told = user_error([answer], model="tiny_a")
    assert told == "URL has no model `tiny_a`; did you mean `tiny-a`?"


def test_a_refused_key_is_told_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-123")
    wrong = Answer(status=401, error={"error": {"message": "bad key secret-123"}})
    told = user_error([wrong], api_key_env="JUDGE_KEY")
    assert told == "URL refuses the API key (401); the key was read from JUDGE_KEY"


def test_a_key_stays_out_of_messages_and_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("JUDGE_KEY", "secret-123")
    leaky = Answer(status=400, error={"error": {"message": "your key secret-123 is too long"}})

    async def once(url: str) -> None:
        ledger = Ledger(tmp_path / "calls.ledger")
        async with LLM(OpenAIBackend("tiny", url, "JUDGE_KEY"), ledger, FAST) as llm:
            await llm.chat(HELLO)

    with serve([leaky]) as server, pytest.raises(CallError) as caught:
        asyncio.run(once(server.url))
    assert server.headers[0]["authorization"] == "Bearer secret-123"
    assert "your key *** is" in str(caught.value)
    for path in tmp_path.iterdir():
        assert b"secret-123" not in path.read_bytes()


def test_the_key_of_openai_goes_to_no_other_host(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-123")
    with serve([Answer("ok")]) as server:
        chat(server.url)
    assert "secret-123" not in str(server.headers)


def test_a_missing_key_is_told_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="the environment variable OPENAI_API_KEY is not set"):
        OpenAIBackend("gpt")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("secret-1 23", "JUDGE_KEY holds no API key: there is white space or no ASCII in it"),
        ("schlüssel-123", "JUDGE_KEY holds no API key"),
        ("  ", "the environment variable JUDGE_KEY is not set"),
    ],
)
def test_a_value_that_is_no_key_is_refused_unseen(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    """Sent as a header it would come back in the HTTP library's message."""
    monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(UserError, match=message) as caught:
        OpenAIBackend("tiny", "http://localhost:1/v1", "JUDGE_KEY")
    assert value not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("http://user:secret-123@localhost/v1", None),
        ("http://localhost/v1?key=secret-123", None),
        ("http://localhost/v1", "secret-123"),
    ],
)
def test_a_key_in_an_option_is_refused_unseen(url: str, variable: str | None):
    with pytest.raises(UserError, match="environment variable") as caught:
        OpenAIBackend("tiny", url, variable)
    assert "secret-123" not in str(caught.value)


def test_a_line_end_behind_a_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-123\n")
    with serve([Answer("ok")]) as server:
        chat(server.url, api_key_env="JUDGE_KEY")
    assert server.headers[0]["authorization"] == "Bearer secret-123"


def test_an_echoed_key_is_no_part_of_an_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-123")
    with serve([Answer("you sent secret-123")]) as server:
        assert chat(server.url, api_key_env="JUDGE_KEY")[0].text == "you sent ***"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed_and_told_in_one_line(status: int):
    with serve([Answer("ok")]) as other:
        away = Answer(status=status, headers={"location": f"{other.url}/chat/completions"})
        assert user_error([away]) == (
            f"URL redirects to {other.url}/chat/completions ({status}), where no key is carried; "
            "if you trust it, give that address"
        )
        assert other.bodies == []


def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    files = (tmp_path / "key.pem", tmp_path / "cert.pem")
    command = [openssl, "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt"]
    command += ["ec_paramgen_curve:prime256v1", "-subj", "/CN=localhost", "-keyout", str(files[0])]
    command += ["-out", str(files[1]), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    http.socket = context.wrap_socket(http.socket, server_side=True)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises(UserError, match=r"shows no certificate to be trusted .*SSL_CERT_FILE"):
            chat(f"https://localhost:{http.server_address[1]}/v1")
    finally:
        http.shutdown()
        http.server_close()


def test_the_key_of_the_ledger_does_not_depend_on_the_port():
    first, second = (OpenAIBackend("m", f"http://localhost:{port}/v1") for port in (1, 2))
    assert (first.provider, first.fingerprint) == (second.provider, second.fingerprint)


def test_a_model_named_by_its_folder_is_told_apart_by_its_weights(tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = OpenAIBackend(str(tmp_path), "http://localhost:1/v1").fingerprint
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert OpenAIBackend(str(tmp_path), "http://localhost:1/v1").fingerprint != before != ""


def job(server: ScriptedServer, folder: Path, rows: int, stop_after: int | None = None) -> Path:
    """Maps one call over rows; raises UserError after some calls, as a crash would."""
    answered = 0

    async def run() -> None:
        with Ledger(folder / "calls.ledger") as ledger:
            backend = OpenAIBackend("tiny", server.url)
            async with LLM(backend, ledger, Limits(4, 4, 0.0)) as llm:

                async def build(row: Any) -> list[dict[str, str]]:
                    nonlocal answered
                    reply = await llm.chat([{"role": "user", "content": row["prompt"]}])
                    answered += 1
                    if answered == stop_after:
                        raise UserError("stopped half way")
                    return [{"prompt": row["prompt"], "response": reply.text}]

                await map_rows(
                    ((f"in:{i}", {"prompt": f"question {i}"}) for i in range(rows)),
                    build,
                    folder / "out.jsonl",
                    window=8,
                )

    asyncio.run(run())
    return folder / "out.jsonl"


def test_every_row_of_a_flaky_server_ends_as_data_or_as_a_typed_reject(tmp_path: Path):
    """Row i meets trouble number i modulo 6 at its first request; refusals and cut answers stay."""
    troubles = [
        Answer("fine"),
        Answer(status=500),
        Answer(status=429, headers={"retry-after": "0"}),
        Answer(drop=True),
        Answer("no", finish_reason="content_filter"),
        Answer("cut", finish_reason="length"),
    ]
    met: set[str] = set()

    def script(index: int, body: Body) -> Answer:
        words = last_words(body)
        trouble = troubles[int(words.split()[-1]) % len(troubles)]
        lasting = trouble.status == 200 and not trouble.drop
        if words in met and not lasting:
            return Answer("after all")
        met.add(words)
        return trouble

    with serve(script) as server:
        output = job(server, tmp_path, 60)
    kept = [json.loads(line) for line in output.read_text().splitlines()]
    rejects = (tmp_path / "out.jsonl.rejects.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in rejects]
    assert (len(kept), reasons.count("refused"), reasons.count("truncated")) == (40, 10, 10)
    assert sum(row["response"] == "after all" for row in kept) == 30
    assert len(server.bodies) == 60 + 30


def test_stopped_half_way_and_run_again_the_server_sees_no_call_twice(tmp_path: Path):
    def script(index: int, body: Body) -> Answer:
        return Answer(f"re: {last_words(body)}")

    with serve(script) as server:
        with pytest.raises(UserError, match="stopped half way"):
            job(server, tmp_path, 40, stop_after=17)
        before = len(server.bodies)
        output = job(server, tmp_path, 40)
        asked = [last_words(body) for body in server.bodies]
    assert 17 <= before < 40
    assert sorted(asked) == sorted(f"question {index}" for index in range(40))
    assert [json.loads(line)["response"] for line in output.read_text().splitlines()] == [
        f"re: question {index}" for index in range(40)
    ]
