"""docs/cluster.md: its Kubernetes job is one, and each pod's command does its part. Its Slurm jobs: tests/cache."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.support.cache_state import leftovers, manifest
from tests.support.command import call_cli, environment
from tests.support.run_data import ROOT, write_rsna_data
from tests.support.running import published


@pytest.fixture
def job() -> dict:
    text = (ROOT / "docs" / "cluster.md").read_text()
    found = re.search(r"`precache.yaml`.*?\n```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def test_the_job_is_one_that_kubernetes_takes(job):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="the schemas of Kubernetes aren't there")
    kubernetes_validate.validate(job, "1.33", strict=True)
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completionMode"] == "Indexed"
    assert {e["name"]: e["value"] for e in container["env"]}["ANEURYSM_SHARDS"] == str(spec["completions"])
    mounted = {m["name"] for m in container["volumeMounts"]}
    assert mounted == {v["name"] for v in spec["template"]["spec"]["volumes"]}


def test_its_pods_build_the_cache_together(job, tmp_path):
    uids = write_rsna_data(tmp_path / "data", n_series=3)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    program, *arguments = container["command"]
    assert program == "aneurysm"
    arguments[arguments.index("--workers") + 1] = "1"
    env = {e["name"]: e["value"] for e in container["env"]}
    # Where the volumes would be mounted.
    env |= {"ANEURYSM_DATA": str(tmp_path / "data"), "ANEURYSM_CACHE": str(tmp_path / "cache")}
    built = []
    for index in range(job["spec"]["completions"]):
        before = set(published(tmp_path / "cache"))
        ran = call_cli(*arguments, env=environment(**env, JOB_COMPLETION_INDEX=str(index)))
        assert ran.code == 0, ran.text
        built.append(len(set(published(tmp_path / "cache")) - before))
    # The fourth to last have nothing to do, and say so with a 0.
    assert built == [1, 1, 1, 0, 0, 0, 0, 0]
    ran = call_cli("manifest", env=environment(**env))
    assert ran.code == 0, ran.text
    assert set(manifest(tmp_path / "cache")) == set(uids)
    assert leftovers(tmp_path / "cache") == []
