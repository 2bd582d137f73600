"""Pickles of arrays: what comes back, and that nothing they name is ever called."""

import builtins
import collections
import functools
import io
import os
import pickle
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.core import FrozenDict

from crossguard_jax.core.errors import UserError
from crossguard_jax.hf import safe_pickle
from crossguard_jax.hf.safe_pickle import load


def tree(rng):
    """Everything that a tree of parameters may hold."""
    return {
        "float32": rng.normal(size=(3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "strided": rng.normal(size=(6, 4))[::2, 1:],
        "big endian": np.arange(5, dtype=">i4"),
        "half": rng.normal(size=7).astype(np.float16),
        "bfloat16": rng.normal(size=(2, 2)).astype(ml_dtypes.bfloat16),
        "bool": np.array([True, False]),
        "scalar": np.float32(3.5),
        "no axes": np.asarray(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "jax": jnp.arange(6.0).reshape(2, 3),
        "jax bfloat16": jnp.ones(3, jnp.bfloat16),
        "frozen": FrozenDict({"a": {"b": np.arange(3)}}),
        "ordered": collections.OrderedDict(z=np.arange(2), a=1),
        "plain": [1, -2, 2**40, 2.5, "text", None, True, (), (1, [2]), b"raw", {}],
    }


def written(path, value, protocol=4):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_and_containers_come_back_as_they_were(tmp_path, protocol):
    value = tree(np.random.default_rng(protocol))
    if protocol == 2:  # which writes no bytes as a call of `bytes`
        del value["empty"]
    back = load(written(tmp_path / "t.pkl", value, protocol))
    assert set(back) == set(value)
    assert back["plain"] == value["plain"]
    assert back["ordered"] == {"z": back["ordered"]["z"], "a": 1}
    assert type(back["frozen"]) is dict and type(back["frozen"]["a"]["b"]) is np.ndarray
    for name, theirs in value.items():
        if name not in ("plain", "ordered", "frozen"):
            theirs = np.asarray(theirs)
            assert type(back[name]) is np.ndarray and back[name].dtype.isnative
            assert back[name].dtype == theirs.dtype.newbyteorder("="), name
            np.testing.assert_array_equal(back[name], theirs)


def test_the_names_of_numpy_1_are_known(tmp_path):
    data = pickle.dumps({"a": np.arange(3.0)}, protocol=2).replace(b"numpy._core", b"numpy.core")
    assert b"numpy.core.multiarray" in data
    (tmp_path / "t.pkl").write_bytes(data)
    np.testing.assert_array_equal(load(tmp_path / "t.pkl")["a"], np.arange(3.0))


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class WithState:
    """Pickles as a call followed by a state."""

    def __init__(self, function, arguments, state):
        self.call = (function, arguments, state)

    def __reduce__(self):
        return self.call


def global_(path):
    module, _, name = path.rpartition(".")
    return b"c" + f"{module}\n{name}\n".encode()


def string(text):
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


FLAG = "CROSSGUARD_TEST_WAS_RUN"
CODE = f"__import__('os').environ.__setitem__('{FLAG}', '1')"

HOSTILE = {
    "os.system": (Calls(os.system, f"echo > {FLAG}"), "it wants posix.system"),
    "eval": (Calls(eval, CODE), "it wants builtins.eval"),
    "exec": (Calls(exec, CODE), "it wants builtins.exec"),
    "import": (Calls(__import__, "antigravity"), "it wants builtins.__import__"),
    "getattr": (Calls(getattr, "x", "join"), "it wants builtins.getattr"),
    "partial": (Calls(functools.partial, eval, CODE), "it wants functools.partial"),
    "numpy.load": (Calls(np.load, "x.npy", None, True), "it wants numpy.load"),
    "numpy.fromfile": (Calls(np.fromfile, "/etc/passwd"), "it wants numpy.fromfile"),
    "a class": (io.StringIO, "it wants _io.StringIO"),
    "bytearray": (bytearray(b"x"), "it wants builtins.bytearray"),
    "complex": (1j, "it wants builtins.complex"),
    "set": ({1}, "it uses the opcode EMPTY_SET"),
    "objects": (np.array([Calls(eval, CODE)], dtype=object), "it wants an array of 'O8'"),
    "records": (np.zeros(2, [("a", "f4")]), "it wants an array of 'V4'"),
    "strings": (np.array(["a"]), "it wants an array of 'U1'"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), "it wants an array of 'M8'"),
    "default": (collections.defaultdict(list, a=1), "it wants collections.defaultdict"),
    "frozen with a call": (FrozenDict({"a": Calls(eval, CODE)}), "it wants builtins.eval"),
}

# Opcode by opcode: what no pickler writes.
RAW = {
    "numpy's runstring": (
        global_("numpy.testing._private.utils.runstring") + b"(" + string(CODE) + b"}tR.",
        "it wants numpy.testing._private.utils.runstring",
    ),
    "a dotted name": (
        b"\x80\x04" + string("numpy") + string("ndarray.tofile") + b"\x93.",
        "it wants numpy.ndarray.tofile",
    ),
    "an instance by INST": (b"(" + string(CODE) + b"ibuiltins\neval\n.", "opcode INST"),
    "an instance by OBJ": (b"(" + global_("builtins.eval") + string(CODE) + b"o.", "builtins.eval"),
    "NEWOBJ of a known name": (global_("numpy.ndarray") + b")\x81.", "opcode NEWOBJ"),
    "a registered extension": (b"\x82\x01.", "opcode EXT1"),
    "a persistent id": (b"Pfile\n.", "opcode PERSID"),
    "an out-of-band buffer": (b"\x97.", "opcode NEXT_BUFFER"),
    "a call of the array class": (global_("numpy.ndarray") + b"(K\x03tR.", "calls numpy.ndarray"),
    "a state for a known function": (
        global_("numpy._core.multiarray._reconstruct") + b"}" + string("__code__") + b"Ns" + b"b.",
        "it gives numpy._core.multiarray._reconstruct a state",
    ),
    "a slot state for a known function": (
        global_("numpy.dtype") + b"N}" + string("call") + global_("numpy.ndarray") + b"s\x86b.",
        "it gives numpy.dtype a state",
    ),
    "bytes by another codec": (
        global_("_codecs.encode") + string("abc") + string("rot13") + b"\x86R.",
        "bytes in 'rot13'",
    ),
    "a name that is left over": (global_("numpy.dtype") + b".", "a numpy.dtype among the values"),
    "a call of what is not a function": (b"}" + b")R.", "not a pickle of arrays"),
    "a call of what the memo holds": (b"]q\x00h\x00)R.", "not a pickle of arrays"),
    "a memo that is not there": (b"h\x07.", "not a pickle of arrays"),
    "a memo far away": (b"Nr\xff\xff\xff\x7f.", None),
    "a list that holds itself": (b"]q\x00h\x00a.", "not a pickle of arrays"),
    "a list as a key": (b"}]Ns.", "not a pickle of arrays"),
    "a tuple as a key": (b"})Ns.", "a key that is a tuple"),
    "bytes that are not there": (b"\x8e" + struct.pack("<Q", 2**40) + b"ab.", "not a pickle"),
    "a buffer that is not there": (b"\x96" + struct.pack("<Q", 2**40) + b"ab.", "not a pickle"),
    "a frame that is not there": (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.", None),
    "no end": (b"]", "not a pickle"),
    "nothing": (b"", "cannot mmap an empty file"),
    "no pickle": (b"version https://git-lfs", "not a pickle"),
}


def refused(path, message):
    files, names = set(os.listdir(".")), set(vars(builtins))
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    assert FLAG not in os.environ and set(os.listdir(".")) == files
    assert set(vars(builtins)) == names


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("nested", [False, True], ids=["bare", "nested"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_wants_more_than_arrays_is_refused_by_name(tmp_path, name, nested, protocol):
    value, message = HOSTILE[name]
    if nested:
        value = {"params": [np.arange(3), ({"deep": value},)]}
    if protocol == 5 and name == "bytearray":
        assert load(written(tmp_path / "t.pkl", value, 5)) is not None  # has an opcode of its own
        return
    refusal = message
    if protocol == 2:  # which writes more of them as calls
        refusal = "it wants|it uses"
    refused(written(tmp_path / "t.pkl", value, protocol), refusal)


@pytest.mark.parametrize("name", RAW)
def test_opcodes_that_no_tree_needs_do_nothing(tmp_path, name):
    data, message = RAW[name]
    (tmp_path / "t.pkl").write_bytes(data)
    if message is None:
        assert load(tmp_path / "t.pkl") is None
    else:
        refused(tmp_path / "t.pkl", message)


def test_hostile_values_would_do_harm_if_they_were_run(tmp_path):
    """The test above would show nothing if its pickles were harmless anyway."""
    try:
        pickle.loads(pickle.dumps(Calls(eval, CODE)))
        assert os.environ[FLAG] == "1"
    finally:
        os.environ.pop(FLAG, None)


def test_a_refused_pickle_changes_no_later_one(tmp_path):
    for name, (data, message) in RAW.items():
        if message:
            path = tmp_path / "bad.pkl"
            path.write_bytes(data)
            with pytest.raises(UserError):
                load(path)
        back = load(written(tmp_path / "good.pkl", {"a": np.arange(3)}))
        np.testing.assert_array_equal(back["a"], np.arange(3), err_msg=name)


@pytest.mark.parametrize(
    "state",
    [
        (1, (2**40, 2**20), np.dtype("f4"), False, b"\0" * 8),
        (1, (-1, 2), np.dtype("f4"), False, b"\0" * 16),
        (1, (2.0,), np.dtype("f4"), False, b"\0" * 8),
        (1, [2], np.dtype("f4"), False, b"\0" * 8),
        (1, (2,), "f4", False, b"\0" * 8),
        (1, (2,), np.dtype("f4"), False, [1, 2]),
        (1, (2,), np.dtype("f4"), False),
        3,
    ],
)
def test_an_array_is_no_larger_than_its_bytes(tmp_path, state):
    make, arguments, _ = np.arange(1).__reduce__()
    refused(
        written(tmp_path / "t.pkl", WithState(make, arguments, state)), "not a pickle of arrays"
    )


def test_an_array_without_contents_is_refused(tmp_path):
    make, arguments, _ = np.arange(1).__reduce__()
    refused(written(tmp_path / "t.pkl", Calls(make, *arguments)), "an array without contents")


def test_a_tree_that_is_short_to_write_and_endless_to_walk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickle, "MAX_NODES", 10_000)
    laughs = np.arange(2)
    for _ in range(60):
        laughs = [laughs, laughs]
    refused(written(tmp_path / "t.pkl", laughs), "more than 10,000 entries")
    deep = []
    for _ in range(50):
        deep = [deep]
    assert load(written(tmp_path / "t.pkl", deep)) == deep


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.pkl: cannot be read \(No such file"):
        load(tmp_path / "none.pkl")
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)


def test_what_pickle_itself_reads_of_a_cut_file_is_refused_whole(tmp_path):
    data = pickle.dumps(jax.tree.map(np.asarray, {"a": np.arange(5), "b": [1.0, "x"]}))
    for end in range(len(data)):
        (tmp_path / "t.pkl").write_bytes(data[:end])
        with pytest.raises(UserError):
            load(tmp_path / "t.pkl")
