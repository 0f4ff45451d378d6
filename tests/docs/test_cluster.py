"""docs/cluster.md: its Kubernetes jobs are some, and their pods build the cache. Its Slurm jobs: tests/precaching."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aneurysm._version import __version__
from aneurysm.cli.exits import Exit
from tests.support.cache_state import leftovers, manifest
from tests.support.command import call_in_process, environment
from tests.support.run_data import ROOT, write_rsna_data
from tests.support.running import published

Document = dict[str, Any]


def documents(name: str) -> list[Document]:
    text = (ROOT / "docs" / "cluster.md").read_text()
    found = re.search(rf"`{re.escape(name)}`.*?\n```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return list(yaml.safe_load_all(found[1]))


ALL = [*documents("precache.yaml"), *documents("tables.yaml")]
CLAIMS = {d["metadata"]["name"]: d for d in ALL if d["kind"] == "PersistentVolumeClaim"}
JOBS = {d["metadata"]["name"]: d for d in ALL if d["kind"] == "Job"}


def containers(job: Document) -> Iterator[Document]:
    pod = job["spec"]["template"]["spec"]
    yield from (*pod.get("initContainers", ()), *pod["containers"])


@pytest.mark.parametrize("version", ["1.31", "1.33", "1.35", "1.37"])
def test_the_files_are_such_as_kubernetes_takes(version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the schemas of Kubernetes aren't there")
    assert [d["kind"] for d in ALL] == ["PersistentVolumeClaim", "PersistentVolumeClaim", "Job", "Job"]
    for document in ALL:
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_no_pod_may_more_than_it_must(name: str) -> None:
    pod = JOBS[name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {v["name"]: v for v in pod["volumes"]}
    found = list(containers(JOBS[name]))
    assert found
    for container in found:
        assert container["image"] == f"registry.example.org/aneurysm:{__version__}"
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounts = {m["name"]: m for m in container["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert mounts["data"]["readOnly"]
        assert volumes["data"]["persistentVolumeClaim"]["readOnly"]
        assert "emptyDir" in volumes["tmp"]
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_the_claims_may_be_used_by_all_pods() -> None:
    used = {
        volume["persistentVolumeClaim"]["claimName"]
        for job in JOBS.values()
        for volume in job["spec"]["template"]["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert set(CLAIMS) == used
    assert CLAIMS["rsna-data"]["spec"]["accessModes"] == ["ReadOnlyMany"]
    assert CLAIMS["rsna-cache"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_what_is_tried_again_and_what_is_not() -> None:
    spec = JOBS["precache"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "without it there is no policy for failures"
    ignored, ended = spec["podFailurePolicy"]["rules"]
    assert ignored == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert ended["action"] == "FailJob"
    assert ended["onExitCodes"]["containerName"] == "precache", "a node that the doctor finds ill does not end the job"
    assert set(ended["onExitCodes"]["values"]) == {Exit.USAGE, Exit.CACHE, Exit.NO_SPACE}
    (_, ended) = JOBS["precache-tables"]["spec"]["podFailurePolicy"]["rules"]
    assert Exit.INCOMPLETE in ended["onExitCodes"]["values"]


def test_the_memory_is_that_of_the_workers() -> None:
    *_, container = containers(JOBS["precache"])
    arguments = container["args"]
    workers, each_mb = (int(arguments[arguments.index(o) + 1]) for o in ("--workers", "--memory-mb"))
    assert container["resources"]["limits"]["memory"] == "12Gi"
    assert workers * each_mb * 1.1 * 10**6 + 2**30 <= 12 * 2**30 + 2**28
    assert container["resources"]["requests"]["cpu"] == str(workers)


def run_pod(container: Document, tmp_path: Path, **variables: str) -> Any:
    """What the container does, where its volumes would be mounted."""
    places = {"/data": str(tmp_path / "data"), "/cache": str(tmp_path / "cache")}
    arguments = [places.get(a, a) for a in container["args"]]
    if "--workers" in arguments:
        arguments[arguments.index("--workers") + 1] = "1"
    env = {e["name"]: places.get(e["value"], e["value"]) for e in container.get("env", ()) if "value" in e}
    return call_in_process(*arguments, env=environment(**env, **variables))


def test_its_pods_build_the_cache_together(tmp_path: Path) -> None:
    uids = write_rsna_data(tmp_path / "data", n_series=3)
    doctor, precache = containers(JOBS["precache"])
    env = {e["name"]: e for e in precache["env"]}
    assert env["ANEURYSM_SHARDS"]["value"] == str(JOBS["precache"]["spec"]["completions"])
    (run,) = re.findall(r"labels\['(.*)'\]", env["ANEURYSM_RUN"]["valueFrom"]["fieldRef"]["fieldPath"])
    assert run == "batch.kubernetes.io/controller-uid"
    uid = "0f1c8a52-9d2b-4c0e-8f57-3a6f0f9d7f11"
    ran = run_pod(doctor, tmp_path)
    assert ran.code == 0, ran.text
    built = []
    for index in range(JOBS["precache"]["spec"]["completions"]):
        before = set(published(tmp_path / "cache"))
        ran = run_pod(precache, tmp_path, JOB_COMPLETION_INDEX=str(index), ANEURYSM_RUN=uid)
        assert ran.code == 0, ran.text
        built.append(len(set(published(tmp_path / "cache")) - before))
    # The fourth to last have nothing to do, and say so with a 0.
    assert built == [1, 1, 1, 0, 0, 0, 0, 0]
    (tables,) = containers(JOBS["precache-tables"])
    ran = run_pod(tables, tmp_path)
    assert ran.code == 0, ran.text
    assert set(manifest(tmp_path / "cache")) == set(uids)
    assert leftovers(tmp_path / "cache") == []
    assert {p.name for p in (tmp_path / "cache" / ".runs").iterdir()} == {uid}
