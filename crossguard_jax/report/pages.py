"""How templates become pages: every value escaped, no file beside the page."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crossguard_jax.report.text import printable


def environment(**filters: Callable[..., Any]) -> Environment:
    """Where ``templates`` are read, with filters beside ``data_uri``."""
    loaded = Environment(
        loader=PackageLoader("crossguard_jax.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loaded.filters |= {"data_uri": data_uri, **filters}
    return loaded


def script(pages: Environment, name: str) -> tuple[Markup, str]:
    """A template's script, and the hash of it that a Content-Security-Policy allows."""
    assert pages.loader is not None
    source = pages.loader.get_source(pages, name)[0]
    digest = hashlib.sha256(source.encode()).digest()
    return Markup(source), "sha256-" + base64.b64encode(digest).decode("ascii")


def _shown(value: Any) -> Any:
    """What every ``{{ value }}`` passes before it is escaped."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def data_uri(picture: bytes, kind: str = "png") -> str:
    """An encoded picture as an address that holds it."""
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode("ascii")
