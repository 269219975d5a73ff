"""The image, without an engine: the commands of the Dockerfile's stages run in folders that stand for the image's, with
the files that its COPY lines take along, and what it starts is asked for decisions. FAIRVISOR_TEST_ALL=1 also compiles
the decision path, as the image does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from processes.edge_server import Client, ask, remove_shared_memory, reserve_port, token_bucket, wait_until

from fairvisor.settings import Settings, declared

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = (ROOT / ".dockerignore").read_text().split()
INSTANCE = f"test-image-{uuid.uuid4().hex[:12]}"
TEST_ALL = "FAIRVISOR_TEST_ALL"  # as in conftest.py
NEEDS_ROOT = ("apt-get ", "useradd ")  # what a test must not do to the machine it runs on


class Stage(NamedTuple):
    """One stage: its instructions in order, each a keyword and what stands behind it."""

    instructions: tuple[tuple[str, str], ...]

    def all(self, keyword: str) -> list[str]:
        return [text for known, text in self.instructions if known == keyword]

    def one(self, keyword: str) -> str:
        (text,) = self.all(keyword)
        return text


def stages() -> list[Stage]:
    lines = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    pairs = [(keyword, text.strip()) for keyword, _, text in (line.partition(" ") for line in lines if line)]
    starts = [at for at, (keyword, _) in enumerate(pairs) if keyword == "FROM"] + [len(pairs)]
    return [Stage(tuple(pairs[start:end])) for start, end in pairwise(starts)]


BUILD, FINAL = stages()
ENVIRONMENT = dict(pair.split("=", 1) for pair in FINAL.one("ENV").split())


class Image:
    """Folders that stand for those of the image: `/opt/fairvisor` is `root/opt/fairvisor`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")

    def mapped(self, text: str) -> str:
        """A command or value with the image's own folders in the place of the machine's."""
        return re.sub(r"(?<![\w.])/(?=opt/|source\b|var/lib/fairvisor|etc/fairvisor)", f"{self.root}/", text)


def copy_context(image: Image, folder: str) -> None:
    """What the first stage copies out of the context, as far as .dockerignore lets it through."""
    skipped = shutil.ignore_patterns(
        *(name.removeprefix("**/") for name in IGNORED if name.startswith("**/"))
    )
    assert IGNORED[0] == "*", "only what is named goes into the context"
    for line in BUILD.all("COPY"):
        *names, target = line.split()
        for name in names:
            assert f"!{name}" in IGNORED
            place = image.path(f"{folder}/{target}")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=skipped)
            else:
                shutil.copy(ROOT / name, place)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image's folders after both stages. In /tmp, because another user must be able to read them."""
    root = Path(tempfile.mkdtemp(prefix="fairvisor-image-"))
    root.chmod(0o755)
    image = Image(root)
    workdir = BUILD.one("WORKDIR")
    image.path(workdir).mkdir(parents=True)
    copy_context(image, workdir)
    tools = root / "usr/local/bin"
    tools.mkdir(parents=True)
    (tools / "python").symlink_to(sys.executable)
    environ = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    assert sum("FAIRVISOR_COMPILE=1 " in command for command in BUILD.all("RUN")) == 1
    for command in BUILD.all("RUN"):
        if command.startswith(NEEDS_ROOT):
            continue
        if not os.environ.get(TEST_ALL):
            command = command.replace("FAIRVISOR_COMPILE=1 ", "")
        ran = subprocess.run(
            ["sh", "-c", image.mapped(command)],
            cwd=image.path(workdir),
            env=environ,
            check=False,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
    image.path(workdir).rename(root / "not-in-the-image")  # the second stage copies the environment only
    image.path(ENVIRONMENT["FAIRVISOR_STATE_DIR"]).mkdir(parents=True, mode=0o700)
    image.path(ENVIRONMENT["FAIRVISOR_CONFIG_FILE"]).parent.mkdir(parents=True)
    yield image
    shutil.rmtree(root)


class Container:
    """What `docker run` starts: the image's entry point in its environment, as its user where that is possible."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._reserved = reserve_port()
        self.port = self._reserved.getsockname()[1]
        self.home = image.path(FINAL.one("WORKDIR"))
        path = image.mapped(ENVIRONMENT["PATH"]).replace("$PATH", os.defpath)
        self._environ = {name: image.mapped(value) for name, value in ENVIRONMENT.items()} | {
            "PATH": path,
            "FAIRVISOR_BIND": self._on_port(ENVIRONMENT["FAIRVISOR_BIND"]),
            "FAIRVISOR_INSTANCE": INSTANCE,
            "FAIRVISOR_MODE": "decision_service",
            "FAIRVISOR_WORKER_PROCESSES": "1",
            "FAIRVISOR_SHARED_DICT_SIZE": "4m",
        }
        self._user = user_of(image)
        if self._user is not None:
            os.chown(self.home, self._user, self._user)
        argv = json.loads(FINAL.one("ENTRYPOINT")) + json.loads(FINAL.one("CMD"))
        self.process = self._popen(argv)

    def _on_port(self, text: str) -> str:
        assert text.count(":8080") == 1
        return text.replace(":8080", f":{self.port}")

    def _popen(self, argv: list[str]) -> subprocess.Popen[str]:
        program = shutil.which(argv[0], path=self._environ["PATH"])
        assert program is not None
        assert program.startswith(str(self._image.root)), "the environment's own, not the machine's"
        return subprocess.Popen(
            [program, *argv[1:]],
            cwd=self.home,
            env=self._environ,
            user=self._user,
            group=self._user,
            extra_groups=None if self._user is None else [],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def is_healthy(self) -> bool:
        """What the image's own check says."""
        check = FINAL.one("HEALTHCHECK").partition(" CMD ")[2]
        with self._popen(json.loads(self._on_port(check))) as process:
            process.communicate()
        return process.returncode == 0

    def connect(self) -> Client:
        return Client(socket.create_connection(("127.0.0.1", self.port)))

    def stop(self) -> str:
        """What `docker stop` sends; everything it has printed."""
        self.process.send_signal(getattr(signal, FINAL.one("STOPSIGNAL")))
        return self.process.communicate(timeout=30)[0]

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self._reserved.close()
        remove_shared_memory(INSTANCE)


def user_of(image: Image) -> int | None:
    """The image's user, where this test may become that user and that user may run this Python; else None."""
    python = image.path("/opt/fairvisor/bin/python").resolve()
    readable = all(folder.stat().st_mode & 0o001 for folder in python.parents)
    return int(FINAL.one("USER")) if os.geteuid() == 0 and readable else None


@pytest.fixture
def container(image: Image) -> Iterator[Container]:
    policy = image.path(ENVIRONMENT["FAIRVISOR_CONFIG_FILE"])
    policy.write_text(json.dumps(token_bucket(2)))
    policy.chmod(0o644)
    started = Container(image)
    yield started
    started.clean_up()


def test_what_is_started_decides_and_is_healthy_until_it_is_stopped(container: Container) -> None:
    wait_until(lambda: container.process.poll() is not None or container.is_healthy())
    client = container.connect()
    assert [client.status(ask("/api/data")) for _ in range(3)] == [204, 204, 429]
    client.close()
    printed = container.stop()
    assert container.process.returncode == 0, printed
    assert "Traceback" not in printed
    assert not container.is_healthy()
    assert any(container.home.iterdir()), "the counters and the bundle are in the volume"


def test_the_optional_worker_class_is_there(image: Image) -> None:
    if sys.version_info >= (3, 13):
        pytest.skip("meinheld does not import there")
    argv = [str(image.path("/opt/fairvisor/bin/python")), "-c", "import meinheld, fairvisor.master"]
    assert subprocess.run(argv, check=False, cwd=image.root).returncode == 0


def test_the_second_stage_takes_the_environment_and_no_compiler() -> None:
    assert FINAL.all("COPY") == ["--from=build /opt/fairvisor /opt/fairvisor"]
    assert not any("apt-get" in command for command in FINAL.all("RUN"))
    assert BUILD.one("FROM").split()[0] == FINAL.one("FROM"), (
        "the environment refers to the Python of its image"
    )


def test_the_image_does_not_run_as_root() -> None:
    user = FINAL.one("USER")
    assert int(user) > 0, "a number, so that runAsNonRoot can be checked without a list of users"
    assert f"--uid {user} " in FINAL.one("RUN")
    assert f"-m 0700 {ENVIRONMENT['FAIRVISOR_STATE_DIR']}" in FINAL.one("RUN")


def test_the_folders_and_ports_of_the_image_agree() -> None:
    settings = Settings.load(
        {name: value for name, value in ENVIRONMENT.items() if name.startswith("FAIRVISOR_")}, {}
    )
    assert set(ENVIRONMENT) - {setting.variable for setting in declared()} == {
        "PATH",
        "PYTHONDONTWRITEBYTECODE",
    }
    assert json.loads(FINAL.one("VOLUME")) == [str(settings.state_dir)] == [FINAL.one("WORKDIR")]
    assert [int(FINAL.one("EXPOSE"))] == [bind.port for bind in settings.bind]
    assert settings.bind[0].host == "0.0.0.0"


@pytest.mark.needs("hadolint")
def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    linted = subprocess.run(
        ["hadolint", str(ROOT / "Dockerfile")], check=False, capture_output=True, text=True
    )
    assert (linted.returncode, linted.stdout) == (0, "")
