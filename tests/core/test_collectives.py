"""What a program's text says of its collectives: the forms that XLA writes for CPU, GPU and TPU."""

import pytest

from crossguard_jax.core.collectives import collectives

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %permuted = f32[8]{0} collective-permute(%b), channel_id=1, source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[], f32[8]) tuple(%i, %permuted)
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%fused (w: bf16[1,16,32]) -> bf16[1,32,32] {
  ROOT %start = bf16[1,32,32]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%w), channel_id=2, \
replica_groups={{0,2},{4,6},{1,3},{5,7}}, dimensions={1}, metadata={op_name="jit(step)/while/dot"}
}

%fused.clone (w: bf16[1,16,32]) -> bf16[1,32,32] {
  ROOT %done = bf16[1,32,32]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%w), channel_id=2, \
replica_groups={{0,2},{4,6},{1,3},{5,7}}, dimensions={1}, metadata={op_name="jit(step)/while/dot"}
}

%all-reduce-scatter.7 (g: f32[32,32]) -> f32[16,32] {
  %whole = f32[32,32]{1,0} all-reduce(%g), channel_id=3, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %mine = f32[16,32]{1,0} dynamic-slice(%whole, %i, %zero), dynamic_slice_sizes={16,32}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = bf16[1,32,32]{2,1,0} fusion(%w), kind=kOutput, calls=%fused
  %b = bf16[1,32,32]{2,1,0} fusion(%a), kind=kOutput, calls=%fused.clone
  %c = f32[16,32]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.7
  %nested = (s32[], f32[8]) while(%p), condition=%inner_condition, body=%inner_body
  ROOT %t = (s32[], f32[8]) tuple(%i, %x)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %alive = pred[] and(%lt, %some)
}

%never_called (p: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%tuple), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %endless = (s32[], f32[8]) while(%tuple), condition=%condition, body=%endless_body
  %ags = (bf16[2,4]{1,0}, bf16[16,4]{1,0}) all-gather-start(%q), channel_id=4, \
replica_groups=[1,8]<=[8], dimensions={0}
  %agd = bf16[16,4]{1,0} all-gather-done(%ags)
  %two = (f32[16,16]{1,0}, /*index=1*/f32[3]{0}) all-reduce(%r, %s), channel_id=5, \
replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %scattered = bf16[2,6]{1,0} reduce-scatter(%u), channel_id=6, \
replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={1}, to_apply=%add
  ROOT %pieces = (s8[1,4]{1,0}, s8[1,4]{1,0}) all-to-all(%v, %w), channel_id=7, \
replica_groups={{0,1},{2,3},{4,5},{6,7}}
}

%endless_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %everyone = pred[7]{0} all-reduce(%flags), channel_id=8, replica_groups={}, to_apply=%add
}
"""


@pytest.fixture(scope="module")
def outputs():
    return collectives(PROGRAM)


def facts(one):
    return one.op, one.dtype, one.shape, one.group


def test_a_loops_collectives_are_those_of_its_body_and_of_what_that_calls(outputs):
    inside = [(facts(one), one.trips) for one in outputs if one.inside_loop]
    assert inside == [
        (("collective-permute", "f32", (8,), 8), 15),
        # Spread over two fusions, it is one.
        (("all-gather", "bf16", (1, 32, 32), 2), 5),
        (("reduce-scatter", "f32", (32, 32), 2), 5),
        (("all-reduce", "pred", (7,), 8), None),
    ]


def test_outside_loops_each_array_counts_once_and_with_its_larger_side(outputs):
    outside = [facts(one) for one in outputs if not one.inside_loop]
    assert {one.trips for one in outputs if not one.inside_loop} == {1}
    assert outside == [
        ("all-gather", "bf16", (16, 4), 8),
        ("all-reduce", "f32", (16, 16), 4),
        ("all-reduce", "f32", (3,), 4),
        ("reduce-scatter", "bf16", (2, 24), 4),
        ("all-to-all", "s8", (2, 1, 4), 2),
    ]


def test_bytes_are_of_the_array_and_the_wire_follows_the_operation(outputs):
    per_op = {one.op: one for one in reversed(outputs)}
    assert per_op["all-gather"].bytes == 2048 and per_op["all-gather"].wire == 1024
    assert per_op["collective-permute"].wire == per_op["collective-permute"].bytes == 32
    assert per_op["all-to-all"].bytes == 8 and per_op["all-to-all"].wire == 4
    everyone = next(one for one in outputs if one.dtype == "pred")
    assert everyone.wire == 2 * 7 * 7 / 8, "an all-reduce goes round twice"


def test_a_collective_names_the_operation_it_came_from(outputs):
    gathered = next(one for one in outputs if one.shape == (1, 32, 32))
    assert gathered.source == "jit(step)/while/dot"


def test_a_program_for_one_device_has_none():
    assert collectives("HloModule jit_f\n\nENTRY %main (p: f32[8]) -> f32[8] {\n}\n") == []


UNROLLED = """HloModule jit_f, num_partitions=16

%body.1 (p: (u32[], bf16[1,256,64])) -> (u32[], bf16[1,256,64]) {
  %p = (u32[]{:T(128)}, bf16[1,256,64]{2,1,0}) parameter(0)
  %two..sunk = u32[]{:T(128)} constant(STRIDE)
  %counter = u32[]{:T(128)} get-tuple-element(%p), index=0
  %part = bf16[1,256,64]{2,1,0} get-tuple-element(%p), index=1
  %next = u32[]{:T(128)} add(%counter, %two..sunk), metadata={op_name="x"}
  %sent = bf16[1,256,64]{2,1,0} collective-permute(%part), channel_id=1
  ROOT %tuple = (u32[]{:T(128)}, /*index=1*/bf16[1,256,64]{2,1,0}) tuple(%next, %sent)
}

%cond.1 (q: (u32[], bf16[1,256,64])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8)
  %q = (u32[]{:T(128)}, bf16[1,256,64]{2,1,0}) parameter(0)
  %at = u32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%at, %eight), direction=LT
}

ENTRY %main (a: (u32[], bf16[1,256,64])) -> (u32[], bf16[1,256,64]) {
  %a = (u32[]{:T(128)}, bf16[1,256,64]{2,1,0}) parameter(0)
  ROOT %while.1 = (u32[]{:T(128)}, bf16[1,256,64]{2,1,0}) while(%a), condition=%cond.1, body=%body.1
}
"""


@pytest.mark.parametrize(("stride", "trips"), [(1, 8), (2, 4), (3, 3)])
def test_a_loop_that_was_unrolled_runs_less_often(stride: int, trips: int) -> None:
    (sent,) = collectives(UNROLLED.replace("STRIDE", str(stride)))
    assert (sent.trips, sent.inside_loop, sent.bytes) == (trips, True, 256 * 64 * 2)
