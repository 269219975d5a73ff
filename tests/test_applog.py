"""Log lines: for people or for programs, and never with a secret."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairvisor.applog import configure, secrets_of
from fairvisor.settings import Settings

SECRETS = {
    "FAIRVISOR_DECISION_TOKEN": 'a "token" with\\quotes',
    "FAIRVISOR_BUNDLE_SIGNING_KEY": "the-signing-key-of-the-tests-of-logs",
    "FAIRVISOR_DEBUG_SESSION_SECRET": "the-signing-key-of-the-tests-of-logs-and-more",
}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """What `configure` changes is put back."""
    loggers = [logging.getLogger(name) for name in ("fairvisor", "gunicorn.error")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    yield
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def configured(**environ: str) -> logging.Logger:
    configure(Settings.load(environ, {}))
    return logging.getLogger("fairvisor.test")


def test_a_console_line_says_when_who_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    configured().warning("%d bundles", 3)
    line = capsys.readouterr().err
    assert line.endswith("[WARNING] 3 bundles\n")
    assert line[10] == "T" and line[23] == "Z"


def test_a_json_line_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    configured(FAIRVISOR_LOG_FORMAT="json").error("two\nlines \udcff")
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "fairvisor.test", "two\nlines ?")


def test_a_failure_brings_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log = configured(FAIRVISOR_LOG_FORMAT="json")
    try:
        raise ZeroDivisionError("on purpose")
    except ZeroDivisionError:
        log.exception("it failed")
    assert "ZeroDivisionError: on purpose" in json.loads(capsys.readouterr().err)["exception"]


def test_the_level_is_the_setting_s(capsys: pytest.CaptureFixture[str]) -> None:
    log = configured(FAIRVISOR_LOG_LEVEL="warning")
    log.info("unseen")
    logging.getLogger("gunicorn.error").info("unseen")
    logging.getLogger("gunicorn.error").warning("seen")
    assert capsys.readouterr().err.endswith("[WARNING] seen\n")


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_line_shows_a_secret(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    log = configured(FAIRVISOR_LOG_FORMAT=form, **SECRETS)
    for secret in SECRETS.values():
        log.error("it was %s", secret)
    shown = capsys.readouterr().err
    assert shown.count("(a secret)") == 3
    assert "token" not in shown
    assert "signing" not in shown
    assert "more" not in shown


def test_every_setting_that_is_a_secret_is_kept_out() -> None:
    assert secrets_of(Settings.load(SECRETS, {})) == set(SECRETS.values())


def test_both_secrets_of_a_file_are_kept_out(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("the-token-of-tomorrow\nthe-token-of-yesterday\n")
    file.chmod(0o600)
    settings = Settings.load({"FAIRVISOR_DECISION_TOKEN_FILE": str(file)}, {})
    assert secrets_of(settings) == {"the-token-of-tomorrow", "the-token-of-yesterday"}
