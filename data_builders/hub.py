"""Pushing a data set to the Hub, as `datasets` does it, with its card."""

from __future__ import annotations

from pathlib import Path

from alignment.cli import UserError


def check_repo(repo: str) -> None:
    """Checks the name of a repository before any work is done for it.

    Raises:
        UserError: It is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"`--push-to-hub {repo}`: {str(error).splitlines()[0]}") from None


def push(output: Path, repo: str, card: str, private: bool | None) -> None:
    """Pushes a data set; `datasets` adds the features of its rows to the card.

    Args:
        output: The file of rows.
        repo: `NAME` or `OWNER/NAME`; created where missing.
        card: Text of its README.md.
        private: Whether a repository that is created is private; None leaves it to the account.

    Raises:
        UserError: It cannot be pushed; the data stays where it is.
    """
    import datasets
    from huggingface_hub import DatasetCard, create_repo

    kind = "parquet" if output.suffix == ".parquet" else "json"
    try:
        rows = datasets.load_dataset(kind, data_files={"train": str(output)})
        create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        DatasetCard(card).push_to_hub(repo)
        rows.push_to_hub(repo, private=private)
    except Exception as error:  # its client raises what its network stack raises
        told = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"{output} is built, but cannot be pushed to {repo}: {told}; run the same command with "
            "`--resume` to push it, which asks no model anything again"
        ) from None
