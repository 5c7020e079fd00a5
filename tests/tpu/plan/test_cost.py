"""Time is the compiler's cycles, plus links, copies and kernels where they are waited for."""

import itertools

import pytest

from tpu.chips import parse_topology
from tpu.plan import cost, hlo, interconnect

pytestmark = pytest.mark.unit

V5E = parse_topology("v5e:2x4")
PLACES = list(itertools.product(range(2), range(4)))
CLOCK, LINK = V5E.chip.clock, V5E.chip.link
CYCLES = 'backend_config={"window_config":{"estimated_cycles":"%d"}}'
BYTES = 2**20  # of a float32[256, 1024]
ARRAY = "f32[256,1024]{1,0:T(8,128)}"


def estimate(*lines):
    body = "\n".join(f"  {line}" for line in (f"%a = {ARRAY} parameter(0)", *lines))
    text = "HloModule m\n\nENTRY %main (a: f32[256,1024]) -> f32[256,1024] {\n" + body + "\n}\n"
    return cost.estimate(hlo.parse(text), V5E, PLACES)


def work(name, cycles):
    return f"%{name} = {ARRAY} fusion(%a), kind=kLoop, calls=%x, {CYCLES % cycles}"


def test_cycles_are_divided_by_the_clock():
    assert estimate(work("b", 3000), work("c", 1000)).compute_s == pytest.approx(4000 / CLOCK)


ALL = "replica_groups=[1,8]<=[8]"
PAIRS = "replica_groups=[4,2]<=[8]"
LINES = "replica_groups=[2,4]<=[8]"


@pytest.mark.parametrize(
    ("kind", "groups", "seconds"),
    [
        ("all-reduce", ALL, 2 * 7 / 8 * BYTES / (2 * LINK)),  # a 2x4 box holds a ring of 8
        ("all-reduce", PAIRS, 2 * 1 / 2 * BYTES / LINK),
        ("all-reduce", LINES, 2 * 3 / 4 * BYTES / LINK),  # four in a line, not closed
        ("all-gather", PAIRS, 1 / 2 * 2 * BYTES / LINK),
        ("reduce-scatter", PAIRS, 1 / 2 * BYTES / LINK),
        ("all-to-all", PAIRS, 1 / 4 * BYTES / LINK),
        ("collective-permute", "source_target_pairs={{0,1},{1,0}}", BYTES / LINK),
        ("all-reduce", "replica_groups=[8,1]<=[8]", 0.0),
    ],
)
def test_a_collective_waits_for_its_links(kind, groups, seconds):
    found = estimate(f"%b = {ARRAY} {kind}(%a), {groups}")
    assert found.collective_s == pytest.approx(seconds)
    assert found.link_s == found.collective_s
    (booked,) = found.collectives.values()
    assert (booked.kind, booked.count, booked.bytes) == (kind, 1, BYTES)


def test_a_closed_axis_is_a_ring_and_two_are_two():
    pod = parse_topology("v5e:16x16")
    everywhere = list(itertools.product(range(16), range(16)))
    line = f"HloModule m\n\nENTRY %main (a: f32[]) -> f32[] {{\n  %a = {ARRAY} parameter(0)\n"

    def seconds(groups):
        text = line + f"  %b = {ARRAY} all-reduce(%a), replica_groups={groups}\n}}\n"
        return cost.estimate(hlo.parse(text), pod, everywhere).link_s

    assert seconds("[16,16]<=[256]") == pytest.approx(2 * 15 / 16 * BYTES / (2 * LINK))
    assert seconds("[1,256]<=[256]") == pytest.approx(2 * 255 / 256 * BYTES / (4 * LINK))


def test_only_what_is_not_covered_is_waited_for():
    link = 2 * 1 / 2 * BYTES / LINK
    start = f"%s = {ARRAY} all-reduce-start(%a), {PAIRS}"
    done = f"%d = {ARRAY} all-reduce-done(%s)"
    half = round(link * CLOCK / 2)
    assert estimate(start, work("b", half), done).collective_s == pytest.approx(link / 2, rel=1e-3)
    assert estimate(start, work("b", 4 * half), done).collective_s == 0
    assert estimate(work("b", 4 * half), start, done).collective_s == pytest.approx(link)


def test_links_carry_one_collective_at_a_time():
    link = 2 * 1 / 2 * BYTES / LINK
    found = estimate(
        f"%s = {ARRAY} all-reduce-start(%a), {PAIRS}",
        f"%t = {ARRAY} all-reduce-start(%a), {PAIRS}",
        f"%d = {ARRAY} all-reduce-done(%s)",
        f"%e = {ARRAY} all-reduce-done(%t)",
    )
    assert found.collective_s == pytest.approx(2 * link)


def test_a_fused_all_reduce_and_slice_is_a_reduce_scatter():
    text = f"""HloModule m

%all-reduce-scatter.1 (p: f32[]) -> f32[] {{
  %p = {ARRAY} parameter(0)
  %sum = {ARRAY} all-reduce(%p), {ALL}
  ROOT %r = f32[32,1024]{{1,0}} dynamic-slice(%sum)
}}

ENTRY %main (a: f32[]) -> f32[] {{
  %a = {ARRAY} parameter(0)
  ROOT %b = f32[32,1024]{{1,0}} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""
    found = cost.estimate(hlo.parse(text), V5E, PLACES)
    (booked,) = found.collectives.values()
    assert (booked.kind, booked.count, booked.bytes) == ("reduce-scatter", 1, BYTES)
    assert found.collective_s == pytest.approx(7 / 8 * BYTES / (2 * LINK))


def test_a_collective_among_fusions_that_compute_is_one():
    link = 2 * 1 / 2 * BYTES / LINK
    chained = f'channel_id=7, {PAIRS}, frontend_attributes={{chain_id="0"}}'

    def part(name, cycles):
        return f"%{name} = {ARRAY} fusion(%a, %a), kind=kOutput, calls=%piece, {CYCLES % cycles}"

    def seconds(*cycles):
        names = "async-collective-start", *map("fusion.{}".format, cycles), "async-collective-done"
        lines = (f"  {part(n, c)}" for n, c in zip(names, (0, *cycles, 0), strict=True))
        body = "\n".join((f"  %a = {ARRAY} parameter(0)", *lines))
        text = f"""HloModule m

%piece (p: f32[]) -> f32[] {{
  %p = {ARRAY} parameter(0)
  ROOT %r = {ARRAY} all-reduce(%p), {chained}
}}

ENTRY %main (a: f32[]) -> f32[] {{
{body}
}}
"""
        return cost.estimate(hlo.parse(text), V5E, PLACES)

    half = round(link * CLOCK / 2)
    for between, wait in [((), link), ((half,), link / 2), ((half, 2 * half), 0)]:
        found = seconds(*between)
        assert found.link_s == pytest.approx(link)
        assert found.collective_s == pytest.approx(wait, rel=1e-3, abs=1e-12)
        assert found.compute_s == pytest.approx(sum(between) / CLOCK)
        (booked,) = found.collectives.values()
        assert (booked.count, booked.bytes) == (1, BYTES)


def test_copies_out_of_hbm_are_waited_for_likewise():
    start = f"%s = ({ARRAY[:-1]}S(1)}}, {ARRAY}, u32[]{{:S(2)}}) copy-start(%a)"
    found = estimate(start, f"%d = {ARRAY} copy-done(%s)")
    assert found.copy_s == pytest.approx(BYTES / V5E.chip.bandwidth)


def test_a_kernel_is_charged_by_our_own_count():
    row, stack = "bf16[8,2048,128]{2,1,0:T(8,128)(2,1)}", "bf16[24,8,2048,128]{3,2,1,0}"
    found = estimate(
        f"%q = {row} parameter(1)",
        f'%y = {row} custom-call(%q, %q, %q, %q), custom_call_target="tpu_custom_call", '
        f"operand_layout_constraints={{s32[2]{{0}}, {stack}, {stack}, {row}}}, "
        'metadata={op_name="attention/packed_attention_forward/pallas_call"}',
    )
    moved = 4 * 8 * 128 * 2048 * 2  # one layer of either stack
    assert found.kernel_s == pytest.approx(moved / V5E.chip.bandwidth / 0.7)
    assert not found.unpriced


@pytest.mark.parametrize("topology", ["v5e:2x4", "v6e:2x4"])
def test_long_rows_are_charged_by_their_blocks(topology):
    N, K, H, T, C = 32, 8, 128, 4096, 128
    q, k, rope = (f"bf16[1,{n},{T}]{{2,1,0}}" for n in (N * H, K * H, H // 2))
    prefix = f"bf16[{K * H},{C}]{{1,0}}, bf16[{C},{K * H}]{{1,0}}"
    text = (
        f"HloModule m\n\nENTRY %main (q: {q}) -> {q} {{\n  %q = {q} parameter(0)\n"
        f'  %y = {q} custom-call(%q), custom_call_target="tpu_custom_call", '
        f"operand_layout_constraints={{{q}, {k}, {k}, {rope}, {rope}, {prefix}}}, "
        f'metadata={{op_name="attention/long_attention_forward_{H}/pallas_call"}}\n}}\n'
    )
    slice_ = parse_topology(topology)
    chip = slice_.chip
    scores = N * (36 * 512**2 + T * C)  # 36 of 64 blocks, and the prefix
    matrix, vector = 4 * H * scores / chip.peak, 8 * scores / (4096 * chip.clock)
    assert (matrix > vector) == (topology == "v5e:2x4")
    found = cost.estimate(hlo.parse(text), slice_, PLACES)
    begin = N * 8 * 700 / chip.clock
    assert found.kernel_s == pytest.approx(max(matrix, vector) / 0.7 + begin)


def test_nf4_is_charged_by_the_operations_of_the_vector_units():
    w, codes, scales = "bf16[4096,4096]{1,0}", "u8[32,4096,2048]{2,1,0}", "f32[4096,128]{1,0}"
    found = estimate(
        f"%c = {codes} parameter(1)",
        f'%y = {w} custom-call(%c, %c, %c, %c), custom_call_target="tpu_custom_call", '
        f"operand_layout_constraints={{s32[1]{{0}}, {codes}, {scales}, f32[1,128]{{1,0}}}}, "
        'metadata={op_name="mlp/nf4_dequantize/pallas_call"}',
    )
    vector = 24 * 4096**2 / (4096 * V5E.chip.clock)
    moved = 4096 * (2048 + 4 * 128 + 2 * 4096)  # codes of one layer
    assert vector > moved / V5E.chip.bandwidth
    assert found.kernel_s == pytest.approx(vector / 0.7)


def test_what_a_sparse_core_changes_is_read_and_written():
    start = f"%s = (({ARRAY}), {ARRAY}, u32[]{{:S(8)}}) call-start(%a), to_apply=%x"
    found = estimate(start, f"%d = {ARRAY} call-done(%s)")
    assert found.copy_s == pytest.approx(2 * BYTES / V5E.chip.bandwidth)
    assert not found.unpriced


def test_two_devices_of_a_chip_share_its_links():
    slice_ = parse_topology("tpu7x:2x2x1")
    places = [(x, y, 0) for x in range(2) for y in range(2) for _ in range(2)]

    def seconds(groups):
        line = f"%b = {ARRAY} all-gather(%a), replica_groups={groups}"
        text = f"HloModule m\n\nENTRY %main (a: f32[]) -> f32[] {{\n  %a = {ARRAY} parameter(0)\n"
        return cost.estimate(hlo.parse(f"{text}  {line}\n}}\n"), slice_, places).link_s

    link = slice_.chip.link
    assert seconds("[4,2]<=[8]") == pytest.approx(BYTES / link)  # the two of each chip
    assert seconds("[1,8]<=[8]") == pytest.approx(7 * BYTES / (2 * link))
    assert seconds("[2,4]<=[4,2]T(1,0)") == pytest.approx(3 * BYTES / link)  # half of each link


def test_what_has_no_estimate_is_listed():
    found = estimate(
        f"%b = {ARRAY} sort(%a)", f'%c = {ARRAY} custom-call(%a), custom_call_target="odd"'
    )
    assert found.unpriced == {"sort": 1, "custom-call odd": 1}


def test_the_steps_of_a_loop_add_up():
    text = f"""HloModule m

%body (p: f32[]) -> f32[] {{
  %p = {ARRAY} parameter(0)
  %w = {ARRAY} fusion(%p), calls=%x, {CYCLES % 500}
  ROOT %r = {ARRAY} all-reduce(%w), {PAIRS}
}}

%condition (q: f32[]) -> pred[] {{
  %limit = s32[] constant(12)
  ROOT %lt = pred[] compare(%limit, %limit), direction=LT
}}

ENTRY %main (a: f32[]) -> f32[] {{
  %a = {ARRAY} parameter(0)
  ROOT %l = {ARRAY} while(%a), condition=%condition, body=%body
}}
"""
    found = cost.estimate(hlo.parse(text), V5E, PLACES)
    assert found.compute_s == pytest.approx(12 * 500 / CLOCK)
    (booked,) = found.collectives.values()
    assert booked.count == 12
    assert found.total_s == pytest.approx(found.compute_s + found.collective_s)


def test_kinds_are_those_that_xla_has():
    assert "all-reduce" in interconnect.KINDS
