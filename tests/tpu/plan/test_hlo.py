"""What is read off the optimized HLO text."""

import pytest

from tpu.plan import hlo

pytestmark = pytest.mark.unit

TEXT = """HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%p), index=1
  ROOT %t = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%p, %x)
}

%condition (q: (s32[], f32[8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(31)
  %q = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (a: bf16[16,4096]) -> f32[8,128] {
  %a = bf16[16,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %f = (f32[8,128]{1,0:T(8,128)}, /*index=1*/s32[]{:T(128)}) fusion(%a), kind=kLoop, calls=%body, metadata={op_name="jit(f)/mul"}, backend_config={"window_config":{"estimated_cycles":"702"}}
  %while.3 = (s32[], f32[8,128]) while(%f), condition=%condition, body=%body
  ROOT %done = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.3), index=1
}
"""  # noqa: E501


def instructions():
    program = hlo.parse(TEXT)
    return program, {i.name: i for i in program.computations[program.entry]}


def test_instructions_have_shapes_operands_cycles_and_source():
    _, found = instructions()
    assert list(found) == ["a", "f", "while.3", "done"]
    fusion = found["f"]
    assert fusion.opcode == "fusion"
    assert fusion.operands == ("a",)
    assert fusion.cycles == 702
    assert fusion.source == "jit(f)/mul"
    assert fusion.called == {"calls": "body"}
    assert fusion.bytes == 8 * 128 * 4 + 4
    assert found["a"].bytes == 16 * 4096 * 2
    assert found["a"].cycles is None


def test_memory_of_the_core_is_told_from_hbm():
    program, _ = instructions()
    inner = {i.name: i for i in program.computations["body"]}
    assert inner["x"].results[0].fast
    assert not inner["t"].results[1].fast


def test_a_loop_runs_as_often_as_its_condition_says():
    program, found = instructions()
    assert program.trips(found["while.3"]) == 31


def test_a_loop_of_another_form_is_refused():
    program = hlo.parse(TEXT.replace("constant(31)", "parameter(1)"))
    (loop,) = (i for i in program.computations["main"] if i.opcode == "while")
    with pytest.raises(ValueError, match="trip count of while.3"):
        program.trips(loop)


def test_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")


@pytest.mark.parametrize(
    ("notation", "joined"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        (
            "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}",
            [[0, 1, 2, 3], [4, 5, 6, 7]],
        ),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_every_notation_of_groups_is_read(notation, joined):
    text = TEXT.replace("calls=%body", notation)
    program = hlo.parse(text)
    assert hlo.groups(program.computations["main"][1]) == joined


def test_an_unknown_notation_is_refused():
    with pytest.raises(ValueError, match="replica groups"):
        hlo.groups(hlo.parse(TEXT).computations["main"][1])


def test_an_instruction_may_go_over_several_lines():
    over = ', frontend_attributes={kernel_metadata={\n"sizes":"{\\"q\\": 512}"\n}}, metadata='
    program = hlo.parse(TEXT.replace(", metadata=", over))
    (_, f, *others) = program.computations[program.entry]
    assert (f.source, f.cycles, len(others)) == ("jit(f)/mul", 702, 2)
