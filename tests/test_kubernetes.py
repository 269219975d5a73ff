"""The Kubernetes manifests: valid by the schemas of Kubernetes, rendered by Helm itself, and as careful as the systemd
unit is: no root, nothing to write but what must be, shared memory of its own."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairvisor.bundle.load import parse
from fairvisor.settings import Settings, declared

ROOT = Path(__file__).parents[1]
CHART = ROOT / "conf" / "helm" / "fairvisor"
SIDECAR = ROOT / "conf" / "kubernetes" / "sidecar.yaml"
OF_THE_IMAGE = {"FAIRVISOR_CONFIG_FILE": "/etc/fairvisor/policy.json"}
OLDEST, NEWEST = "1.25.0", "1.34.0"

# What a chart is told, and the kinds it then has besides those that are always there.
VALUES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, {"ConfigMap"}),
    "a volume": (
        {"persistence": {"enabled": True, "storageClassName": "fast"}},
        {"ConfigMap", "PersistentVolumeClaim"},
    ),
    "who may ask": (
        {"networkPolicy": {"enabled": True, "podSelector": {"matchLabels": {"app": "gateway"}},
                           "namespaceSelector": {}, "extraFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}},
        {"ConfigMap", "NetworkPolicy"},
    ),
    "settings": (
        {"settings": {"TRUSTED_PROXIES": "10.0.0.0/8", "MAX_BODY": "4m"}, "workers": 4, "replicas": 2,
         "secretSettings": {"DECISION_TOKEN": {"name": "fairvisor", "key": "token"}}},
        {"ConfigMap"},
    ),
    "a policy of one's own": (
        {"existingPolicy": "mine", "podLabels": {"a": "b"}, "podAnnotations": {"c": "d"}, "nodeSelector": {"e": "f"},
         "tolerations": [{"key": "g", "operator": "Exists"}], "serviceAccount": {"create": True, "name": "h"},
         "imagePullSecrets": [{"name": "i"}], "service": {"annotations": {"j": "k"}}},
        set(),
    ),
}  # fmt: skip
ALWAYS = {"Deployment", "Service", "ServiceAccount"}


def read(text: str) -> list[dict[str, Any]]:
    yaml = importlib.import_module("yaml")
    return [document for document in yaml.safe_load_all(text) if document]


def rendered(values: dict[str, Any], name: str = "edge") -> list[dict[str, Any]]:
    """The chart's manifests, by Helm."""
    charts = importlib.import_module("helm_python.chart")
    texts = charts.Chart.load(str(CHART)).render(values, name=name, namespace="limits")
    return [document for path, text in texts.items() if path.endswith(".yaml") for document in read(text)]


def kind(documents: list[dict[str, Any]], wanted: str) -> dict[str, Any]:
    (found,) = (document for document in documents if document["kind"] == wanted)
    return found


def check_schema(document: dict[str, Any]) -> None:
    validate = importlib.import_module("kubernetes_validate").validate
    for version in (OLDEST, NEWEST):
        validate(document, version, strict=True)


def edges(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The containers that run the edge, each with its pod."""
    if document["kind"] == "Deployment":
        pod = document["spec"]["template"]["spec"]
        for container in pod["containers"]:
            if container["image"].startswith("ghcr.io/fairvisor/"):
                yield container, pod


def check_edge(container: dict[str, Any], pod: dict[str, Any]) -> None:
    """What holds for every container that runs the edge."""
    security = {**pod["securityContext"], **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "FAIRVISOR_PORT and its kin are not ours"

    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert set(mounted) == {"/dev/shm", "/etc/fairvisor", "/var/lib/fairvisor"}

    environ = {each["name"]: each.get("value", "a secret of sixteen") for each in container["env"]}
    assert set(environ) <= {variable for setting in declared() for variable in setting.variables}
    settings = Settings.load(OF_THE_IMAGE | environ, {})
    assert pod["terminationGracePeriodSeconds"] >= settings.lame_duck_s + 35, (
        "a held answer is finished first"
    )
    assert settings.lame_duck_s > 0, "connections come while the pod is taken out of the Services"
    assert settings.bundle_order == "file", "a ConfigMap that is put back is in force"
    assert settings.state_dir.parent == Path("/var/lib/fairvisor"), (
        "each user in the pod can write the volume itself"
    )
    assert settings.worker_processes, "a pod sees every processor of its node"
    shared_bytes = int(mounted["/dev/shm"]["emptyDir"]["sizeLimit"].removesuffix("Mi")) << 20
    memory_bytes = int(container["resources"]["limits"]["memory"].removesuffix("Mi")) << 20
    assert settings.shared_dict_size < shared_bytes < memory_bytes

    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] == ("/readyz" if probe == "readinessProbe" else "/livez")
        assert ports[asked["port"]] == (settings.health_bind.port if settings.health_bind else 8080)


@pytest.mark.needs("helm_python")
def test_helm_has_nothing_to_say_about_the_chart() -> None:
    report = importlib.import_module("helm_python.chart").lint(str(CHART), strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.needs("helm_python", "kubernetes_validate")
@pytest.mark.parametrize("given", VALUES)
def test_the_chart_renders_to_what_kubernetes_takes(given: str) -> None:
    values, more = VALUES[given]
    documents = rendered(values)
    assert sorted(document["kind"] for document in documents) == sorted(ALWAYS | more)
    for document in documents:
        check_schema(document)
    (edge,) = edges(kind(documents, "Deployment"))
    check_edge(*edge)
    security = edge[1]["securityContext"]
    assert security["runAsUser"] == 10001 == security["fsGroup"]


def snippet(name: str) -> str:
    """The YAML that docs/install/kubernetes.md shows under this name."""
    page = (ROOT / "docs" / "install" / "kubernetes.md").read_text()
    return page.partition(f"```yaml {name}\n")[2].partition("```")[0]


@pytest.mark.needs("helm_python", "kubernetes_validate")
def test_the_platform_chooses_users_where_the_values_name_none() -> None:
    """The restricted policies of OpenShift admit no fixed user: each namespace has a range of its own."""
    (values,) = read(snippet("openshift.yaml"))
    deployment = kind(rendered(values), "Deployment")
    check_schema(deployment)
    ((container, pod),) = edges(deployment)
    check_edge(container, pod)
    for context in (pod["securityContext"], container["securityContext"]):
        assert not {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"} & set(context)


@pytest.mark.needs("helm_python")
def test_other_users_may_be_named() -> None:
    deployment = kind(rendered({"user": {"runAsUser": 1000680000, "fsGroup": None}}), "Deployment")
    ((_, pod),) = edges(deployment)
    assert pod["securityContext"]["runAsUser"] == 1000680000
    assert pod["securityContext"]["runAsGroup"] == 10001
    assert "fsGroup" not in pod["securityContext"]


@pytest.mark.needs("helm_python")
def test_the_order_of_bundles_and_the_lame_duck_are_values() -> None:
    ((container, _),) = edges(kind(rendered({"bundleOrder": "version", "lameDuckSeconds": 0}), "Deployment"))
    environ = {each["name"]: each["value"] for each in container["env"]}
    settings = Settings.load(OF_THE_IMAGE | environ, {})
    assert (settings.bundle_order, settings.lame_duck_s) == ("version", 0)


@pytest.mark.needs("helm_python")
def test_the_parts_of_a_release_find_each_other() -> None:
    documents = rendered({"persistence": {"enabled": True}, "networkPolicy": {"enabled": True}})
    deployment = kind(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    assert kind(documents, "Service")["spec"]["selector"].items() <= labels
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels
    assert kind(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels
    pod = deployment["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = volumes["state"]["persistentVolumeClaim"]["claimName"]
    assert claim == kind(documents, "PersistentVolumeClaim")["metadata"]["name"]
    assert volumes["policy"]["configMap"]["name"] == kind(documents, "ConfigMap")["metadata"]["name"]
    assert pod["serviceAccountName"] == kind(documents, "ServiceAccount")["metadata"]["name"]
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}, "two pods would count apart"


@pytest.mark.needs("helm_python")
@pytest.mark.parametrize(("release", "name"), [("edge", "edge-fairvisor"), ("fairvisor", "fairvisor")])
def test_names_follow_the_release(release: str, name: str) -> None:
    assert {document["metadata"]["name"] for document in rendered({}, name=release)} == {name}


@pytest.mark.needs("helm_python")
def test_the_policy_is_carried_as_it_is_written() -> None:
    policy = json.dumps({"bundle_version": 7, "policies": []}, indent=2) + '\n\n  "{{ quoted }}": é\n'
    assert kind(rendered({"policy": policy}), "ConfigMap")["data"] == {"policy.json": policy}


@pytest.mark.needs("helm_python")
def test_the_policy_of_a_new_release_is_valid() -> None:
    policy = kind(rendered({}), "ConfigMap")["data"]["policy.json"]
    assert parse(policy.encode(), wall_ns=0, environ={}).model.bundle_version == 1


@pytest.mark.needs("yaml", "kubernetes_validate")
def test_the_sidecar_is_what_kubernetes_takes() -> None:
    documents = read(SIDECAR.read_text())
    assert [document["kind"] for document in documents] == ["Deployment", "Service"]
    for document in documents:
        check_schema(document)
    deployment, service = documents
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    (edge,) = edges(deployment)
    check_edge(*edge)


@pytest.mark.needs("yaml")
def test_the_sidecar_mounts_the_gateway_s_configuration_whole() -> None:
    pod = read(SIDECAR.read_text())[0]["spec"]["template"]["spec"]
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "gateway")
    paths = {item["path"] for item in volume["configMap"]["items"]}
    nginx = ROOT / "conf" / "gateways" / "nginx"
    text = "".join((nginx / path).read_text() for path in paths)
    assert set(re.findall(r"^\s*include (\S+);", text, re.MULTILINE)) | {"nginx.conf"} == paths
    (edge,) = edges(read(SIDECAR.read_text())[0])
    environ = OF_THE_IMAGE | {each["name"]: each["value"] for each in edge[0]["env"]}
    assert f"server {Settings.load(environ, {}).bind[0]};" in text
