"""Configurations: ``FILE:VARIANT`` with ``--config.a.b=value`` on top, locked and type-checked.

A configuration file defines ``get_config(variant)`` and, beside it, ``VARIANTS``: the names it
answers to. Overrides go through ml_collections' own ``config_flags`` on a private ``FlagValues``,
so that nothing here touches the flags of the program that uses the library.
"""

import contextlib
import importlib.util
import inspect
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from crossguard_jax.core.errors import UserError

OVERRIDE = re.compile(r"^--(?:no)?config\.(?P<key>[^=]+)(?P<value>=.*)?$", re.DOTALL)
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
FRACTION = re.compile(rf"({_NUMBER})\s*/\s*({_NUMBER})")
ELEMENT = re.compile(rf"(?<=[(,\s]){FRACTION.pattern}(?=\s*[,)])")
INSTALLED = Path(__file__).resolve().parents[1] / "configs"
"""Those that come with the package: in a clone, a link to the repository's own folder."""


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Reads a configuration file and applies the command line's overrides to it.

    Args:
      spec: ``FILE:VARIANT``, or ``FILE`` where the file's ``get_config`` has a default; see
        `find_config`.
      overrides: ``--config.a.b=value`` each, in the order given; the last one wins. ``--config.a``
        and ``--noconfig.a`` set a boolean; a tuple is written as ``--config.a="(1, 2)"``, and where
        floats go, a fraction such as ``8/255`` may.

    Returns:
      The configuration, locked: reading or writing a field that does not exist raises.

    Raises:
      UserError: no such file, variant or field (naming the nearest), or a value of the wrong type.
    """
    path, _, variant = spec.partition(":")
    config = _get_config(_load_module(find_config(path)), path, variant)
    keys, written, read = list(_keys(config)), {}, []
    for override in overrides:
        match = OVERRIDE.match(override)
        if match is None:
            raise UserError(f"{override}: an override is written --config.FIELD=VALUE")
        key = match["key"]
        if key not in keys:
            raise UserError(f"{spec} has no field {key!r}: did you mean {_nearest(key, keys)!r}?")
        _check_settable(config, key, match["value"])
        written[key] = _field(config, key)
        read.append(_with_fractions(config, key, override))
    changed = _apply(config, spec, read)
    for key, before in written.items():
        _check_elements(key, before, _field(changed, key))
    return changed


def find_config(path: str) -> Path:
    """A configuration file: the working folder's, or else the one of that name that is installed.

    Args:
      path: as the user gave it, e.g. ``configs/guard.py``.

    Raises:
      UserError: there is neither; the message names the nearest.
    """
    candidates = [Path(path)]
    if Path(path).parent == Path("configs"):
        candidates.append((INSTALLED / Path(path).name).resolve())
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"no configuration file {path!r}: did you mean {_nearest(path, config_files())!r}?"
    )


def check_positive(config: ConfigDict, *fields: str) -> None:
    """Raises a `UserError` that names the first of the dotted ``fields`` that is below 1."""
    for field in fields:
        value = config
        for name in field.split("."):
            value = value[name]
        if value < 1:
            raise UserError(f"{field} {value}: give a whole number above 0, --config.{field}=N")


def config_files() -> list[str]:
    """The ``configs/*.py`` of the working folder and of the installation, as a user names them."""
    files = [*Path("configs").glob("*.py"), *INSTALLED.glob("*.py")]
    return sorted({f"configs/{file.name}" for file in files})


def describe_variants(path: str) -> dict[str, str]:
    """The variants of a file, each with the first line of its function's docstring.

    Raises:
      UserError: no such file, or no configuration.
    """
    variants = getattr(_load_module(find_config(path)), "VARIANTS", ())
    makers = variants if isinstance(variants, Mapping) else dict.fromkeys(variants)
    return {
        str(name): " ".join((inspect.getdoc(maker) or "").partition("\n\n")[0].split())
        for name, maker in makers.items()
    }


class _FromSource(SourceFileLoader):
    """Reads the file itself: bytecode that is kept is told by its second and size, which an edit
    may leave as they were."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _load_module(path: Path) -> ModuleType:
    if path.suffix != ".py":
        raise UserError(f"{path}: a configuration is a Python file, its name ends in .py")
    loader = _FromSource(f"crossguard_config_{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None  # of a loader that is there
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not valid Python: {error.msg}") from error
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path}: a configuration file defines get_config(variant), this does not")
    return module


def _get_config(module: ModuleType, path: str, variant: str) -> ConfigDict:
    names = [str(name) for name in getattr(module, "VARIANTS", ())]
    if variant and names and variant not in names:
        raise UserError(
            f"{path} has no variant {variant!r}: did you mean {_nearest(variant, names)!r}? "
            f"It has {', '.join(names)}"
        )
    if not variant:
        parameters = inspect.signature(module.get_config).parameters.values()
        if any(p.default is p.empty for p in parameters):
            raise UserError(f"{path}: name a variant, {path}:NAME, one of {', '.join(names)}")
    config = module.get_config(variant) if variant else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config must return an ml_collections.ConfigDict")
    return config.lock()


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Every field's dotted path, inner nodes included."""
    for name, value in config.items(preserve_field_references=True):
        yield f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{name}.")


def _check_settable(config: ConfigDict, key: str, value: str | None) -> None:
    *path, name = key.split(".")
    for step in path:
        config = config[step]
    kind = config.get_type(name)
    if kind is ConfigDict and len(config[name]):
        # A dict given whole would escape the check of its keys.
        raise UserError(f"--config.{key}: set its fields one by one: {', '.join(config[name])}")
    if kind not in (bool, int, float, str, tuple, ConfigDict):
        raise UserError(f"--config.{key}: a {kind.__name__} is set in the file, not on the line")
    if value is None and kind is not bool:
        raise UserError(f"--config.{key}: needs a value, write --config.{key}=VALUE")


def _field(config: ConfigDict, key: str) -> Any:
    for step in key.split("."):
        config = config[step]
    return config


def _with_fractions(config: ConfigDict, key: str, override: str) -> str:
    """An override with its fractions divided, where floats go."""
    name, _, value = override.partition("=")
    before, (parent, _, field) = _field(config, key), key.rpartition(".")
    if isinstance(before, tuple) and float in map(type, before):
        pattern = ELEMENT
    elif (_field(config, parent) if parent else config).get_type(field) is float:
        if not FRACTION.fullmatch(value.strip()):
            return override
        pattern = FRACTION
    else:
        return override
    try:
        return f"{name}={pattern.sub(lambda part: repr(float(part[1]) / float(part[2])), value)}"
    except ZeroDivisionError:
        raise UserError(f"{override}: divides by 0") from None


def _check_elements(key: str, before: Any, after: Any) -> None:
    """Refuses a tuple that was not written as one, or has an element of no kind that the
    configuration's own has."""
    if not isinstance(before, tuple):
        return
    if len(after) == 1 and isinstance(after[0], str) and re.search("[(),]", after[0]):
        shown = before or ("a", "b")
        raise UserError(f"--config.{key}: {after[0]!r} is one string; write it as in {shown}")
    kinds = {type(element) for element in before} | ({int} if float in map(type, before) else set())
    for element in after if before else ():
        if type(element) not in kinds:
            raise UserError(
                f"--config.{key}: {element!r} is a {type(element).__name__}; write it as "
                f"in {before}"
            )


def _nearest(mistyped: str, names: Iterable[str]) -> str:
    """The name most like `mistyped`; the last part weighs as much as the whole path, so that a
    right name in the wrong place (``learning_rate`` for ``optim.learning_rate``) is found too."""

    def likeness(name: str) -> float:
        ends = (mistyped.rpartition(".")[2], name.rpartition(".")[2])
        return sum(SequenceMatcher(None, *pair).ratio() for pair in ((mistyped, name), ends))

    return max(names, key=likeness)


def _apply(config: ConfigDict, spec: str, overrides: Sequence[str]) -> ConfigDict:
    argv = ["crossguard", *overrides]
    values = flags.FlagValues()
    try:
        # absl prints usage hints of its own; the one line below is the user's message.
        with contextlib.redirect_stderr(io.StringIO()):
            holder = config_flags.DEFINE_config_dict(
                "config", config, flag_values=values, sys_argv=argv
            )
            values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).removeprefix("flag ")
        raise UserError(f"{spec}: {reason}") from error
    # A dict set from the line came unlocked, and lock() passes over a root that is locked already.
    return holder.value.unlock().lock()
