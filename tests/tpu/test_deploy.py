"""The SkyPilot file is a task to SkyPilot itself.

Needs skypilot, which `make plan-test` installs beside libtpu, apart from everything else.
"""

import importlib.util
from pathlib import Path

import pytest
import yaml

TASK = Path(__file__).parents[2] / "tpu" / "deploy" / "skypilot.yaml"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("sky") is None,
        reason="skypilot is missing: `make plan-test` runs this in an environment that has it",
    ),
    pytest.mark.filterwarnings("ignore"),  # those of the libraries that skypilot imports
]


def check(task, monkeypatch):
    """Hold a task, and the resources it asks for, to SkyPilot's own schemas."""
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    import jsonschema
    from sky.utils import schemas

    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())


def test_the_task_keeps_to_skypilots_schema(monkeypatch):
    check(yaml.safe_load(TASK.read_text(encoding="utf-8")), monkeypatch)


@pytest.mark.parametrize("wrong", [{"work_dir": "."}, {"resources": {"accelerator": "tpu"}}])
def test_the_schema_refuses_what_skypilot_does_not_know(wrong, monkeypatch):
    import jsonschema

    task = yaml.safe_load(TASK.read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        check(task | wrong, monkeypatch)
