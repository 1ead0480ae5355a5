"""A hidden key is in no message, log or traceback; a placeholder is left alone."""

import io
import logging

import pytest

from alignment.llm import redaction
from alignment.llm.redaction import hide, redact

KEY = "sk-distinctive-0123456789"


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch):
    """Other tests see neither the key nor the factory."""
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(redaction, "_hidden", set())
    yield
    logging.setLogRecordFactory(factory)


def logged(write: logging.Logger, *args: object, **kwargs: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    write.addHandler(handler)
    write.error(*args, **kwargs)  # type: ignore[arg-type]
    write.removeHandler(handler)
    return stream.getvalue()


def test_a_key_is_left_out_of_every_libraries_log_lines():
    hide(KEY)
    logger = logging.getLogger("some.library")
    assert logged(logger, "headers %s", {"authorization": f"Bearer {KEY}"}) == (
        "headers {'authorization': 'Bearer ***'}\n"
    )


def test_a_key_is_left_out_of_a_logged_traceback():
    hide(KEY)
    try:
        raise ValueError(f"illegal header {KEY}")
    except ValueError as error:
        told = logged(logging.getLogger("some.library"), "failed", exc_info=error)
    assert "ValueError: illegal header ***" in told
    assert KEY not in told


def test_a_placeholder_is_no_secret():
    hide("EMPTY")
    assert redact("EMPTY") == "EMPTY"
