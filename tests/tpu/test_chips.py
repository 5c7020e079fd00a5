"""Topologies are read as they are written, and know their rings."""

import pytest

from tpu.chips import CHIPS, chip_of, parse_topology, slices

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("text", ["v5e:2x4", "v5p:2x2x1", "v6e:16x16", "v4:4x4x4", "tpu7x:2x2x1"])
def test_a_topology_is_read_and_written_alike(text):
    assert str(parse_topology(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v5e:2x3", r"v5e:2x2, v5e:2x4, .*did you mean v5e:2x"),
        ("v5e:4x2", r"there are v5e:1x1, .* \(did you mean v5e:2x4"),
        ("v5p:2x2x3", r"v5p up to 16x16x24: .*did you mean v5p:2x2x"),
        ("v5p:8x4x4", r"multiples of 4 in rising order"),
        ("v5p:16x16x28", r"v5p up to 16x16x24"),
        ("v5-e:2x4", r"v5e up to 16x16, .*did you mean v5e:2x4"),
    ],
)
def test_a_wrong_slice_is_refused_with_those_of_its_chip_and_the_nearest(text, message):
    with pytest.raises(ValueError, match=message):
        parse_topology(text)


def test_the_names_of_generations_are_their_own():
    for field in ("name", "accelerator", "image"):
        assert len({getattr(chip, field) for chip in CHIPS.values()}) == len(CHIPS)  # one has none
    for chip in CHIPS.values():
        assert all(chip_of(kind) is chip for kind in chip.kinds)
    assert chip_of("NVIDIA H200") is None


@pytest.mark.parametrize("text", ["v5e", "v5e:8", "v5e:2x2x2", "v9:2x4", "v5e:16x32", "v5e:0x4"])
def test_another_form_is_refused_with_those_that_exist(text):
    with pytest.raises(ValueError, match="v5e up to 16x16"):
        parse_topology(text)


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        ("v5e:2x4", (False, False)),
        ("v5e:8x16", (False, True)),
        ("v5e:16x16", (True, True)),
        ("v5p:2x2x1", (False, False, False)),
        ("v5p:4x4x8", (True, True, True)),
    ],
)
def test_only_whole_axes_are_rings(text, rings):
    topology = parse_topology(text)
    assert tuple(topology.ring(axis) for axis in range(len(rings))) == rings


@pytest.mark.parametrize("chip", CHIPS.values(), ids=lambda chip: chip.name)
def test_usual_slices_grow(chip):
    sizes = [topology.devices for topology in slices(chip)]
    assert sizes == sorted(set(sizes))


def test_a_slice_has_the_devices_of_its_chips():
    assert (parse_topology("v5p:2x2x2").chips, parse_topology("v5p:2x2x2").devices) == (8, 8)
    assert (parse_topology("tpu7x:2x2x2").chips, parse_topology("tpu7x:2x2x2").devices) == (8, 16)
