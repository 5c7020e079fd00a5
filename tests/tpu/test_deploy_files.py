"""The files for Kubernetes and SkyPilot keep to their schemas, and their commands parse."""

from pathlib import Path

import kubernetes_validate
import yaml

from tpu.launch.slices import parse_slice

ROOT = Path(__file__).resolve().parents[2]


def test_the_jobset_asks_for_whole_hosts_of_its_topology():
    job = yaml.safe_load((ROOT / "tpu/deploy/jobset.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (hosts,) = job["spec"]["replicatedJobs"]
    # Unknown or misplaced fields of the job and its pod are refused by Kubernetes' own schema.
    head = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hosts"}}
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(head | hosts["template"], version, strict=True)
    assert set(job["spec"]) <= JOBSET_FIELDS
    assert set(hosts) == {"name", "replicas", "template"}
    spec = hosts["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == rows * columns // chips
    assert parse_slice(f"v5e-{rows * columns}").chips == rows * columns
    assert f"--mesh={rows * columns}x1" in container["command"]
    check_command(container["command"])


def test_the_skypilot_task_runs_a_command_that_parses():
    task = yaml.safe_load((ROOT / "tpu/deploy/skypilot.yaml").read_text(encoding="utf-8"))
    kind = task["resources"]["accelerators"].removeprefix("tpu-")
    assert kind == parse_slice("v5e-8").accelerator_type
    assert task["resources"]["accelerator_args"]["runtime_version"] == parse_slice("v5e-8").image
    assert set(task) == {"name", "workdir", "resources", "setup", "run"}
    check_command(task["run"].replace("\\\n", " ").split())


# Fields of a JobSet's spec; source: its API v1alpha2.
JOBSET_FIELDS = frozenset(
    "replicatedJobs network successPolicy failurePolicy startupPolicy suspend coordinator "
    "managedBy ttlSecondsAfterFinished volumeClaimPolicies".split()
)


def check_command(words: list[str]) -> None:
    import tyro

    from train.config import TrainConfig

    config = tyro.cli(TrainConfig, args=words[words.index("train.contrastive") + 1 :])
    assert str(config.output).startswith("gs:")
