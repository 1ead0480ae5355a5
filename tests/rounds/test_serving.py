"""A server lives as long as the loop needs it, and no longer."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from alignment.cli import UserError
from alignment.core.rows import read_rows
from alignment.llm.fingerprint import fingerprint
from alignment.rounds.options import Options
from alignment.rounds.round import Policy, Round
from alignment.rounds.serving import serving
from alignment.rounds.store import Store
from tests.llm.real_server import save_parrot

FILES = f"{sys.executable} -m http.server {{port}} --bind 127.0.0.1 --directory {{model}}"


def answers(url: str) -> bool:
    """Whether anything is there, be it a refusal."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def options(model: Path, prompts: Path, output: Path, serve: str) -> Options:
    return Options(
        method="clair",
        model=str(model),
        prompts=prompts,
        held_out=prompts,
        output=output,
        prompts_per_round=2,
        judge_model="j",
        serve=serve,
        generate={"max_tokens": 4},
    )


@pytest.mark.slow
def test_a_server_is_up_within_the_block_and_gone_after_it(tmp_path: Path):
    with serving(FILES, tmp_path, tmp_path / "server.log") as url:
        assert answers(url)
    assert not answers(url)


def test_a_server_that_ends_or_does_not_exist_is_told(tmp_path: Path):
    log = tmp_path / "server.log"
    with (
        pytest.raises(UserError, match=r"the server ended with 3; see .*server\.log"),
        serving("sh -c 'exit 3' {model} {port}", tmp_path, log),
    ):
        pass
    with (
        pytest.raises(UserError, match="cannot run `no-such-server`"),
        serving("no-such-server {model} {port}", tmp_path, log),
    ):
        pass


@pytest.mark.slow
def test_no_server_outlives_a_loop_that_is_killed(tmp_path: Path):
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from alignment.rounds.serving import serving\n"
        f"with serving({FILES!r}, '.', Path({str(tmp_path / 'log')!r})) as url:\n"
        "    print(url, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert answers(url)
        os.kill(child.pid, signal.SIGKILL)
    give_up = time.monotonic() + 60
    while answers(url) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not answers(url)


def test_a_template_without_its_fields_is_refused():
    with pytest.raises(ValueError, match=r"`serve` must have `\{model\}` and `\{port\}`"):
        options(Path("m"), Path("p"), Path("o"), "server --port {port}")


@pytest.mark.slow
def test_a_real_server_answers_a_round_under_the_models_fingerprint(tmp_path: Path):
    model = save_parrot(tmp_path / "parrot", "Certainly.")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "One?"}\n{"prompt": "Two?"}\n')
    command = Path(sys.executable).with_name("transformers")
    serve = f"{command} serve {{model}} --device cpu --port {{port}}"
    chosen = options(model, prompts, tmp_path / "run", serve)
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    store = Store(chosen.output)
    at = Round(
        1, options=chosen, store=store, policy=Policy(model), prompts=prompts, held_out=prompts
    )
    rows = [row for _, row in read_rows(at.generate(prompts))]
    assert [row["response"] for row in rows] == ["Certainly.", "Certainly."]
    assert {row["meta"]["fingerprint"] for row in rows} == {fingerprint(model)}
    assert store.made[-1].calls.calls == 2
    at.generate(prompts)
    assert store.made[-1] == store.made[-2]
