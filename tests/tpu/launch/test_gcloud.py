"""The commands of a launch are commands of gcloud."""

import pytest

from tpu.launch.gcloud import Machine
from tpu.launch.slices import parse_slice

PLACE = ["--zone=z", "--project=p"]

VM = Machine(name="n", zone="z", project="p")
QUEUED = Machine(name="n", zone="z", project="p", queued=True)
SLICE = parse_slice("v5e-8")
KIND, IMAGE = "--accelerator-type=v5litepod-8", "v2-alpha-tpuv5-lite"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            VM.create(SLICE, spot=True, extra=["--network=x"]),
            ["tpu-vm", "create", "n", f"--version={IMAGE}", KIND, "--spot", *PLACE, "--network=x"],
        ),
        (
            QUEUED.create(SLICE, spot=False),
            [
                *("queued-resources", "create", "n", "--node-id=n"),
                *(f"--runtime-version={IMAGE}", KIND, *PLACE),
            ],
        ),
        (VM.delete(), ["tpu-vm", "delete", "n", "--quiet", *PLACE]),
        (QUEUED.delete(), ["queued-resources", "delete", "n", "--force", "--quiet", *PLACE]),
        (VM.state(), ["tpu-vm", "describe", "n", "--format=value(state)", *PLACE]),
        (
            QUEUED.request_state(),
            ["queued-resources", "describe", "n", "--format=value(state.state)", *PLACE],
        ),
        (VM.run("a b", worker="0"), ["tpu-vm", "ssh", "n", "--worker=0", "--command=a b", *PLACE]),
        (VM.send("f", "g"), ["tpu-vm", "scp", "f", "n:g", "--worker=all", *PLACE]),
        (VM.fetch("f", "."), ["tpu-vm", "scp", "--recurse", "n:f", ".", "--worker=0", *PLACE]),
    ],
    ids=lambda value: value[4] if value[0] == "gcloud" else "",
)
def test_commands_are_those_that_gcloud_takes(words, expected):
    assert words == ["gcloud", "compute", "tpus", *expected]
