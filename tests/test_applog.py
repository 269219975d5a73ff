"""Log lines: for people or for programs, and never with a secret."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairvisor.applog import Handler, configure, secrets_of
from fairvisor.settings import Settings

SECRETS = {
    "FAIRVISOR_DECISION_TOKEN": 'a "token" with\\quotes',
    "FAIRVISOR_BUNDLE_SIGNING_KEY": "the-signing-key-of-the-tests-of-logs",
    "FAIRVISOR_DEBUG_SESSION_SECRET": "the-signing-key-of-the-tests-of-logs-and-more",
}


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """What `configure` changes is put back."""
    loggers = [logging.getLogger(name) for name in ("", "fairvisor", "gunicorn.error")]
    before = [(each.handlers, each.level, each.propagate) for each in loggers]
    stderr = sys.stderr
    yield
    sys.stderr = stderr
    logging.captureWarnings(False)
    for each, (handlers, level, propagate) in zip(loggers, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


def configured(**environ: str) -> logging.Logger:
    configure(Settings.load(environ, {}))
    return logging.getLogger("fairvisor.test")


def written(capfd: pytest.CaptureFixture[str]) -> str:
    """What is on standard error."""
    logging.getLogger("fairvisor").handlers[0].flush()
    return capfd.readouterr().err


def test_a_console_line_says_when_who_and_what(capfd: pytest.CaptureFixture[str]) -> None:
    configured().warning("%d bundles", 3)
    line = written(capfd)
    assert line.endswith("[WARNING] 3 bundles\n")
    assert line[10] == "T" and line[23] == "Z"


def test_a_json_line_is_one_object(capfd: pytest.CaptureFixture[str]) -> None:
    configured(FAIRVISOR_LOG_FORMAT="json").error("two\nlines \udcff")
    line = written(capfd)
    assert line.count("\n") == 1
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "fairvisor.test", "two\nlines ?")


def test_a_failure_brings_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    log = configured(FAIRVISOR_LOG_FORMAT="json")
    try:
        raise ZeroDivisionError("on purpose")
    except ZeroDivisionError:
        log.exception("it failed")
    assert "ZeroDivisionError: on purpose" in json.loads(written(capfd))["exception"]


def test_the_level_is_the_setting_s(capfd: pytest.CaptureFixture[str]) -> None:
    log = configured(FAIRVISOR_LOG_LEVEL="warning")
    log.info("unseen")
    logging.getLogger("gunicorn.error").info("unseen")
    logging.getLogger("gunicorn.error").warning("seen")
    assert written(capfd).endswith("[WARNING] seen\n")


@pytest.mark.parametrize("form", ["console", "json"])
def test_no_line_shows_a_secret(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    log = configured(FAIRVISOR_LOG_FORMAT=form, **SECRETS)
    for secret in SECRETS.values():
        log.error("it was %s", secret)
    shown = written(capfd)
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


@pytest.mark.parametrize("form", ["console", "json"])
def test_what_libraries_say_and_what_python_warns_of_is_a_line_as_every_other(
    form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    configured(FAIRVISOR_LOG_FORMAT=form)
    logging.getLogger("asyncio").error("a task failed")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old", stacklevel=1)
    lines = written(capfd).splitlines()
    assert "a task failed" in lines[0]
    assert "UserWarning: old" in lines[1]
    if form == "json":
        assert [json.loads(line)["logger"] for line in lines] == ["asyncio", "py.warnings"]


def test_what_is_printed_to_standard_error_is_written_line_by_line_and_escaped(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configured(**SECRETS)
    print("it was", SECRETS["FAIRVISOR_BUNDLE_SIGNING_KEY"], end="", file=sys.stderr)
    print("\x1b[31m, and\nmore", file=sys.stderr)
    assert written(capfd) == "it was (a secret)\\x1b[31m, and\nmore\n"
    assert sys.stderr.fileno() == 2


def test_a_line_that_cannot_be_made_is_reported_and_stops_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    configured().info("%d", "no number")
    assert "not enough arguments" in (shown := written(capfd)) or "number is required" in shown


def test_secrets_that_are_read_again_are_kept_out_of_the_same_log(capfd: pytest.CaptureFixture[str]) -> None:
    """The queue, its thread and the count of lost lines stay: a HUP makes no other one."""
    log = configured()
    (handler,) = logging.getLogger("fairvisor").handlers
    assert isinstance(handler, Handler)
    handler.use(Settings.load(SECRETS, {}))
    log.error("it was %s", SECRETS["FAIRVISOR_DECISION_TOKEN"])
    print(SECRETS["FAIRVISOR_BUNDLE_SIGNING_KEY"], file=sys.stderr)
    shown = written(capfd)
    assert shown.count("(a secret)") == 2
    assert "token" not in shown
