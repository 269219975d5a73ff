"""The workflows of CI and of a release: what they run is pinned, what they may do is named, and the names that a
release publishes are those of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_image import DOCKERFILE

from fairvisor import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.name: path.read_text() for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
RELEASE = WORKFLOWS["release.yml"]
VERIFY = (ROOT / "docs" / "install" / "verify.md").read_text()
BY_NAME = pytest.mark.parametrize("name", WORKFLOWS)

# What a job may write. A job that is not named here may read the source, or nothing.
MAY_WRITE = {
    ("release.yml", "image"): {"packages"},
    ("release.yml", "publish-image"): {"packages", "id-token", "attestations"},
    ("release.yml", "publish-packages"): {"id-token"},
    ("release.yml", "publish-chart"): {"packages"},
    ("release.yml", "publish-release"): {"contents", "id-token", "attestations"},
}


def jobs(text: str) -> dict[str, str]:
    """The text of each job by its name."""
    parts = re.split(r"^  ([a-z-]+):\n", text.partition("\njobs:\n")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def actions(text: str) -> list[str]:
    """What each `uses:` names, with its comment."""
    return re.findall(r"^ +(?:- )?uses: (.*)", text, re.MULTILINE)


def scripts(text: str) -> list[str]:
    """What each `run:` holds: the rest of its line, or the lines below that are indented further."""
    return [
        line or block
        for line, block in re.findall(r"^ +(?:- )?run: (?:\|\n((?: {10,}.*\n|\n)+)|(.*))", text, re.M)
    ]


@BY_NAME
def test_every_action_is_pinned_to_a_commit_and_says_which_version_it_is(name: str) -> None:
    """A tag can be moved to other code, a commit cannot."""
    for used in actions(WORKFLOWS[name]):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_an_action_has_one_version_in_all_workflows() -> None:
    used = {each for text in WORKFLOWS.values() for each in actions(text)}
    assert len({each.partition("@")[0] for each in used}) == len(used)


def test_every_image_that_builds_or_is_built_on_is_pinned_to_a_digest() -> None:
    """The base, the container of CI, the builder, and what lists the parts of the image."""
    named = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    for text in WORKFLOWS.values():
        named += re.findall(
            r"^ +(?:container: |driver-opts: image=|sbom: generator=)(\S+)", text, re.MULTILINE
        )
    assert len(named) == 5
    assert "sbom: true" not in RELEASE
    for image in named:
        assert re.fullmatch(r"[a-z/-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


@BY_NAME
def test_a_workflow_may_do_nothing_that_its_jobs_do_not_name(name: str) -> None:
    assert "\npermissions: {}\n" in WORKFLOWS[name]
    for job, text in jobs(WORKFLOWS[name]).items():
        (block,) = re.findall(r"^    permissions:\n((?:      .*\n)+)", text, re.MULTILINE)
        granted = dict(re.findall(r"^      ([a-z-]+): (\w+)", block, re.MULTILINE))
        assert {scope for scope, access in granted.items() if access == "write"} == MAY_WRITE.get(
            (name, job), set()
        )
        assert {scope for scope, access in granted.items() if access != "write"} <= {"contents"}


@BY_NAME
def test_every_job_ends_by_itself(name: str) -> None:
    for job, text in jobs(WORKFLOWS[name]).items():
        assert re.search(r"^    timeout-minutes: \d+$", text, re.MULTILINE), job


@BY_NAME
def test_no_expression_is_expanded_inside_a_script(name: str) -> None:
    """The name of a branch or a tag would be run as shell: values come as variables."""
    assert scripts(WORKFLOWS[name])
    assert [script for script in scripts(WORKFLOWS[name]) if "${{" in script] == []


@BY_NAME
def test_no_workflow_runs_for_strangers_with_rights_or_keeps_the_token_of_a_checkout(name: str) -> None:
    text = WORKFLOWS[name]
    assert not re.search(r"pull_request_target|workflow_run", text)
    assert text.count("uses: actions/checkout@") == text.count("persist-credentials: false")


def test_the_release_installs_only_pinned_packages() -> None:
    installs = re.findall(r"pip(?:x)? (?:install|run).*", RELEASE)
    assert installs
    assert all("--require-hashes --requirement " in each for each in installs), installs
    for path in re.findall(r"--requirement (?:\{project\}/)?(\S+)", RELEASE):
        assert (ROOT / path).is_file(), path


def published() -> dict[str, set[str]]:
    """The tags of each image name, as the release makes them for the version of this source."""
    names = re.findall(r"^  \w*IMAGE: (.*)$", RELEASE, re.MULTILINE)
    owner = {"${{ github.repository }}": "fairvisor/edge", "${{ github.repository_owner }}": "fairvisor"}
    for expression, value in owner.items():
        names = [name.replace(expression, value) for name in names]
    tags = re.findall(r'--tag "\$image:(\S+)"', RELEASE)
    return {name: {tag.replace("$VERSION", __version__) for tag in tags} for name in names}


def test_the_image_has_the_names_and_tags_of_the_documentation() -> None:
    rows = re.findall(r"^\| `(ghcr\.io/\S+?)`.*? \| (.*) \|$", VERIFY, re.MULTILINE)
    assert {name: set(re.findall(r"`([^`]+)`", tags)) for name, tags in rows} == published()


def test_the_image_has_the_name_and_tag_of_the_original_edge() -> None:
    """Its README runs `ghcr.io/fairvisor/fairvisor-edge:v0.1.0`."""
    assert f"v{__version__}" in published()["ghcr.io/fairvisor/fairvisor-edge"]


def test_every_image_of_ours_that_a_page_or_a_manifest_names_is_published() -> None:
    places = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / "conf").rglob("*.yaml")]
    for path in places:
        for name, tag in re.findall(
            r"(ghcr\.io/fairvisor/[\w-]+)(?::([\w.-]+))?(?![\w/-])", path.read_text()
        ):
            if name != "ghcr.io/fairvisor/charts":
                assert name in published(), f"{path.name}: {name}"
                assert tag in {"", *published()[name]}, f"{path.name}: {name}:{tag}"


def test_what_is_signed_is_checked_by_the_documented_lines() -> None:
    """The identity is this workflow's for a tag, and the files are those that the release page gets."""
    assert 'tags: ["v*"]' in RELEASE
    assert "/.github/workflows/release.yml@refs/tags/v$version" in VERIFY
    assert 'cosign sign --yes --recursive "$IMAGE@$digest" "$ORIGINAL_IMAGE@$digest"' in RELEASE
    assert re.search(r"^cosign verify --certificate-identity ", VERIFY, re.MULTILINE)
    assert "cosign sign-blob --yes --bundle SHA256SUMS.sigstore.json SHA256SUMS" in RELEASE
    assert "cosign verify-blob --bundle SHA256SUMS.sigstore.json " in VERIFY
    assert "sha256sum -- * > SHA256SUMS" in RELEASE
    assert "sha256sum --check SHA256SUMS" in VERIFY
    assert RELEASE.count("uses: actions/attest-build-provenance@") == len(published()) + 1
    assert 'gh attestation verify "oci://$image" --repo ' in VERIFY


def test_wheels_and_image_are_built_on_both_architectures() -> None:
    runners = {"ubuntu-24.04", "ubuntu-24.04-arm"}
    (matrix,) = re.findall(r"runner: \[(.*)\]", jobs(RELEASE)["wheels"])
    assert set(matrix.split(", ")) == runners
    assert set(re.findall(r"\{runner: ([\w.-]+), ", jobs(RELEASE)["image"])) == runners


def test_the_tests_run_on_both_architectures() -> None:
    assert re.findall(r"runner: \[?([\w.-]+)[\]}]", jobs(WORKFLOWS["ci.yml"])["test"]) == [
        "ubuntu-24.04",
        "ubuntu-24.04-arm",
    ]
