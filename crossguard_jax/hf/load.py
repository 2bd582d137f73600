"""Hub folders in: safetensors streamed tensor by tensor into (sharded) arrays.

Every problem of a folder is collected first and raised as one error: files that do not open, or
else keys that are missing, have another shape, differ from their copy or map to nothing. Each
device's shard is then read by itself and handed over, so the host holds about one shard of one
stacked parameter at a time, and reads nothing twice.
"""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from crossguard_jax.core.errors import UserError
from crossguard_jax.core.sharding import DEFAULT_RULES, Rules, make_mesh, shardings
from crossguard_jax.core.tree import named_leaves
from crossguard_jax.hf import configs, names
from crossguard_jax.hf.folder import weight_files
from crossguard_jax.hf.reading import read, read_int8
from crossguard_jax.hf.tensors import BLOCK, Source, Tensors, open_tensors, refuse
from crossguard_jax.io.files import note
from crossguard_jax.nn.int8 import DTYPES, in_int8
from crossguard_jax.nn.llama import LlamaConfig
from crossguard_jax.nn.llava import LlavaConfig
from crossguard_jax.nn.pins import govern

SHIPPED = "toy://"
"""A path that begins so names one of the small models inside the package."""

_TIED = {
    "llava": ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
}
"""The head's key, and the key of what it is where embeddings are tied."""

_SCALE = "column_scale"
"""The last word of a name of what a kernel in 8 bits is multiplied by."""

_DTYPES = ("float32", "bfloat16", "float16", "float64", *DTYPES)

_ENCODING = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("preprocessor_config.json", "processor_config.json", "config_sentence_transformers.json"),
)
"""Files that decide what a model is given, and not what it makes of it."""

_CHECKPOINTS = Path(__file__).parents[1] / "toy" / "checkpoints"
_ADAPTERS = Path(__file__).parents[1] / "toy" / "adapters"


def resolve_folder(path: str | Path) -> Path:
    """A model folder's place on disk, or a shipped adapter's.

    Raises:
        UserError: it is not there; the message lists the shipped models where one was asked for.
    """
    name = str(path)
    if name.startswith(SHIPPED):
        folder = _CHECKPOINTS / name.removeprefix(SHIPPED)
        adapter = _ADAPTERS / name.removeprefix(SHIPPED)
        if (adapter / "adapter_config.json").is_file():
            return adapter
        if not (folder / "config.json").is_file():
            shipped = sorted(_CHECKPOINTS.glob("*/config.json"))
            there = ", ".join(SHIPPED + p.parent.name for p in shipped)
            raise UserError(f"{name}: no such shipped model (there are: {there or 'none'})")
        return folder
    if not Path(path).is_dir():
        raise UserError(f"{name!r}: no such folder; give a downloaded Hub folder")
    return Path(path)


def folder_name(folder: str | Path) -> str:
    """What to write where others will read it: ``toy://NAME`` for a shipped model's folder, which
    lies elsewhere on their machine; any other path as it is."""
    path = Path(folder)
    return SHIPPED + path.name if path.resolve().parent == _CHECKPOINTS.resolve() else str(folder)


def load_model(
    folder: str | Path,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
    **options: Any,
) -> configs.Model:
    """A model from a Hub folder.

    Args:
        folder: ``config.json`` and the safetensors that `folder.weight_files` finds.
        dtype: what the weights are cast to; None keeps each tensor's own type; "int8" rounds the
            kernels of `nn.int8` to 8 bits as they are read and casts the rest to bfloat16, and
            "int8-float32" to float32.
        mesh: where they go; None puts all on the first device.
        rules: logical to mesh axes.
        options: ``remat`` and ``attention``, as in `configs.read_config`.

    Returns:
        A `Llava`, `Llama`, `Clip`, `ClipText`, `ClipVision`, `Bert` or `MPNet`, by its
        ``model_type``.

    Raises:
        UserError: whatever is wrong with the folder, all of it in one message.
    """
    folder = resolve_folder(folder)
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder}/adapter_config.json lays an adapter over another model; give the base and "
            "the adapter as two folders, or merge them"
        )
    family, config = configs.read_config(folder, **options)
    tensors = open_tensors(folder)
    config = _with_its_own_head(family, config, tensors)
    return build_model(family, config, tensors, str(folder), dtype, mesh, rules)


def build_model(
    family: str,
    config: configs.Config,
    tensors: Source,
    name: str,
    dtype: str | None = "float32",
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT_RULES,
) -> configs.Model:
    """A model from tensors under its Hub keys, wherever they come from.

    Args:
        family: a key of `configs.MODELS`.
        config: the model's.
        tensors: what to read.
        name: what errors call the source.
        dtype, mesh, rules: as in `load_model`.

    Raises:
        UserError: the source's own problems, or else keys missing, of another shape, at odds with
            their copy or unknown; or there is no such dtype.
    """
    model = govern(abstract_model(family, config, dtype), rules)
    graphdef, state = nnx.split(model, graph=False)
    plan = _plan(family, state, tensors, _channels(config), name)
    where = shardings(state, mesh or make_mesh(1, devices=jax.local_devices()[:1]), rules)
    places = {key: spec.get_value() for key, spec in named_leaves(where)}
    variables = dict(named_leaves(state))
    wide = DTYPES.get(dtype or "", dtype)
    arrays: dict[str, jax.Array] = {}
    for key, variable in variables.items():
        if key not in plan:
            continue  # a kernel's scales, which come with it
        scale = _scale_of(key)
        if key.endswith(".kernel") and scale in variables:
            pair = {name: (variables[name].shape, places[name]) for name in (key, scale)}
            arrays |= read_int8(tensors, plan[key], pair)
        else:
            arrays[key] = read(tensors, plan[key], variable, places[key], wide)
    leaves = ((tuple(key.split(".")), v.replace(arrays[key])) for key, v in variables.items())
    return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def make_model(family: str, config: configs.Config, dtype: str | None = "float32") -> configs.Model:
    """A fresh model with the types that `build_model` gives its weights.

    Raises:
        UserError: there is no such dtype.
    """
    if dtype is not None and dtype not in _DTYPES:
        raise UserError(f"dtype {dtype!r} is none of {', '.join(_DTYPES)}")
    model = configs.MODELS[family](config, jax.random.key(0))
    if dtype is not None:
        model = jax.tree.map(lambda x: x.astype(jnp.dtype(DTYPES.get(dtype, dtype))), model)
    return in_int8(model) if dtype in DTYPES else model


def abstract_model(
    family: str, config: configs.Config, dtype: str | None = "float32"
) -> configs.Model:
    """`make_model`'s shapes and types alone: `core.tree.n_bytes` is the base's size."""
    return jax.eval_shape(lambda: make_model(family, config, dtype))


def _scale_of(key: str) -> str:
    return f"{key.rpartition('.')[0]}.{_SCALE}"


def _channels(config: Any) -> int:
    return getattr(getattr(config, "vision", config), "num_channels", 3)


def folder_hash(folder: str | Path) -> str:
    """SHA-256 over a folder's config and weight files: which base an adapter belongs to."""
    h = hashlib.sha256()
    for name in sorted(["config.json", *weight_files(Path(folder))]):
        h.update(name.encode())
        note(Path(folder) / name)
        with (Path(folder) / name).open("rb") as handle:
            h.update(hashlib.file_digest(handle, "sha256").digest())
    return h.hexdigest()


def encoding_hash(folder: str | Path) -> str:
    """SHA-256 over the files that say how a folder's model takes texts and pictures."""
    h = hashlib.sha256()
    for path in sorted(p for pattern in _ENCODING for p in Path(folder).glob(pattern)):
        note(path)
        h.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return h.hexdigest()


def _with_its_own_head(family: str, config: configs.Config, tensors: Tensors) -> configs.Config:
    """The config without tied embeddings where the files hold a head that differs from them.

    As transformers has it (``PreTrainedModel.tie_weights``): both are there, so both count.
    """
    text = config.text if isinstance(config, LlavaConfig) else config
    if not isinstance(text, LlamaConfig) or not text.tie_word_embeddings:
        return config
    spelled = {names.canonical(family, key): key for key in tensors}
    head, embedding = (spelled.get(key) for key in _TIED[family])
    if not head or not embedding:
        return config
    if _equal(tensors, head, embedding):
        return config
    text = replace(text, tie_word_embeddings=False)
    return replace(config, text=text) if isinstance(config, LlavaConfig) else text


def _plan(
    family: str, state: Any, tensors: Source, channels: int, folder: str
) -> dict[str, tuple[names.HubTensor, list[str]]]:
    """For each parameter its Hub tensors and the keys this folder has them under."""
    spelled, problems = spellings(family, tensors)
    problems = [*tensors.problems, *problems]
    plan = {}
    for name, variable in named_leaves(state):
        if name == _scale_of(name):
            continue  # of a kernel in 8 bits, which has it from what it is rounded from
        hub = names.hub_tensor(family, name, variable.shape)
        layer_shape = variable.shape[1:] if hub.stacked else variable.shape
        # Shapes on the Hub's side, without touching data: write() of an empty view.
        expected = hub.transform.write(np.broadcast_to(np.int8(0), layer_shape), channels).shape
        keys = []
        for key in hub.keys:
            actual = spelled.pop(key, None)
            if actual is None:
                problems.append(f"{key}: missing")
                continue
            if tensors.shape(actual) != expected:
                got = list(tensors.shape(actual))
                problems.append(f"{actual}: shape {got}, the config says {list(expected)}")
            keys.append(actual)
        plan[name] = (hub, keys)
    tied = {head for head, _ in _TIED.values()}
    problems += [
        f"{key}: maps to no parameter of this model"
        for canonical, key in spelled.items()
        if not names.IGNORED.match(canonical) and canonical not in tied
    ]
    if problems:
        refuse(folder, problems)
    return plan


def spellings(family: str, tensors: Source, prefix: str = "") -> tuple[dict[str, str], list[str]]:
    """The source's key of each tensor by the table's spelling, ``prefix`` taken off.

    Two generations of one key may both be there: copies of each other are one tensor.

    Returns:
        The keys, and a problem for each pair of keys of which only one could be read.
    """
    spelled: dict[str, str] = {}
    problems = []
    for key in tensors:
        canonical = names.canonical(family, key.removeprefix(prefix))
        other = spelled.setdefault(canonical, key)
        if other == key or names.IGNORED.match(canonical):
            continue
        if not _equal(tensors, other, key):
            problems.append(f"{other} and {key}: one tensor, with different values; take one out")
    return spelled, problems


def _equal(tensors: Source, one: str, other: str) -> bool:
    """Whether two tensors are of one shape and equal, compared by blocks of rows."""
    a, b = map(np.atleast_1d, (tensors.read(one), tensors.read(other)))
    return a.shape == b.shape and all(
        np.array_equal(a[i : i + BLOCK], b[i : i + BLOCK], equal_nan=True)
        for i in range(0, len(a), BLOCK)
    )
