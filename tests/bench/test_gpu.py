"""``crossguard bench gpu`` at sizes that say nothing about speed, and where little is installed."""

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from crossguard_jax.bench import gpu, gpu_ours
from crossguard_jax.bench.gpu_sizes import ROWS, SIZES
from crossguard_jax.bench.kernels import read_kernels, shares
from crossguard_jax.nn import attention

BLOCKED = ("grain", "ml_collections", "tensorflow_datasets", "array_record", "tensorboardX")
NEEDED = ("cli", "bench.gpu", "bench.gpu_ours", "guard.guard", "hf.load", "attacks.pgd")

WITHOUT = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"no {{name}} here")

sys.meta_path.insert(0, Missing())
for name in {needed}:
    importlib.import_module(f"crossguard_jax.{{name}}")
"""


def figures(**more):
    of_row = {"seconds": 0.5, "first_call_seconds": 9.0, "runs": 8, "rows": 16}
    work = {"flops": 1e14, "nominal_flops": 2e14, "peak_bytes": 50 * 2**30}
    return of_row | work | more


CARD = {"device": "a card", "flops_per_second": 8e14, "versions": {}}


def test_what_a_gpu_bench_runs_imports_where_data_libraries_are_missing():
    program = WITHOUT.format(blocked=BLOCKED, needed=NEEDED)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_has_rate_share_floor_memory_and_the_rival_of_each_row():
    ours = {"card": CARD, "step": figures(), "ppo_2": figures(rollout_seconds=0.2)}
    theirs = {"step": figures(seconds=0.4, rows=8), "generate": figures(forward_seconds=0.1)}
    lines = gpu.table(ours, theirs).splitlines()
    step = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert step[:4] == ["LoRA step", "16", "500 ms", "32"]
    assert step[4:8] == ["25%", "50%", "125 ms, 100 TFLOP", "50 GiB"]
    assert step[8] == "400 ms, 1.60 times ours, 50 GiB"
    assert "generate 500 ms, a forward pass 100 ms (our rollout 200 ms)" in lines[3]


def test_a_row_that_does_not_fit_is_said_and_the_others_stay():
    shown = gpu.table({"card": CARD, "step": {"error": "out of memory"}, "pgd": figures()}, {})
    assert "LoRA step: out of memory" in shown and "| PGD-10 | 16 |" in shown


def test_every_row_has_a_title_and_comes_in_the_order_of_what_is_wanted_first():
    assert tuple(gpu.TITLES) == ROWS and set(gpu.RIVALS) <= set(ROWS)


def test_the_sizes_are_those_of_llava_7b():
    sizes = SIZES["7b"]
    patches = (sizes.vision["image_size"] // sizes.vision["patch_size"]) ** 2
    assert patches + sizes.n_text == 676
    assert (sizes.texts, sizes.prompt, sizes.new, sizes.questions) == (64, 120, 24, 8)


class Lowered(Exception):
    """Ends a row before it runs."""


@pytest.mark.benches
@pytest.mark.parametrize("row", ["step", "score", "pgd", "mbat", "prefix"])
def test_each_row_lowers_for_a_gpu_with_its_attention(row, monkeypatch):
    choose, chosen = attention.choose, set()

    def on_a_gpu(backend, q, k, placed=True):
        chosen.add(name := choose("gpu", q, k, placed))
        return name

    def lowered(function, *arguments):
        function.trace(*arguments).lower(lowering_platforms=("cuda",))
        raise Lowered

    module = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{module}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(attention, "choose", on_a_gpu)
    monkeypatch.setattr(gpu_ours, "_repeating", lowered)
    monkeypatch.setattr(gpu_ours, "_stepping", lowered)
    side = gpu_ours.Side(dataclasses.replace(SIZES["small"], dtype="bfloat16"))
    with pytest.raises(Lowered):
        getattr(side, row)(2)
    assert "cudnn" in chosen


def event(name, milliseconds, **stats):
    return SimpleNamespace(name=name, duration_ns=1e6 * milliseconds, stats=stats.items())


def plane(name, **lines):
    rows = [SimpleNamespace(name=line, events=events) for line, events in lines.items()]
    return SimpleNamespace(name=name, lines=rows)


def test_kernels_are_those_of_the_gpus_streams_or_else_of_the_processors_threads():
    events = [event("nvjet_tst", 3, hlo_op="custom-call.1"), event("nvjet_tst", 1)]
    gpu_plane = plane("/device:GPU:0", Stream13=events, Sums=[event("jit_step", 9)])
    threads = [event("dot.1", 2, hlo_op="dot.1"), event("while", 5, hlo_op="while")]
    threads += [event("end: dot.1", 1, hlo_op="dot.1"), event("python", 7)]
    cpu_plane = plane("/host:CPU", worker=threads)
    assert read_kernels([cpu_plane, gpu_plane]) == pytest.approx(
        {"nvjet_tst custom-call.1": 3e-3, "nvjet_tst": 1e-3}
    )
    assert read_kernels([cpu_plane]) == pytest.approx({"dot.1": 2e-3})


def test_shares_are_of_the_whole_and_what_no_kernel_took_is_idle():
    kernels = {"cudnn_sdpa": 0.1, "nvjet_x": 0.5, "MemcpyD2D": 0.1, "loop_add_fusion": 0.2}
    parts = {"attention": 0.1, "products": 0.5, "copies": 0.1, "rest": 0.2, "idle": 0.1}
    assert shares(kernels, 1.0) == pytest.approx(parts)


@pytest.mark.benches
def test_the_bench_measures_each_side_in_a_process_and_writes_each_row_as_it_comes(
    tmp_path: Path,
):
    rows = ["step", "prefix"]
    options = {"size": "small", "rows": rows, "minutes": 30, "threads": 1, "out": str(tmp_path)}
    gpu.main(argparse.Namespace(**options))
    document = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert {"ours.card", "ours.step", "ours.prefix", "theirs.card", "theirs.step"} <= set(document)
    assert document["ours.prefix"]["largest_difference"] < 1e-3
    assert "| LoRA step | 2 |" in (tmp_path / "bench_gpu.md").read_text()
