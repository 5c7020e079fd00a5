"""The files for Kubernetes and SkyPilot keep to their schemas, and their commands parse."""

import tomllib
from pathlib import Path

import kubernetes_validate
import tyro
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prompteol_jax.cli.encode import EncodeOptions
from prompteol_jax.cli.options import check
from prompteol_jax.serve.options import ServeOptions
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


def test_the_server_is_ready_when_healthy_and_has_time_to_drain():
    deployment, service = yaml.safe_load_all((ROOT / "tpu/deploy/serve.yaml").read_text())
    version = kubernetes_validate.latest_version()
    for one in (deployment, service):
        kubernetes_validate.validate(one, version, strict=True)
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    (container,) = pod["spec"]["containers"]
    command = container["command"]
    assert command[:2] == ["prompteol", "serve"]
    options = tyro.cli(ServeOptions, args=command[2:])
    check(options)
    assert container["ports"][0]["containerPort"] == options.port
    assert pod["spec"]["terminationGracePeriodSeconds"] > options.drain_s
    paths = {name: container[name]["httpGet"]["path"] for name in container if "Probe" in name}
    health = "/health"
    live = {"livenessProbe": "/health/live"}
    assert paths == {"startupProbe": health, "readinessProbe": health} | live


def test_the_ray_job_asks_for_whole_hosts_and_its_command_parses():
    job = yaml.safe_load((ROOT / "tpu/deploy/rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["spec"]) <= RAYJOB_FIELDS
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) <= RAYCLUSTER_FIELDS
    (workers,) = cluster["workerGroupSpecs"]
    assert set(workers) <= WORKERGROUP_FIELDS
    version = kubernetes_validate.latest_version()
    for group in (cluster["headGroupSpec"], workers):
        head = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
        kubernetes_validate.validate(head | group["template"], version, strict=True)
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["prompteol", "encode"]
    options = tyro.cli(EncodeOptions, args=words[2:])
    assert (options.engine, options.device) == ("ray", "tpu")
    chips = workers["template"]["spec"]["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert options.mesh == f"{chips}x1"
    assert workers["numOfHosts"] == 1
    assert options.workers == f"{workers['minReplicas']}:{workers['maxReplicas']}"


def test_the_lock_has_one_exact_version_a_package_and_fits_the_project():
    lines = (ROOT / "tpu/deploy/requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(one.name): one.specifier for one in locked}
    assert len(versions) == len(locked) > 50
    assert all(str(specifier).startswith("==") for specifier in versions.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["serve"], *extras["ray"], *extras["gcs"]]:
        asked = Requirement(text)
        found = str(versions[canonicalize_name(asked.name)]).removeprefix("==")
        assert asked.specifier.contains(found), f"{text} is locked as {found}"


# Fields of a RayJob's spec, of a RayCluster's and of a worker group's; source: KubeRay's ray.io/v1.
RAYJOB_FIELDS = frozenset(
    "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint "
    "entrypointNumCpus entrypointNumGpus entrypointResources jobId managedBy metadata "
    "rayClusterSpec runtimeEnvYAML shutdownAfterJobFinishes submissionMode submitterConfig "
    "submitterPodTemplate suspend ttlSecondsAfterFinished".split()
)
RAYCLUSTER_FIELDS = frozenset(
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions "
    "headGroupSpec headServiceAnnotations managedBy rayVersion suspend upgradeStrategy "
    "workerGroupSpecs".split()
)
WORKERGROUP_FIELDS = frozenset(
    "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts rayStartParams "
    "replicas resources scaleStrategy suspend template".split()
)
# Fields of a JobSet's spec; source: its API v1alpha2.
JOBSET_FIELDS = frozenset(
    "replicatedJobs network successPolicy failurePolicy startupPolicy suspend coordinator "
    "managedBy ttlSecondsAfterFinished volumeClaimPolicies".split()
)


def check_command(words: list[str]) -> None:
    from train.config import TrainConfig

    config = tyro.cli(TrainConfig, args=words[words.index("train.contrastive") + 1 :])
    assert str(config.output).startswith("gs:")
