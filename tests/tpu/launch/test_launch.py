"""Laws of a launch: what becomes of a slice and of a job on two hosts.

gcloud is a stand-in that runs the hosts' script in folders of this machine; Python and uv on a host
are stand-ins, too.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompteol_jax.errors import UserError
from tpu.launch import command as launch
from tpu.launch.command import LaunchOptions
from tpu.launch.launch import NotOurs

ROOT = Path(__file__).resolve().parents[3]
# Python on a host: the job writes its arguments. What it does then depends on their last word,
# the first time that it runs on this host.
PYTHON = """#!/usr/bin/env bash
case "$1" in
-c) echo jax 0; exit ;;
esac
case "$*" in
*nothing) ;;
*) mkdir -p runs; echo "$@" >runs/said ;;
esac
echo "step 1 of $@"
begun="$FAKE_CLOUD/begun-$(basename "$HOME")"
[ -f "$begun" ] && exit
touch "$begun"
case "$*" in
*bad) exit 7 ;;
*asked*) exit 75 ;;
*short) sleep 2 ;;
*train.contrastive*|*slow) sleep 60 ;;
esac
"""
UV = """#!/usr/bin/env bash
if [ "$1" = venv ]; then mkdir -p .venv/bin; cp "$FAKE_CLOUD/python" .venv/bin/python; fi
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Make a checkout that holds the hosts' script, as it is now, and is quick to copy."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "tpu" / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "tpu" / "launch" / "host.sh", folder / "tpu" / "launch")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", folder, *words], check=True)
    return folder


@pytest.fixture
def cloud(tmp_path, monkeypatch, checkout):
    """The folder of the stand-in cloud, whose gcloud and uv come first on the path."""
    monkeypatch.setattr("tpu.launch.launch.ROOT", checkout)
    folder, programs = tmp_path / "cloud", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    script = ROOT / "tests" / "support" / "fake_gcloud.py"
    fake = f'#!/usr/bin/env bash\nexec {sys.executable} -S -E {script} "$@"\n'
    for path, text in (
        (programs / "gcloud", fake),
        (programs / "uv", UV),
        (folder / "python", PYTHON),
    ):
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CLOUD", str(folder))
    return folder


def verbs(cloud: Path) -> list[str]:
    """What was asked of the cloud, in order, each as `create`, `ssh 0 follow` and the like."""
    said = []
    for line in (cloud / "calls").read_text().splitlines():
        words = json.loads(line)
        worker = [w.partition("=")[2] for w in words if w.startswith("--worker=")]
        job = [w.split("host.sh ")[1].split()[0] for w in words if "host.sh" in w]
        said.append(" ".join([words[3], *worker, *job]))
    return said


def options(**changes) -> LaunchOptions:
    return LaunchOptions(**{"slice": "v5e-8", "zone": "z", "poll_s": 0.05} | changes)


def test_a_job_runs_on_every_host_and_its_results_come_back(cloud, tmp_path, capfd):
    chosen = options(fetch_to=tmp_path, delete=True)
    assert launch.run(chosen, ["python", "-m", "it's", "a job"]) == 0
    assert verbs(cloud) == [
        *("describe", "create", "describe", "scp all", "ssh all setup", "ssh all start"),
        *("ssh 0 follow", "scp 0", "delete"),
    ]
    assert (tmp_path / "runs" / "said").read_text() == "-m it's a job\n"
    assert "step 1 of -m it's a job" in capfd.readouterr().out
    assert not (cloud / "state").exists()


def test_a_slice_that_exists_is_reused(cloud, tmp_path):
    for target in (tmp_path / "a", tmp_path / "b"):
        target.mkdir()
        assert launch.run(options(fetch_to=target), ["python", "job"]) == 0
        assert (cloud / "host1" / "prompteol-jax" / "runs" / "said").read_text() == "job\n"
    assert verbs(cloud).count("create") == 1


def test_the_status_of_the_job_is_that_of_the_launch(cloud, tmp_path):
    assert launch.run(options(fetch_to=tmp_path, delete=True), ["python", "x", "bad"]) == 7
    assert verbs(cloud)[-4:] == ["describe", "ssh 0 status", "scp 0", "delete"]
    assert (tmp_path / "runs" / "said").read_text() == "x bad\n"


@pytest.mark.parametrize(
    ("events", "spot"), [(["drop"], False), (["drop", "outage"], False), (["drop", "outage"], True)]
)
def test_a_connection_that_breaks_is_made_again(cloud, tmp_path, capfd, events, spot):
    for event in events:
        (cloud / event).touch()
    chosen = options(fetch_to=tmp_path, spot=spot, delete=True)
    assert launch.run(chosen, ["python", "x", "short"]) == 0
    assert verbs(cloud).count("ssh 0 follow") == 2
    assert verbs(cloud).count("create") == verbs(cloud).count("delete") == 1
    shown = capfd.readouterr()
    assert "the connection to host 0 broke" in shown.err
    assert "step 1 of x" in shown.out


def test_a_spot_slice_is_asked_for_again_and_the_run_goes_on(cloud):
    (cloud / "preempt").touch()
    command = ["python", "-m", "train.contrastive", "--output", "gs://b/run"]
    assert launch.run(options(spot=True, queued=True), command) == 0
    asked = verbs(cloud)
    assert asked.count("create") == 2
    assert asked.count("ssh 0 follow") == 2
    said = (cloud / "host0" / "prompteol-jax" / "runs" / "said").read_text()
    assert said == "-m train.contrastive --output gs://b/run --coordinator auto --resume\n"


def test_a_slice_that_is_no_spot_slice_and_goes_away_is_an_error(cloud):
    (cloud / "preempt").touch()
    with pytest.raises(ValueError, match="the slice prompteol is gone: PREEMPTED"):
        launch.run(options(), ["python", "slow"])


@pytest.mark.parametrize("late", [2, None])
def test_a_training_that_was_asked_to_stop_goes_on(cloud, late):
    """It saves, and ends with 75, before the slice shows that it is taken away, if it ever does."""
    if late is not None:
        (cloud / "late").write_text(str(late))
    command = ["python", "-m", "train.contrastive", "--output=gs://b/asked"]
    assert launch.run(options(spot=True, delete=True), command) == 0
    assert verbs(cloud).count("ssh all start") == 2
    assert verbs(cloud).count("create") == (1 if late is None else 2)


def test_without_spot_the_status_of_a_stopped_training_is_that_of_the_launch(cloud, tmp_path):
    assert launch.run(options(fetch_to=tmp_path), ["python", "asked"]) == 75
    assert verbs(cloud).count("ssh all start") == 1


@pytest.mark.parametrize(
    ("request_", "vm", "creations"),
    [
        ("WAITING_FOR_RESOURCES", None, 0),
        ("SUSPENDED", None, 1),
        ("FAILED", None, 1),
        ("ACTIVE", "PREEMPTED", 1),
        (None, "READY", 0),
    ],
)
def test_a_request_that_is_left_over_is_taken_up_or_removed(
    cloud, tmp_path, request_, vm, creations
):
    for name, state in (("request", request_), ("state", vm)):
        if state is not None:
            (cloud / name).write_text(state)
    (cloud / "kind").write_text("v5litepod-8")
    if vm == "READY":
        for name in ("host0", "host1"):
            (cloud / name).mkdir()
    chosen = options(queued=True, delete=True, fetch_to=tmp_path)
    assert launch.run(chosen, ["python", "x"]) == 0
    assert verbs(cloud).count("create") == creations
    assert not (cloud / "request").exists()
    assert not (cloud / "state").exists()


def test_a_slice_of_another_size_is_neither_used_nor_deleted(cloud, tmp_path):
    assert launch.run(options(fetch_to=tmp_path), ["python", "x"]) == 0
    with pytest.raises(NotOurs, match="is a v5litepod-8, not a v5litepod-16"):
        launch.run(options(slice="v5e-16", delete=True), ["python", "x"])
    assert (cloud / "state").exists()


def test_a_slice_on_which_another_job_runs_is_neither_used_nor_deleted(
    cloud, tmp_path, monkeypatch
):
    first = start_launch(cloud, ["--fetch-to", str(tmp_path)], ["python", "slow"])
    monkeypatch.setenv("PROMPTEOL_WAIT_S", "0")
    with pytest.raises(NotOurs, match="another job runs on the slice prompteol"):
        launch.run(options(delete=True), ["python", "x"])
    assert (cloud / "state").exists()
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    subprocess.run(["bash", cloud / "host0/prompteol-jax/tpu/launch/host.sh", "stop"], check=False)


def test_a_job_waits_for_the_end_of_the_job_before(cloud, tmp_path):
    first = start_launch(cloud, ["--fetch-to", str(tmp_path)], ["python", "short"])
    (tmp_path / "b").mkdir()
    assert launch.run(options(fetch_to=tmp_path / "b"), ["python", "x"]) == 0
    assert first.wait() == 0
    assert (tmp_path / "b" / "runs" / "said").read_text() == "x\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_deletes_the_slice(cloud, number):
    process = start_launch(cloud, ["--delete"], ["python", "slow"])
    process.send_signal(number)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # another one does not stop the deletion
    assert process.wait() == 128 + number
    assert verbs(cloud)[-1] == "delete"
    assert not (cloud / "state").exists()


def start_launch(cloud: Path, flags: list[str], command: list[str]) -> subprocess.Popen:
    """Start a launch in a process of its own, and return when its job runs."""
    words = ["v5e-8", "--zone", "z", "--poll-s", "0.05", *flags, "--", *command]
    process = subprocess.Popen(
        [sys.executable, "-m", "tpu.launch", *words], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    for _ in range(600):
        if (cloud / "calls").exists() and "ssh 0 follow" in verbs(cloud):
            break
        time.sleep(0.05)
    return process


def test_what_a_command_did_not_write_is_no_error_unless_it_was_asked_for(cloud, tmp_path):
    assert launch.run(options(fetch_to=tmp_path), ["python", "nothing"]) == 0
    with pytest.raises(UserError, match=r"wrote no a\.json, which --fetch names"):
        launch.run(options(fetch_to=tmp_path, fetch=("a.json",)), ["python", "nothing"])


def test_a_dry_run_prints_commands_and_runs_none(cloud, capsys):
    assert launch.run(options(dry_run=True, delete=True), ["python", "job"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in printed if line.startswith("gcloud")] == [
        *("describe", "create", "describe", "scp", "ssh", "ssh", "ssh", "scp", "delete")
    ]
    assert not (cloud / "calls").exists()


def test_no_gcloud_is_an_error_that_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="install the Google Cloud CLI"):
        launch.run(options(), ["python", "job"])


def test_the_shell_script_has_no_faults():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    scripts = [ROOT / "tpu" / "launch" / "host.sh", ROOT / ".ci" / "run"]
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.stdout == ""
