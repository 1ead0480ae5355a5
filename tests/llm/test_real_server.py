"""A real server as policy and judge: stopped half way and run again, it is asked nothing twice."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import LlamaForCausalLM

from alignment.core.rows import read_rows
from tests.tiny import EOS_ID, VOCAB_SIZE, tiny_config, tiny_tokenizer

pytestmark = pytest.mark.slow

PROMPTS = 30
SAYS = "## Revised answer\nA"
"""An answer, a revision of any answer, and a verdict."""


def save_parrot(folder: Path) -> Path:
    """A model that says the same to everything, as one token.

    Its layers add nothing to the embedding of the last token, and its head is a table of what
    follows that token: `SAYS` after the end of the chat template, the end of the turn after `SAYS`.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([SAYS])
    size = VOCAB_SIZE + 8  # as the heads of attention want it
    config = tiny_config(hidden_size=size, vocab_size=size, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    (words,) = tokenizer.encode(SAYS)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        model.lm_head.weight[words, prompt[-1]] = 9.0
        model.lm_head.weight[EOS_ID, words] = 9.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Served(NamedTuple):
    """A running server."""

    url: str
    model: str
    log: Path

    def calls(self) -> int:
        """Chats that the server has answered."""
        return self.log.read_text().count('"POST /v1/chat/completions HTTP/1.1" 200')


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    folder = save_parrot(tmp_path_factory.mktemp("parrot"))
    log = folder / "serve.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--device", "cpu", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, log.read_text()[-2000:]
                time.sleep(0.25)
        yield Served(f"http://127.0.0.1:{port}/v1", str(folder), log)
    finally:
        server.terminate()
        server.wait(30)


def alignment(*argv: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "alignment", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=os.environ.copy())


def finished_calls(ledger: Path) -> int:
    try:
        db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
        return int(db.execute("SELECT count(*) FROM calls").fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # not there yet


def stop_half_way_and_rerun(served: Served, ledger: Path, calls: int, *argv: object) -> str:
    """Interrupts a command after a third of its calls, runs it again, and counts its calls."""
    before = served.calls()
    job = alignment(*argv)
    while job.poll() is None and finished_calls(ledger) < calls // 3:
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert errors.splitlines()[-1].startswith("error: interrupted: ")
    assert calls // 3 <= finished_calls(ledger) < calls
    job = alignment(*argv, "--resume")
    output, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert served.calls() - before == calls
    return output


def test_policy_and_judge_stopped_half_way_repeat_no_call(served: Served, tmp_path: Path):
    """The judge ends with `A` like the policy, whichever answer comes first."""
    prompts, answers, baseline = (tmp_path / name for name in ("p.jsonl", "a.jsonl", "b.jsonl"))
    rows = [{"prompt": f"question {index}"} for index in range(PROMPTS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    baseline.write_text("".join(json.dumps({**row, "response": "B"}) + "\n" for row in rows))
    model = ("--model", served.model, "--base-url", served.url, "--concurrency", 2)
    stop_half_way_and_rerun(
        *(served, Path(f"{answers}.ledger"), PROMPTS),
        *("generate", "--prompts", prompts, "--output", answers, *model),
    )
    made = [row for _, row in read_rows(answers)]
    assert [row["prompt"] for row in made] == [row["prompt"] for row in rows]
    assert {row["response"] for row in made} == {SAYS}
    assert made[0]["meta"]["fingerprint"]

    verdicts = tmp_path / "out" / "verdicts.jsonl"
    judge = ("--judge-model", served.model, "--judge-url", served.url, "--concurrency", 2)
    output = stop_half_way_and_rerun(
        *(served, Path(f"{verdicts}.ledger"), 2 * PROMPTS),
        *("eval", "winrate", "--answers", answers, "--baseline", baseline),
        *("--output", verdicts.parent, *judge),
    )
    results = json.loads((verdicts.parent / "results.json").read_text())
    assert (results["win_rate"], results["n_prompts"], results["unjudged"]) == (0.5, PROMPTS, 0)
    assert results["position_consistency"] == 0.0
    assert output.startswith("win rate 0.500, 95% interval [0.500, 0.500]")


def test_a_quickstart_stopped_half_way_repeats_no_call(served: Served, tmp_path: Path):
    """The policy runs in the command, reviser and judge on the server; it is stopped while pairs
    are built. The server has answered what the ledgers hold, and once when it was looked up."""
    prompts, run = tmp_path / "p.jsonl", tmp_path / "run"
    rows = [{"prompt": f"question {index}"} for index in range(PROMPTS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        *("quickstart", "--output", run, "--model", served.model, "--prompts", prompts),
        *("--judge-url", served.url, "--judge-model", served.model),
        *("--held-out-prompts", 6, "--steps", 2, "--batch-size", 4),
        *("--max-tokens", 8, "--learning-rate", 0.01),
    ]
    ledgers = [run / f"{name}.jsonl.ledger" for name in ("pairs", "judged/verdicts")]
    before = served.calls()
    job = alignment(*words)
    while job.poll() is None and finished_calls(ledgers[0]) < 5:
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert errors.rstrip().endswith("run the same command to go on")
    assert 5 <= finished_calls(ledgers[0]) < PROMPTS - 6
    job = alignment(*words)
    _, errors = job.communicate(timeout=240)
    assert job.returncode == 0, errors
    assert finished_calls(ledgers[0]) == PROMPTS - 6
    assert served.calls() - before == 1 + sum(map(finished_calls, ledgers))
    results = json.loads((run / "results.json").read_text())
    assert (results["pairs"], results["n_prompts"]) == (PROMPTS - 6, 6)


def test_a_model_that_the_server_lacks_is_told_in_one_line(served: Served, tmp_path: Path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "p"}\n')
    job = alignment(
        *("generate", "--prompts", prompts, "--output", tmp_path / "a.jsonl"),
        *("--model", "other", "--base-url", served.url),
    )
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 2
    assert errors.startswith(f"error: {served.url} has no model `other`")
    assert errors.count("\n") == 1
    assert not (tmp_path / "a.jsonl").exists()
