"""Reading: each device's part of a tensor once, and nothing kept on the way."""

import json
import os
import socket
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from crossguard_jax.core.tree import digest
from crossguard_jax.hf.load import load_model, resolve_folder
from crossguard_jax.hf.tensors import open_tensors


def write_llama(folder, width, inner, layers, vocabulary, files):
    """A Llama's folder of several files, random, in bfloat16; the largest tensor's bytes."""
    rng, where = np.random.default_rng(0), {}

    def draw(*shape):
        return (rng.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)

    shapes = {f"self_attn.{p}_proj": (width, width) for p in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
    shapes |= {"mlp.down_proj": (width, inner)}
    shapes |= {f"{n}_layernorm": (width,) for n in ("input", "post_attention")}
    ends = {"model.embed_tokens": (vocabulary, width), "lm_head": (vocabulary, width)}
    parts = [ends | {"model.norm": (width,)}]
    stacks = np.array_split(np.arange(layers), files - 1)
    parts += [
        {f"model.layers.{i}.{n}": shape for i in some for n, shape in shapes.items()}
        for some in stacks
    ]
    for n, part in enumerate(parts):
        tensors = {f"{name}.weight": draw(*shape) for name, shape in part.items()}
        save_file(tensors, folder / f"model-{n}.safetensors")
        where |= dict.fromkeys(tensors, f"model-{n}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    config = {"model_type": "llama", "hidden_size": width, "intermediate_size": inner}
    config |= {"num_hidden_layers": layers, "vocab_size": vocabulary, "num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return 2 * max(vocabulary, inner) * width


def held(folder):
    """Bytes of all tensors of a folder."""
    files = folder.glob("*.safetensors")
    return sum(tensor.nbytes for file in files for tensor in load_file(file).values())


COUNTED = """
    from crossguard_jax.core.sharding import DEFAULT_RULES, make_mesh
    from crossguard_jax.hf import load, reading

    copied, copy = [], reading._copy

    def counting(part, to):
        copied.append(part.nbytes)
        copy(part, to)

    reading._copy = counting
"""

ONCE = (
    COUNTED
    + """
    import sys
    for sizes in ((1, 8, 1), (1, 1, 8), (2, 2, 2), (8, 1, 1)):
        for rules in ({}, {"layers": "data", "embed": None}):
            copied.clear()
            mesh = make_mesh(*sizes)
            load.load_model(sys.argv[1], "float32", mesh, {**DEFAULT_RULES, **rules})
            print(sum(copied))
"""
)


def test_each_part_of_a_file_is_read_once_on_any_mesh(tmp_path, run_with_devices):
    write_llama(tmp_path, 64, 96, 4, 256, 3)
    counts = [int(line) for line in run_with_devices(8, ONCE, str(tmp_path)).split()]
    assert len(counts) == 8 and set(counts) == {held(tmp_path)}


def test_a_tensor_is_the_files_own_memory_until_a_part_of_it_is_copied():
    folder = resolve_folder("toy://rewriter")
    tensors = open_tensors(folder)
    stored = load_file(folder / "model.safetensors")
    for key in tensors:
        view = tensors.read(key)
        assert not view.flags.owndata and not view.flags.writeable, key
        assert view.dtype == stored[key].dtype and np.array_equal(view, stored[key]), key


def test_a_loaded_model_outlives_its_file(tmp_path):
    write_llama(tmp_path, 16, 24, 2, 64, 2)
    model = load_model(tmp_path, None)  # each tensor in its own type: nothing to cast
    before = digest(model)
    for file in tmp_path.glob("*.safetensors"):
        with file.open("r+b") as opened:
            opened.write(b"0" * file.stat().st_size)
    assert digest(model) == before


ALONE = (
    """
    import sys
    import jax

    jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", 2, int(sys.argv[2]))
"""
    + COUNTED
    + """
    load.load_model(sys.argv[1], "float32", make_mesh(1, -1, 1))
    print(sum(copied))
"""
)


@pytest.mark.devices
def test_a_process_reads_its_own_devices_parts_alone(tmp_path):
    write_llama(tmp_path, 64, 96, 4, 256, 3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    code = "\n".join(line.removeprefix("    ") for line in ALONE.splitlines())
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(i), str(port)],
            env=os.environ | flags,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    counts = [int(process.communicate(timeout=300)[0].split()[-1]) for process in running]
    assert counts[0] == counts[1] and sum(counts) == held(tmp_path)


LARGE = (
    COUNTED
    + """
    import glob, os, sys
    from crossguard_jax.core.tree import n_bytes

    def number(file, name):
        line = next(line for line in open(file) if line.startswith(name + ":"))
        return int(line.split()[1])

    mesh = make_mesh(1, 8, 1)
    load.load_model("toy://rewriter", "bfloat16", mesh)  # what is imported is not counted
    copied.clear()
    files = glob.glob(sys.argv[1] + "/*.safetensors")
    for name in files:
        file = os.open(name, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before, disk = number("/proc/self/status", "VmRSS"), number("/proc/self/io", "read_bytes")
    model = load.load_model(sys.argv[1], "bfloat16", mesh)
    disk = number("/proc/self/io", "read_bytes") - disk
    peak = 1024 * (number("/proc/self/status", "VmHWM") - before)
    print(sum(map(os.path.getsize, files)), sum(copied), disk, n_bytes(model), peak)
"""
)


@pytest.mark.devices
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_two_gigabytes_are_read_once_and_the_host_holds_the_model_and_a_tensor(
    tmp_path, run_with_devices
):
    largest = write_llama(tmp_path, 2048, 5632, 19, 8192, 6)
    outputs = run_with_devices(8, LARGE, str(tmp_path)).split()
    size, copied, disk, model, peak = map(int, outputs)
    print(
        f"{size / 1e9:.2f} GB of files: copied {copied / size:.4f} of it, read {disk / size:.4f} "
        f"from the disk; the model and {(peak - model) / largest:.2f} of the largest tensor "
        f"({largest / 1e6:.0f} MB) at the peak"
    )
    assert size > 2e9 and copied <= size and disk <= 1.05 * size
    assert peak <= model + 1.3 * largest
