"""Checksums of model folders, which tell apart models that share a name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_KINDS = frozenset({".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"})
_LEFT_OUT = frozenset(
    {"run.json", "trainer_state.json", "training_args.bin", "optimizer.bin", "scheduler.bin"}
)
"""What tells how a model was made, or goes on making it: equal weights answer alike."""


def fingerprint(folder: str | Path) -> str:
    """A checksum of all that changes a model's answers: weights, adapter, tokenizer, settings.

    Args:
        folder: As `save_pretrained` writes it; for an adapter its base model is included.

    Returns:
        16 hexadecimal digits; the same wherever the folder lies.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in _KINDS and path.name not in _LEFT_OUT:
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name}\0{checksum}\n".encode())
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        base = Path(json.loads(adapter.read_text()).get("base_model_name_or_path") or "")
        digest.update((fingerprint(base) if base.is_dir() else str(base)).encode())
    return digest.hexdigest()[:16]


def identity(model: str, revision: str | None) -> tuple[str, str]:
    """The name and the fingerprint of a model, without loading it.

    Args:
        model: A folder, or a name that is known elsewhere.
        revision: What the user tells models of one name apart by; goes before the checksum.
    """
    if not Path(model).is_dir():
        return model, revision or ""
    return Path(model).resolve().name, revision or fingerprint(model)
