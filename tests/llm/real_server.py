"""`transformers serve` with a model whose answers are known, and jobs against it."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.tiny import EOS_ID, VOCAB_SIZE, tiny_config, tiny_tokenizer


def save_parrot(folder: Path, *says: str) -> Path:
    """A model that says one of a few texts to everything, each as one token.

    Its layers add nothing to the embedding of the last token, and its head is a table of what
    follows that token: one of the texts after the end of the chat template, all alike likely, and
    the end of the turn after each of them.

    Args:
        folder: Where to.
        *says: The texts. With several, answers are drawn, under the seed of the request.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(says))
    size = VOCAB_SIZE + 8  # as the heads of attention want it
    assert len(says) <= 8
    config = tiny_config(hidden_size=size, vocab_size=size, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).eval()
    words = [token for text in says for token in tokenizer.encode(text)]
    assert len(words) == len(says)
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
    model.generation_config.do_sample = len(says) > 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Served(NamedTuple):
    """A running server."""

    url: str
    model: str
    log: Path

    def calls(self) -> int:
        """Chats and completions that the server has answered."""
        return self.log.read_text().count('completions HTTP/1.1" 200')


@contextmanager
def running(folder: Path) -> Iterator[Served]:
    """Serves the model in a folder until the block ends; skips where the server is not installed.

    Args:
        folder: Of the model; the server's log goes there.
    """
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    log = folder / "serve.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder)]
    command += ["--device", "cpu", "--port", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        give_up = time.monotonic() + 300  # a busy machine takes minutes
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:  # also a timeout while it answers
                assert server.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < give_up, log.read_text()[-2000:]
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
