"""Slices have the names that Google Cloud knows."""

import pytest

from tpu.launch.slices import parse_slice


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e-8", ("v5litepod-8", "v2-alpha-tpuv5-lite", 8)),
        ("v6e-256", ("v6e-256", "v2-alpha-tpuv6e", 256)),
        ("v4-8", ("v4-8", "tpu-ubuntu2204-base", 4)),
        ("v5p-128", ("v5p-128", "v2-alpha-tpuv5", 64)),
    ],
)
def test_slices_have_the_names_of_the_cloud(name, expected):
    assert parse_slice(name) == expected


@pytest.mark.parametrize("name", ["v5e", "v5e-0", "v9-8", "v4-3", "8", "v5litepod-8", "tpu7x-8"])
def test_other_slices_are_refused(name):
    with pytest.raises(ValueError, match=f"slice '{name}'"):
        parse_slice(name)
