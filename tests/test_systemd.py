"""The systemd files, as systemd itself reads them: no complaint, little exposure, the counters survive a restart."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fairvisor.settings import Settings, declared

UNITS = Path(__file__).parents[1] / "systemd"
SERVICE = (UNITS / "fairvisor.service").read_text()


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with a program that is there."""
    program = Path(sys.executable).with_name("fairvisor")
    text = SERVICE.replace(
        "/opt/fairvisor/bin/fairvisor", str(program if program.exists() else sys.executable)
    )
    (tmp_path / "fairvisor.service").write_text(text)
    (tmp_path / "fairvisor.socket").write_text((UNITS / "fairvisor.socket").read_text())
    return tmp_path


@pytest.mark.needs("systemd-analyze")
def test_systemd_has_nothing_to_say_about_the_units(units: Path) -> None:
    argv = [
        "systemd-analyze",
        "verify",
        "--man=no",
        str(units / "fairvisor.service"),
        str(units / "fairvisor.socket"),
    ]
    verified = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    complaints = [line for line in (verified.stdout + verified.stderr).splitlines() if "fairvisor" in line]
    assert complaints == []
    assert verified.returncode == 0


@pytest.mark.needs("systemd-analyze")
def test_the_service_is_exposed_to_little(units: Path) -> None:
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(units / "fairvisor.service")]
    rated = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    level = re.search(r"Overall exposure level for fairvisor.service: ([\d.]+)", rated.stdout)
    assert level is not None, rated.stdout + rated.stderr
    assert float(level[1]) < 2.5


def test_a_stop_of_the_service_leaves_the_counters() -> None:
    assert "RemoveIPC=no" in SERVICE
    assert "DynamicUser" not in SERVICE, "the segment belongs to the user that made it"


def test_every_setting_named_in_the_files_exists_and_the_examples_load() -> None:
    text = SERVICE + (UNITS / "edge.env").read_text()
    named = dict(re.findall(r"(FAIRVISOR_[A-Z_]+)=(.*)", text))
    assert set(named) <= {variable for setting in declared() for variable in setting.variables}
    assert named.pop("FAIRVISOR_DECISION_TOKEN_FILE"), "a file that is not here"
    assert Settings.load(named, {}).bind[0].port == 8080
