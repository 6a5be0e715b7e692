"""The Kubernetes manifests, read as YAML."""

from pathlib import Path

import pytest

from medclip_jax.training.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def manifest(name):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "launch" / name).read_text())


def test_the_pods_of_the_jobset_find_each_other():
    found = manifest("jobset.yaml")
    name, (job,) = found["metadata"]["name"], found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    names = {entry["name"]: entry["value"] for entry in container["env"]}
    assert names["JAX_COORDINATOR_ADDRESS"] == f"{name}-{job['name']}-0-0.{name}:12355"
    assert int(names["JAX_NUM_PROCESSES"]) == spec["completions"] == spec["parallelism"]
    assert spec["completionMode"] == "Indexed"
    # A preempted pod fails its job for this reason, which costs the set no restart.
    assert spec["backoffLimit"] == 0
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    rule = found["spec"]["failurePolicy"]["rules"][0]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert container["command"] == ["bash", "launch/until_done.sh"]
    arguments = container["args"]
    assert arguments[:2] == ["medclip", "train"]
    config = next(a for a in arguments if a.startswith("--config=")).removeprefix("--config=")
    overrides = [argument for argument in arguments if argument.startswith("--config.")]
    assert load_config(ROOT / config, overrides).data.shards == "/storage/shards"


def test_the_indexed_job_makes_as_many_parts_as_it_has_pods():
    spec = manifest("prepare_job.yaml")["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    names = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert int(names["MEDCLIP_PART_COUNT"]) == spec["completions"]
    assert "--part=auto" in container["args"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["podFailurePolicy"]["rules"][0]["action"] == "Ignore"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
