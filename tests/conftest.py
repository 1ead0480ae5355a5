"""What all tests share: no network, no telemetry, one thread, tiny models, shared files."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile

# Prepared data and stored references of another run must not answer for this one.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="alignment_tests_")
os.environ["HF_DATASETS_CACHE"] = os.path.join(os.environ["HF_HOME"], "datasets")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of larger files outside the project; tests that ask for it skip without it."""
    folder = Path(os.environ.get("ALIGNMENT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no shared files: set ALIGNMENT_SHARED to their folder")
    return folder.resolve()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A fresh tiny tokenizer with a chat template."""
    return tiny_tokenizer()


@pytest.fixture
def llama() -> PreTrainedModel:
    """A fresh tiny Llama in float32, in eval mode."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer; read only."""
    return save_tiny(tmp_path_factory.mktemp("tiny_llama"))


def pytest_collection_finish() -> None:
    """Takes what libraries have made on import out of collections, of which each run forces one.

    Walking through a million objects that stay anyway was a quarter of a small run's time.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Leaves nothing behind."""
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU on a machine without one."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
