"""Publishing and following in one process, step by step, without threads: what is switched, kept, freed and told."""

from __future__ import annotations

import gc
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes.edge_server import remove_shared_memory

from fairvisor.bundle import shared
from fairvisor.bundle.compile import Compiler
from fairvisor.bundle.load import sign
from fairvisor.bundle.shared import SharedBundle, object_name
from fairvisor.bundle.slices import Compiled, in_use, take_apart
from fairvisor.clock import NS_PER_S, Now
from fairvisor.counters.layout import Word
from fairvisor.counters.segment import Segment
from fairvisor.errors import BundleInvalid, BundleRefused, SegmentError
from fairvisor.follow import SLICE_NS, TRY_AGAIN_NS, ActiveBundle, Follower
from fairvisor.identity import Identity, KeyFetcher, Refresher, Web
from fairvisor.leader import Leader
from fairvisor.memory import SHM_DIR, InstanceMemory
from fairvisor.notes import STATE_DIR
from fairvisor.processes import identity, pid_of
from fairvisor.reload import Publisher
from fairvisor.reset import forget
from fairvisor.settings import Settings
from fairvisor.snapshots import Snapshots
from fairvisor.state import StateDirectory


def policy(name: str, burst: int = 5, **spec: Any) -> dict[str, Any]:
    rule = {
        "name": "bucket",
        "limit_keys": [],
        "algorithm": "token_bucket",
        "algorithm_config": {"tokens_per_second": 1, "burst": burst},
    }
    return {"id": name, "spec": {"selector": {"pathPrefix": f"/{name}"}, "rules": [rule], **spec}}


def bundle(version: int, *policies: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"bundle_version": version, "policies": list(policies), **more}).encode()


def stops(value: str) -> dict[str, str]:
    return {"scope_key": "header:x", "scope_value": value}


SECRETS = {"S": "a secret of this many bytes, at least"}


class Instance:
    """One instance with one worker; time stands still unless it is moved."""

    def __init__(self, name: str, place: Path) -> None:
        self.elapsed_ns = 0
        self.place = place
        environ = {
            "FAIRVISOR_INSTANCE": name,
            "FAIRVISOR_STATE_DIR": str(place / "state"),
            "FAIRVISOR_CONFIG_FILE": str(place / "policy.json"),
        }
        settings = Settings.load(environ, {})
        self.segment = Segment.open(InstanceMemory.make(name), 1 << 20)
        self.publisher = Publisher(settings, self.segment, SECRETS, serving=False, clock=self.now)
        self.active = ActiveBundle(self.publisher.notes)
        self.entry = self.publisher.registry.claim(identity(os.getpid()))
        who = Identity.from_settings(settings, environ=SECRETS)
        self.refresher = Refresher(who, KeyFetcher(who.sets, Web({})), lambda: False)
        self.follower = Follower(
            settings, self.segment, self.active, self.refresher, SECRETS, self.entry, clock=self.now
        )
        self._await = self.publisher._await
        self.publisher._await = self._follow  # type: ignore[method-assign]

    def now(self) -> Now:
        return Now(1_000 * NS_PER_S + self.elapsed_ns, 1_800_000_000 * NS_PER_S + self.elapsed_ns)

    def _follow(self, generation: int) -> tuple[int, ...]:
        """The worker switches while the publisher waits for it."""
        self.follower.step(paced=False)
        return self._await(generation)

    @property
    def compiled(self) -> Compiled:
        assert self.follower._compiled is not None
        return self.follower._compiled

    def policies(self) -> dict[str, object]:
        return {made.id: made for made, _ in self.compiled.policies.values()}


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Instance]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield Instance(name, tmp_path)
    gc.unfreeze()
    remove_shared_memory(name)


class TestSwitching:
    def test_a_worker_decides_by_what_was_published_and_records_it(self, instance: Instance) -> None:
        published = instance.publisher.publish(bundle(1, policy("a")))
        assert (published.generation, published.version, published.lagging) == (1, 1, ())
        current = instance.active.current
        assert current is not None
        assert (current.generation, current.bundle.version, current.about.policies) == (1, 1, 1)
        assert current.bundle.sha256 == current.about.sha256 == published.sha256
        (worker,) = instance.publisher.registry.workers()
        assert (pid_of(worker.process), worker.generation) == (os.getpid(), 1)

    def test_a_policy_whose_bytes_did_not_change_keeps_its_compiled_form(self, instance: Instance) -> None:
        instance.publisher.publish(
            bundle(1, policy("a"), policy("b"), kill_switches=[stops("x"), stops("y")])
        )
        before, switches = instance.policies(), dict(instance.compiled.kill_switches)
        instance.publisher.publish(
            bundle(2, policy("b"), policy("a", burst=6), policy("c"), kill_switches=[stops("y")])
        )
        after = instance.policies()
        assert after["b"] is before["b"]
        assert after["a"] is not before["a"]
        assert set(after) == {"a", "b", "c"}
        ((kept, _),) = instance.compiled.kill_switches.values()
        assert any(kept is switch for switch, _ in switches.values())

    @pytest.mark.parametrize(
        "more",
        [
            {"defaults": {"mode": "shadow"}},
            {"defaults": {"model_aliases": {"fast": "gpt-4o-mini"}}},
            {"global_shadow": {"enabled": True, "reason": "trial", "expires_at": "2099-01-01T00:00:00Z"}},
        ],
    )
    def test_what_a_policy_is_compiled_with_changes_all_of_them(
        self, instance: Instance, more: dict[str, Any]
    ) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        before = instance.policies()["a"]
        instance.publisher.publish(bundle(2, policy("a"), **more))
        assert instance.policies()["a"] is not before

    def test_spaces_and_the_order_of_policies_change_nothing(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a"), policy("b")))
        before = instance.policies()
        document = json.loads(bundle(2, policy("b"), policy("a")))
        instance.publisher.publish(json.dumps(document, indent=4).encode())
        assert instance.policies() == before

    def test_a_request_that_began_before_keeps_its_whole_bundle(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        request = instance.active.current
        assert request is not None
        instance.follower._free = lambda: None  # type: ignore[method-assign]
        old = instance.compiled
        instance.publisher.publish(
            bundle(2, policy("b"), jwt_keys=[{"secret_env": "S", "algorithm": "HS256"}])
        )
        current = instance.active.current
        assert current is not None
        assert current.identity is not request.identity
        assert current.identity.verified
        assert not request.identity.verified
        assert [found.id for found in request.bundle.routes.plan("GET", "", "/a").policies] == ["a"]
        assert in_use(old)
        del request
        assert not in_use(old)

    def test_the_same_keys_keep_the_identity_and_what_it_has_read(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        before = instance.refresher.identity
        instance.publisher.publish(bundle(2, policy("b")))
        assert instance.refresher.identity is before

    def test_a_bundle_that_was_replaced_leaves_nothing_to_the_collector(self, instance: Instance) -> None:
        """The collector does not look at what was frozen, so whatever is in a cycle would stay for ever."""
        many = [policy(f"p{index}", loop_detection={"enabled": True, "window_seconds": 9,
                "threshold_identical_requests": 2}) for index in range(50)]  # fmt: skip
        instance.publisher.publish(bundle(1, *many, kill_switches=[stops(str(index)) for index in range(50)]))
        instance.follower._free = lambda: None  # type: ignore[method-assign]
        old = instance.compiled
        instance.publisher.publish(bundle(2, policy("b")))
        gc.unfreeze()
        gc.collect()
        for _ in take_apart(old):
            pass
        assert old.policies == {}
        del old
        assert gc.collect() == 0

    def test_a_compiler_ends_with_its_work(self, instance: Instance) -> None:
        """Without the collector: with it would stay the keys that its bundle's counters were found by."""
        instance.publisher.publish(bundle(1, policy("a")))
        gc.unfreeze()
        assert not [each for each in gc.get_objects() if isinstance(each, Compiler)]

    def test_generations_that_came_too_fast_are_passed_over(self, instance: Instance) -> None:
        instance.publisher._await = lambda generation: ()  # type: ignore[method-assign]
        for version in range(1, 6):
            instance.publisher.publish(bundle(version, policy("a", burst=version)))
        instance.follower.step(paced=False)
        assert instance.active.current is not None
        assert instance.active.current.generation == 5

    def test_an_object_that_is_not_there_is_looked_for_again(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        instance.segment.table.word_set(Word.BUNDLE_GENERATION, 2)
        instance.follower.step(paced=False)
        assert instance.active.current is not None
        assert instance.active.current.generation == 1
        directory = instance.segment.directory
        directory.write(object_name(2), directory.read(object_name(1)))
        instance.follower.step(paced=False)
        assert instance.active.current.generation == 1
        instance.elapsed_ns += TRY_AGAIN_NS
        instance.follower.step(paced=False)
        assert instance.active.current.generation == 2

    def test_slices_pause_and_a_stop_gives_up(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        instance.publisher._await = lambda generation: ()  # type: ignore[method-assign]
        instance.publisher.publish(bundle(2, *(policy(f"p{index}") for index in range(10))))
        pauses: list[float] = []
        tick = instance.now

        def slow() -> Now:
            instance.elapsed_ns += SLICE_NS // 4
            return tick()

        instance.follower._clock = slow
        instance.follower._periodic.stopped.wait = lambda pause: bool(pauses.append(pause))  # type: ignore[assignment, func-returns-value, method-assign]
        instance.follower.step()
        assert instance.active.current is not None
        assert instance.active.current.generation == 2
        assert 2 <= len(pauses) <= 12
        instance.publisher.publish(bundle(3, *(policy(f"q{index}") for index in range(10))))
        instance.follower._periodic.stopped.wait = lambda pause: True  # type: ignore[assignment, method-assign]
        instance.follower.step()
        assert instance.active.current.generation == 2


class TestPublishing:
    def test_unchanged_bytes_are_no_new_generation(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        published = instance.publisher.publish(bundle(1, policy("a")))
        assert (published.changed, published.generation) == (False, 1)

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (bundle(1, policy("b")), "version_not_monotonic"),
            (bundle(2, policy("b"), expires_at="2020-01-01T00:00:00Z"), "bundle_expired"),
        ],
    )
    def test_a_refusal_changes_nothing_and_is_told(self, instance: Instance, data: bytes, code: str) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        with pytest.raises(BundleRefused) as refused:
            instance.publisher.publish(data, source="somebody")
        assert refused.value.code == code
        assert instance.publisher.generation == 1
        assert instance.active.reason.startswith(f"somebody: {code}: ")
        assert not [name for name in instance.segment.directory.names() if "offer" in name]
        instance.publisher.publish(bundle(3, policy("b")))
        assert instance.active.reason == ""

    def test_the_file_in_force_takes_back_its_own_refusal_and_not_that_of_a_push(
        self, instance: Instance
    ) -> None:
        """A new leader offers the file as it finds it, at any moment."""
        active = bundle(2, policy("a"))
        instance.publisher.offer_file(active)
        instance.publisher.offer_file(b"{")
        assert instance.active.reason != ""
        instance.publisher.offer_file(active)
        assert instance.active.reason == ""
        with pytest.raises(BundleRefused):
            instance.publisher.publish(bundle(1, policy("b")))
        instance.publisher.offer_file(active)
        assert instance.active.reason.startswith("admin: version_not_monotonic: ")
        instance.publisher.publish(active)
        assert instance.active.reason == ""

    def test_an_object_holds_what_was_offered(self, instance: Instance) -> None:
        data = bundle(1, policy("a"), **{"$comment": "as it is"})
        instance.publisher.publish(data)
        current = instance.publisher.current()
        assert current is not None
        assert current.original() == data
        assert len(list(current.policies())) == 1
        current.close()

    def test_only_the_active_object_stays(self, instance: Instance) -> None:
        for version in (1, 2, 3):
            instance.publisher.publish(bundle(version, policy("a", burst=version)))
        names = [name for name in instance.segment.directory.names() if name.startswith("bundle")]
        assert names == [object_name(3)]

    def test_a_damaged_object_is_never_compiled(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        path = instance.segment.directory.path / object_name(1)
        data = path.read_bytes()
        for position in range(8, len(data) - 1, 23):
            path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
            with pytest.raises(SegmentError):
                read_all(SharedBundle.open(instance.segment.directory, 1))
        path.chmod(0o644)
        with pytest.raises(SegmentError, match="0600"):
            SharedBundle.open(instance.segment.directory, 1)

    def test_a_new_bundle_replaces_one_that_cannot_be_read(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        instance.segment.directory.write(object_name(1), b"damaged")
        assert instance.publisher.publish(bundle(2, policy("b"))).generation == 2

    def test_the_lock_of_another_publisher_is_waited_for(
        self, instance: Instance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def later(pause: float) -> None:
            instance.elapsed_ns += 10 * NS_PER_S

        monkeypatch.setattr(instance.publisher._pause, "wait", later)
        with (
            instance.publisher._lock(),
            pytest.raises(BundleRefused, match="busy"),
        ):
            instance.publisher.publish(bundle(1, policy("a")))

    def test_too_large_a_bundle_is_refused_before_it_is_read(
        self, instance: Instance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fairvisor.reload.MAX_BUNDLE_BYTES", 100)
        with pytest.raises(BundleInvalid, match="64 MiB"):
            instance.publisher.publish(bundle(1, policy("a")))

    def test_no_room_in_shared_memory_changes_nothing(
        self, instance: Instance, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        instance.publisher.publish(bundle(1, policy("a")))

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shared.os, "posix_fallocate", full)
        with pytest.raises(BundleRefused, match=r"no_room: .*No space left"):
            instance.publisher.publish(bundle(2, policy("b")))
        assert instance.publisher.generation == 1


def read_all(bundle: SharedBundle) -> None:
    """Everything that a worker and the admin listener read."""
    bundle.head()
    for part in (*bundle.policies(), *bundle.kill_switches()):
        bundle.read(part)
    bundle.original()


class TestStart:
    """Which bundle wins when a master starts."""

    @pytest.fixture
    def write(self, instance: Instance) -> Callable[[bytes], object]:
        return (instance.place / "policy.json").write_bytes

    def test_without_anything_the_edge_says_why_it_is_not_ready(self, instance: Instance) -> None:
        instance.publisher.start()
        assert instance.publisher.generation == 0
        assert "No such file" in instance.active.reason
        assert set(instance.publisher.notes.faults()) == {"bundle_file"}

    @pytest.mark.parametrize(
        ("last", "file", "wins"),
        [
            (bundle(1, policy("a")), bundle(2, policy("b")), 2),
            (bundle(3, policy("a")), bundle(2, policy("b")), 3),
            (bundle(3, policy("a")), b"{", 3),
            (bundle(3, policy("a"), expires_at="2020-01-01T00:00:00Z"), b"{", 3),
            (bundle(3, policy("a")), bundle(4, policy("b"), expires_at="2020-01-01T00:00:00Z"), 3),
            (b"{", bundle(2, policy("b")), 2),
        ],
    )
    def test_the_greater_version_wins(
        self, instance: Instance, write: Callable[[bytes], object], last: bytes, file: bytes, wins: int
    ) -> None:
        instance.publisher.state.write(instance.publisher.state.bundle, [last])
        write(file)
        instance.publisher.start()
        assert instance.active.current is not None
        assert instance.active.current.about.version == wins

    def test_of_equal_versions_the_file_wins(
        self, instance: Instance, write: Callable[[bytes], object]
    ) -> None:
        instance.publisher.state.write(instance.publisher.state.bundle, [bundle(3, policy("a"))])
        write(bundle(3, policy("b")))
        instance.publisher.start()
        assert set(instance.policies()) == {"b"}

    def test_a_lower_file_is_reported_and_taken_only_when_that_was_asked_for(
        self, instance: Instance, write: Callable[[bytes], object]
    ) -> None:
        instance.publisher.state.write(instance.publisher.state.bundle, [bundle(3, policy("a"))])
        write(bundle(2, policy("b")))
        instance.publisher.start()
        assert "is lower than that of the last good bundle, 3" in instance.active.reason
        instance.publisher.start(accept_older=True)
        assert set(instance.policies()) == {"b"}
        assert instance.active.reason == ""

    def test_what_is_in_shared_memory_is_newer_than_its_copy(
        self, instance: Instance, write: Callable[[bytes], object]
    ) -> None:
        write(bundle(1, policy("a")))
        instance.publisher.publish(bundle(5, policy("c")))
        instance.publisher.state.write(instance.publisher.state.bundle, [bundle(3, policy("b"))])
        instance.publisher.start()
        assert instance.publisher.generation == 1
        assert set(instance.policies()) == {"c"}


class File:
    """The bundle file of an instance, and what a worker that just came to lead does with it."""

    def __init__(self, instance: Instance, order: str) -> None:
        self.name = instance.segment.directory.instance
        self.order = order
        self.use(instance)

    def use(self, instance: Instance) -> None:
        self.instance = instance
        self.publisher = instance.publisher
        self.publisher.settings = replace(self.publisher.settings, bundle_order=self.order)

    def becomes(self, data: bytes) -> None:
        (self.instance.place / "policy.json").write_bytes(data)
        self.is_looked_at()

    def is_looked_at(self) -> None:
        """By a leader that knows nothing of what the one before saw; HUP does the same."""
        self.publisher.read_file()

    def reboot(self) -> None:
        gc.unfreeze()
        remove_shared_memory(self.name)
        self.use(Instance(self.name, self.instance.place))
        self.publisher.start()

    def outcomes(self) -> Iterator[tuple[object, int]]:
        """How often bundles were applied, unchanged, refused and so on."""
        for series, labels, value in self.instance.segment.series_values():
            if series == "fairvisor_reloads_total":
                yield labels, value

    @property
    def in_force(self) -> set[str]:
        self.instance.follower.step(paced=False)
        return set(self.instance.policies())


OLD, NEW, PUSHED = bundle(1, policy("old")), bundle(2, policy("new")), bundle(9, policy("pushed"))


class TestFileOrder:
    @pytest.fixture
    def file(self, instance: Instance) -> File:
        file = File(instance, "file")
        file.becomes(NEW)
        return file

    @pytest.mark.parametrize("data", [OLD, bundle(2, policy("old")), bundle(3, policy("old"))])
    def test_a_changed_file_wins_whatever_its_version_is(self, file: File, data: bytes) -> None:
        file.becomes(data)
        assert file.in_force == {"old"}
        file.becomes(NEW)
        assert file.in_force == {"new"}

    def test_a_push_needs_take_over_and_then_no_version(self, file: File) -> None:
        for data in (PUSHED, OLD):
            with pytest.raises(BundleRefused, match="--take-over") as refused:
                file.publisher.push(data)
            assert refused.value.code == "file_decides"
        assert file.in_force == {"new"}
        assert not file.publisher.push(NEW).changed, "the bundle in force is no push"
        for data, name in ((PUSHED, "pushed"), (OLD, "old")):
            assert file.publisher.push(data, take_over=True).changed
            assert file.in_force == {name}

    def test_a_push_that_is_not_valid_is_told_what_is_wrong_with_it(self, file: File) -> None:
        for take_over in (False, True):
            with pytest.raises(BundleInvalid):
                file.publisher.push(b"{", take_over=take_over)

    def test_an_unchanged_file_undoes_no_push(self, file: File) -> None:
        file.publisher.push(PUSHED, take_over=True)
        file.is_looked_at()
        file.publisher.start()
        file.reboot()
        file.is_looked_at()
        assert file.in_force == {"pushed"}

    def test_a_file_that_changed_undoes_it_also_while_nothing_ran(self, file: File) -> None:
        file.publisher.push(PUSHED, take_over=True)
        (file.instance.place / "policy.json").write_bytes(OLD)
        file.reboot()
        assert file.in_force == {"old"}

    def test_a_file_put_back_wins_over_the_push_that_came_between(self, file: File) -> None:
        file.becomes(OLD)
        file.publisher.push(PUSHED, take_over=True)
        file.becomes(NEW)
        assert file.in_force == {"new"}

    def test_a_file_that_becomes_what_was_pushed_and_is_put_back(self, file: File) -> None:
        file.publisher.push(PUSHED, take_over=True)
        file.becomes(PUSHED)
        file.becomes(NEW)
        assert file.in_force == {"new"}

    def test_without_the_record_the_file_wins(self, file: File) -> None:
        file.publisher.push(PUSHED, take_over=True)
        file.publisher.state.file.unlink()
        file.reboot()
        assert file.in_force == {"new"}

    @pytest.mark.parametrize("record", [b"", b"no digest", b"\xff"])
    def test_a_record_that_cannot_be_read_is_none(self, file: File, record: bytes) -> None:
        file.publisher.push(PUSHED, take_over=True)
        file.publisher.state.file.write_bytes(record)
        file.reboot()
        assert file.in_force == {"new"}

    def test_a_record_that_cannot_be_written_is_a_fault_and_is_written_later(self, file: File) -> None:
        state = file.instance.place / "state"
        state.rename(state.with_name("away"))
        state.write_text("in the way")
        file.becomes(OLD)
        assert "state_dir" in file.publisher.notes.faults()
        state.unlink()
        state.with_name("away").rename(state)
        assert file.publisher.make_durable()
        assert file.publisher.notes.faults() == {}
        file.publisher.push(PUSHED, take_over=True)
        file.reboot()
        assert file.in_force == {"pushed"}

    def test_a_file_that_is_not_valid_changes_nothing_and_is_taken_when_it_is_mended(
        self, file: File
    ) -> None:
        file.becomes(b"{")
        assert file.in_force == {"new"}
        assert file.instance.active.reason != ""
        file.becomes(NEW)
        assert file.instance.active.reason == ""

    def test_a_file_that_was_refused_is_offered_again_at_the_next_start(self, file: File) -> None:
        """What it lacked may be in the environment now."""
        file.publisher._environ = {}
        file.becomes(bundle(3, policy("old"), jwt_keys=[{"secret_env": "S"}]))
        assert file.in_force == {"new"}
        file.publisher._environ = SECRETS
        file.publisher.start()
        active = file.publisher.current()
        assert active is not None
        assert active.about.version == 3
        active.close()

    def test_a_file_that_expired_is_not_taken(self, file: File) -> None:
        file.becomes(bundle(1, policy("old"), expires_at="2020-01-01T00:00:00Z"))
        assert file.in_force == {"new"}
        assert "bundle_expired" in file.instance.active.reason


class TestVersionOrder:
    @pytest.fixture
    def file(self, instance: Instance) -> File:
        file = File(instance, "version")
        file.becomes(NEW)
        return file

    def test_an_unchanged_older_file_is_offered_once(
        self, file: File, caplog: pytest.LogCaptureFixture
    ) -> None:
        file.publisher.push(PUSHED)
        file.becomes(OLD)
        assert "version_not_monotonic" in file.instance.active.reason
        file.publisher.push(bundle(10, policy("pushed")))
        assert file.instance.active.reason == ""
        caplog.clear()
        before = dict(file.outcomes())
        for _ in range(3):
            file.is_looked_at()
        assert caplog.messages == []
        assert file.instance.active.reason == ""
        assert dict(file.outcomes()) == before
        assert file.in_force == {"pushed"}

    def test_a_file_that_found_no_room_is_offered_again(
        self, file: File, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That said nothing about the file."""
        with monkeypatch.context() as broken:
            broken.setattr("fairvisor.bundle.shared.write", full)
            file.becomes(bundle(3, policy("a")))
            assert "no_room" in file.instance.active.reason
            assert not file.publisher.offer_file(bundle(3, policy("a")))
        file.is_looked_at()
        assert file.in_force == {"a"}

    @pytest.mark.parametrize("order", ["version", "file"])
    def test_a_file_that_was_signed_before_its_key_was_set_is_offered_again(
        self, instance: Instance, order: str
    ) -> None:
        file = File(instance, order)
        file.publisher.use(replace(file.publisher.settings, bundle_signing_key=("the old key",)))
        file.becomes(sign(NEW, b"the new key"))
        assert "invalid_signature" in instance.active.reason
        file.is_looked_at()
        file.publisher.use(replace(file.publisher.settings, bundle_signing_key=("the new key",)))
        file.is_looked_at()
        assert file.in_force == {"new"}

    def test_another_key_makes_no_unchanged_file_undo_a_push(self, instance: Instance) -> None:
        file = File(instance, "file")
        file.becomes(NEW)
        file.publisher.push(PUSHED, take_over=True)
        file.publisher.use(replace(file.publisher.settings, bundle_signing_key=("a key",)))
        file.is_looked_at()
        assert file.in_force == {"pushed"}

    def test_a_push_needs_a_greater_version_and_no_take_over(self, file: File) -> None:
        with pytest.raises(BundleRefused, match="not greater"):
            file.publisher.push(OLD, take_over=True)
        assert file.publisher.push(PUSHED).changed

    def test_what_was_applied_is_known_when_the_file_begins_to_decide(self, file: File) -> None:
        file.publisher.push(PUSHED)
        file.order = "file"
        file.reboot()
        assert file.in_force == {"pushed"}


def full(*_: object) -> None:
    raise SegmentError("no room")


class TestDurability:
    def test_the_copy_is_what_was_offered(self, instance: Instance) -> None:
        data = bundle(1, policy("a"))
        assert instance.publisher.publish(data).durable
        assert instance.publisher.state.bundle.read_bytes() == data

    def test_a_directory_that_cannot_be_written_is_a_fault_that_heals(self, instance: Instance) -> None:
        (instance.place / "state").write_text("in the way")
        assert not instance.publisher.publish(bundle(1, policy("a"))).durable
        assert "cannot be written" in instance.publisher.notes.faults()["state_dir"].text
        (instance.place / "state").unlink()
        assert instance.publisher.make_durable()
        assert instance.publisher.notes.faults() == {}
        assert instance.publisher.state.bundle.exists()

    def test_a_copy_that_is_there_is_no_fault(self, instance: Instance) -> None:
        """The directory could not even be looked at for a while: nothing is to be written afterwards."""
        assert instance.publisher.publish(bundle(1, policy("a"))).durable
        instance.publisher.notes.put(STATE_DIR, "Permission denied", instance.now())
        assert instance.publisher.make_durable()
        assert instance.publisher.notes.faults() == {}

    @pytest.mark.parametrize("healed", ["a bundle is there", "none is there"])
    def test_a_directory_that_can_be_read_again_is_no_fault_before_the_first_bundle(
        self, instance: Instance, healed: str
    ) -> None:
        state = instance.place / "state"
        state.write_text("in the way")
        leader = Leader(
            instance.segment,
            instance.publisher,
            Snapshots(instance.segment.directory, instance.publisher.state, instance.now),
            lambda: None,
            instance.now,
        )
        leader.step()
        assert "is not used" in instance.publisher.notes.faults()[STATE_DIR].text
        state.unlink()
        if healed == "a bundle is there":
            instance.publisher.state.write(instance.publisher.state.bundle, [bundle(3, policy("b"))])
        instance.elapsed_ns += NS_PER_S
        leader.step()
        assert STATE_DIR not in instance.publisher.notes.faults()
        assert instance.publisher.generation == (healed == "a bundle is there")

    def test_a_copy_that_was_removed_is_written_again(self, instance: Instance) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        instance.publisher.state.bundle.unlink()
        assert instance.publisher.make_durable()
        assert instance.publisher.state.bundle.exists()

    def test_half_a_file_is_never_left(self, instance: Instance) -> None:
        state = instance.publisher.state
        state.write(state.snapshot, [b"whole"])

        def broken() -> Iterator[bytes]:
            yield b"half"
            raise OSError(5, "Input/output error")

        with pytest.raises(OSError, match="Input"):
            state.write(state.snapshot, broken())
        assert [path.name for path in state.directory.iterdir()] == [state.snapshot.name]
        assert state.snapshot.read_bytes() == b"whole"


class TestForgetting:
    def test_a_running_instance_is_not_forgotten(self, instance: Instance) -> None:
        with pytest.raises(SegmentError, match=f"process {os.getpid()}"):
            forget(instance.segment.directory, instance.publisher.state, with_bundle=False)

    @pytest.mark.parametrize("with_bundle", [False, True])
    def test_counters_go_and_the_bundle_only_when_asked(self, instance: Instance, with_bundle: bool) -> None:
        instance.publisher.publish(bundle(1, policy("a")))
        state: StateDirectory = instance.publisher.state
        state.write(state.snapshot, [b"counters"])
        assert instance.entry is not None
        instance.publisher.registry.release(instance.entry)
        forget(instance.segment.directory, state, with_bundle=with_bundle)
        assert list(SHM_DIR.glob(f"*-{instance.segment.directory.instance}*")) == []
        assert not state.snapshot.exists()
        assert state.bundle.exists() is not with_bundle
