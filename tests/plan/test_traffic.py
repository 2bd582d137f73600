"""Bytes to and from memory, of programs whose traffic can be counted by hand."""

import jax
import jax.numpy as jnp

from crossguard_jax.plan.traffic import traffic

LOOP = """HloModule jit_f, num_partitions=1

%sliced (param_1.0: s32[], param_0: f32[8,64,64]) -> f32[64,64] {
  %param_1.0 = s32[] parameter(1)
  %param_0 = f32[8,64,64]{2,1,0} parameter(0)
  %zero = s32[] constant(0)
  %dynamic-slice.1 = f32[1,64,64]{2,1,0} dynamic-slice(%param_0, %param_1.0, %zero, %zero)
  ROOT %bitcast.1 = f32[64,64]{1,0} bitcast(%dynamic-slice.1)
}

%kept (param_0.1: f32[8,16,64], param_1.1: f32[1,16,64], param_2: s32[]) -> f32[8,16,64] {
  %param_0.1 = f32[8,16,64]{2,1,0} parameter(0)
  %param_1.1 = f32[1,16,64]{2,1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = f32[8,16,64]{2,1,0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2)
}

%body (p: (s32[], f32[16,64], f32[8,64,64], f32[8,16,64])) -> (s32[], f32[16,64], f32[8,64,64], f32[8,16,64]) {
  %p = (s32[], f32[16,64]{1,0}, f32[8,64,64]{2,1,0}, f32[8,16,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[16,64]{1,0} get-tuple-element(%p), index=1
  %w = f32[8,64,64]{2,1,0} get-tuple-element(%p), index=2
  %saved = f32[8,16,64]{2,1,0} get-tuple-element(%p), index=3
  %layer = f32[64,64]{1,0:S(1)} fusion(%w, %i), kind=kLoop, calls=%sliced
  %dot.1 = f32[16,64]{1,0} dot(%x, %layer), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %row = f32[1,16,64]{2,1,0} bitcast(%dot.1)
  %saved.1 = f32[8,16,64]{2,1,0} fusion(%saved, %row, %i), kind=kLoop, calls=%kept
  ROOT %next = (s32[], f32[16,64]{1,0}, f32[8,64,64]{2,1,0}, f32[8,16,64]{2,1,0}) tuple(%i, %dot.1, %w, %saved.1)
}

%cond (q: (s32[], f32[16,64], f32[8,64,64], f32[8,16,64])) -> pred[] {
  %q = (s32[], f32[16,64]{1,0}, f32[8,64,64]{2,1,0}, f32[8,16,64]{2,1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: (s32[], f32[16,64], f32[8,64,64], f32[8,16,64])) -> (s32[], f32[16,64], f32[8,64,64], f32[8,16,64]) {
  %a = (s32[], f32[16,64]{1,0}, f32[8,64,64]{2,1,0}, f32[8,16,64]{2,1,0}) parameter(0)
  ROOT %while.1 = (s32[], f32[16,64]{1,0}, f32[8,64,64]{2,1,0}, f32[8,16,64]{2,1,0}) while(%a), condition=%cond, body=%body, KNOWN
}
"""  # noqa: E501
NOTE = 'backend_config={"known_trip_count":{"n":"8"}}'


def test_a_slice_costs_itself_and_what_stays_on_the_chip_nothing() -> None:
    # The layer's weights are read and stay in VMEM; rows are read and written; and saved.
    rows, weights, index = 16 * 64 * 4, 64 * 64 * 4, 4
    each = (weights + index) + (rows + rows) + (rows + rows + index)
    assert traffic(LOOP.replace("KNOWN", NOTE)) == 8 * each
    assert traffic(LOOP.replace("KNOWN", ""), trips=3) == 3 * each


def test_a_product_reads_its_factors_and_writes_the_result() -> None:
    a, b = jnp.ones((256, 128)), jnp.ones((128, 512))
    text = jax.jit(jnp.matmul).lower(a, b).compile().as_text()
    assert traffic(text) == 4 * (256 * 128 + 128 * 512 + 256 * 512)
