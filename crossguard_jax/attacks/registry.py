"""Every attack by name: what it changes, what bounds it, what it is after, and what it costs.

The one table that ``crossguard attack``, MBAT, ``crossguard tasks`` and Python read. An attack is a
search and what it climbs; which model is climbed, and by which of its outputs, is its caller's
affair (`evals.robustness.systems`), since nothing here knows one.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from crossguard_jax.attacks.adaptive import denial, pinned, selective, weighted, weighted_search
from crossguard_jax.attacks.apgd import apgd
from crossguard_jax.attacks.constrained import lagrangian_pgd, orthogonal_pgd
from crossguard_jax.attacks.embedding import match_donors, pull, push
from crossguard_jax.attacks.eot import eot
from crossguard_jax.attacks.joint import joint_pgd
from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.noise import noise
from crossguard_jax.attacks.pgd import pgd
from crossguard_jax.attacks.square import square
from crossguard_jax.attacks.text.edit_search import edit_search
from crossguard_jax.attacks.text.embedding import embedding_pgd
from crossguard_jax.attacks.text.gcg import gcg
from crossguard_jax.attacks.universal import shared_perturbation, shared_picture
from crossguard_jax.core.errors import UserError

ROWS, WHOLE, PROMPTS, EMBEDDINGS, TOKENS = "rows", "whole", "prompts", "embeddings", "tokens"
ROUTES = (ROWS, WHOLE, PROMPTS, EMBEDDINGS, TOKENS)
"""How an attack is run: each row's picture; one perturbation of all pictures; one picture for many
prompts; the embeddings of a row's text (and its picture); its text."""

ROUNDS = 6  # of a weight's search
_DEFAULT_TOP_K = 256


@dataclass(frozen=True)
class Cost:
    """Passes that a row costs at most: with ``samples`` draws each counts that often.

    Attributes:
        forward: through the model, those that a gradient needs among them.
        gradient: back through it.
    """

    forward: int
    gradient: int = 0

    def times(self, n: int) -> "Cost":
        """As much for ``n``."""
        return Cost(self.forward * n, self.gradient * n)

    def plus(self, other: "Cost") -> "Cost":
        """Both."""
        return Cost(self.forward + other.forward, self.gradient + other.gradient)


CostOf = Callable[["Registered"], Cost]


@dataclass(frozen=True)
class Climb:
    """What a search raises.

    Attributes:
        what: for a reader.
        aware: it knows the detector; where nothing detects, the margin is raised.
        made_by: the functions of this package that make the objective.
    """

    what: str
    aware: bool = False
    made_by: tuple[Callable[..., Any], ...] = ()


CLIMBS: Mapping[str, Climb] = {
    "loss": Climb("cross-entropy of the plain answer"),
    "margin": Climb("the plain answer's margin"),
    "dlr": Climb(
        "its difference of logits ratio; of two answers, the margin", False, (from_logits,)
    ),
    "target": Climb("the target's margin", False, (from_logits,)),
    "target_loss": Climb("the target's log-probability", False, (from_logits,)),
    "policy": Climb("the margin of what the policy answers, its branches and noise included"),
    "selective": Climb("the margin, then the detector", True, (selective,)),
    "weighted": Climb("the margin less a weight on the detector", True, (weighted,)),
    "pinned": Climb("the margin inside a branch's interval of S_c", True, (pinned, selective)),
    "denial": Climb("the detector", True, (denial,)),
    "features": Climb("the features' distance from the clean picture's", False, (push,)),
    "donors": Climb("the features' nearness to a donor's", False, (pull,)),
}
"""What a search may raise, by name. ``selective``, ``weighted`` and ``target`` stay in the branch
that answers plainly. Where nothing detects, what is aware of a detector raises the margin: every
system has the same budget."""


_METRIC = {"metric": "cosine"}
NEEDS: Mapping[str, Mapping[str, Any]] = {
    "donors": {"donors": 2, **_METRIC},
    "features": _METRIC,
    "target": {"target": ""},
    "target_loss": {"target": ""},
}
"""Options without which a search or a climb is none, by its name, and what they are if not set."""

PLAIN: Mapping[str, tuple[str, ...]] = {
    ROWS: ("steps", "restarts", "samples", "search", "climb", "transfer"),
    **dict.fromkeys((WHOLE, PROMPTS, EMBEDDINGS), ("steps", "restarts")),
    TOKENS: ("steps",),
}
"""What can be set of every attack of a route."""


@dataclass(frozen=True)
class Registered:
    """An attack.

    Attributes:
        name: what ``--attack`` and a configuration call it.
        perturbs: for a reader.
        bound: likewise.
        goal: likewise: a name in `GOALS`.
        search: a name in `SEARCHES`.
        climb: a name in `CLIMBS`.
        route: a name in `ROUTES`.
        steps: gradient steps, queries, edits, or substitutions of tokens.
        restarts: independent tries.
        samples: draws of a random model that each evaluation averages.
        transfer: it is made on another model.
        options: what else of it can be set, by name, with the value it has.
    """

    name: str
    perturbs: str
    bound: str
    goal: str
    search: str
    climb: str
    route: str = ROWS
    steps: int = 20
    restarts: int = 1
    samples: int = 1
    transfer: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def adaptive(self) -> bool:
        """Whether it knows the detector."""
        return CLIMBS[self.climb].aware or SEARCHES[self.search].aware or self.climb == "policy"

    @property
    def relative_step(self) -> float:
        """As of a `Budget`. Plain PGD takes a quarter of the radius and more: on an immunized guard
        20 steps of an eighth left 54% standing where 20 of a quarter left 45%."""
        return max(2.5 / self.steps, 0.25) if self.search == "pgd" else 0.0

    @property
    def gradient(self) -> bool:
        """Whether it takes the model's gradient."""
        return self.cost.gradient > 0

    @property
    def cost(self) -> Cost:
        """A row's at most."""
        return SEARCHES[self.search].cost(self).times(self.samples)

    def changed(self, where: str, **values: Any) -> "Registered":
        """The attack with another of what `PLAIN` has of its route, or other options; with another
        search or climb it has that one's options as well.

        Args:
            where: what the values are of, for a message.
            values: by name.

        Raises:
            UserError: a name that it does not have, or a value that is none.
        """
        plain, options = PLAIN[self.route], dict(self.options)
        for name in (values.get("search"), values.get("climb")):
            options = {**NEEDS.get(str(name), {}), **options}
        choices = [*plain, *options]
        for name, value in values.items():
            if name not in choices:
                raise UserError(f"{where}: unknown {name}, {_nearest(name, choices)}")
            for kind, table in (("search", SEARCHES), ("climb", CLIMBS)):
                if name == kind and value not in table:
                    raise UserError(f"{where}.{kind} {value!r} is none of {', '.join(table)}")
            _check_value(f"{where}.{name} {value!r}", value, {**vars(self), **options}[name])
        own = {name: value for name, value in values.items() if name in plain}
        own |= {name: int(value) for name, value in own.items() if name in _COUNTS}
        options = {name: values.get(name, value) for name, value in options.items()}
        return replace(self, **own, options=options)


@dataclass(frozen=True)
class Searched:
    """A search.

    Attributes:
        function: of this package.
        cost: of a registered attack that uses it, a row's.
        aware: it needs a detector.
        beside: functions of this package that it is made of.
    """

    function: Callable[..., Any]
    cost: CostOf
    aware: bool = False
    beside: tuple[Callable[..., Any], ...] = ()


def _stepped(gradients: int = 1, more: int = 1) -> CostOf:
    """A step's pass and its gradients, ``more`` passes a try, and what is returned is judged."""

    def cost(attack: Registered) -> Cost:
        tries, steps = attack.restarts, attack.steps
        return Cost(tries * (steps + more) + 1, tries * steps * gradients)

    return cost


def _apgd(attack: Registered) -> Cost:
    passes = attack.restarts * (attack.steps + 1)
    return Cost(passes + 1, passes)


def _rounds(attack: Registered) -> Cost:
    return _apgd(attack).plus(Cost(1)).times(ROUNDS).plus(Cost(1))


def _queries(attack: Registered) -> Cost:
    return Cost(attack.restarts * (attack.steps + 1) + 1)


def _points(attack: Registered) -> Cost:
    return Cost(attack.restarts + 1)


def _donors(attack: Registered) -> Cost:
    return _apgd(attack).plus(Cost(1)).times(attack.options["donors"]).plus(Cost(1))


def _edits(attack: Registered) -> Cost:
    return Cost(attack.steps * attack.options["candidates"] + 2)


def _gcg(attack: Registered) -> Cost:
    n = attack.options["candidates"]
    return Cost(attack.steps * (n + 1) + n, attack.steps)


SEARCHES: Mapping[str, Searched] = {
    "pgd": Searched(pgd, _stepped()),
    "apgd": Searched(apgd, _apgd),
    "square": Searched(square, _queries),
    "noise": Searched(noise, _points),
    "orthogonal": Searched(orthogonal_pgd, _stepped(gradients=2), True),
    "lagrangian": Searched(lagrangian_pgd, _stepped(gradients=2), True),
    "weighted": Searched(functools.partial(weighted_search, apgd, rounds=ROUNDS), _rounds, True),
    "donors": Searched(functools.partial(match_donors, apgd), _donors),
    "universal": Searched(shared_perturbation, _stepped()),
    "universal_picture": Searched(shared_picture, _stepped()),
    "embedding": Searched(embedding_pgd, _stepped()),
    "joint": Searched(joint_pgd, _stepped()),
    "edits": Searched(edit_search, _edits),
    "gcg": Searched(gcg, _gcg),
}
"""Searches by name."""

GOALS = ("untargeted", "targeted", "features pushed", "features pulled", "undetected", "denial")

_PICTURE, _BALL = "picture", "L∞ or L2 ball"
_UNSEEN = {"goal": "undetected"}


def _picture(
    name: str, search: str, climb: str, goal: str = "untargeted", **more: Any
) -> Registered:
    return Registered(name, _PICTURE, _BALL, goal, search, climb, **more)


_ALL = (
    _picture("noise", "noise", "margin", steps=1, restarts=20),
    _picture("pgd", "pgd", "loss"),
    _picture("apgd", "apgd", "margin"),
    _picture("apgd_loss", "apgd", "loss"),
    _picture("apgd_dlr", "apgd", "dlr"),
    _picture("targeted", "apgd", "target", "targeted", options=NEEDS["target"]),
    _picture("deviation", "apgd", "features", "features pushed", options=NEEDS["features"]),
    _picture("donors", "donors", "donors", "features pulled", options=NEEDS["donors"]),
    _picture("selective", "apgd", "selective", **_UNSEEN),
    _picture("weighted", "weighted", "margin", steps=10, **_UNSEEN),
    _picture("orthogonal", "orthogonal", "margin", **_UNSEEN),
    _picture("lagrangian", "lagrangian", "margin", **_UNSEEN),
    _picture("policy", "pgd", "policy", steps=5, samples=2, **_UNSEEN),
    _picture("pinned", "apgd", "pinned", steps=5, samples=2, **_UNSEEN),
    _picture("denial", "apgd", "denial", "denial"),
    _picture("square", "square", "selective", steps=100),
    _picture("transfer", "pgd", "margin", steps=10, transfer=True),
    _picture("universal", "universal", "loss", route=WHOLE, steps=40),
    Registered(
        *("universal_picture", "one picture for many prompts", _BALL, "targeted"),
        *("universal_picture", "target_loss", PROMPTS, 60),
        options={"prompts": 64, "target": ""},
    ),
    Registered(
        *("embedding", "text embeddings", "L2 ball a token", "untargeted", "embedding", "margin"),
        *(EMBEDDINGS, 20),
        options={"text_epsilon": 0.05},
    ),
    Registered(
        *("joint", "picture and text embeddings", "both balls", "untargeted", "joint", "margin"),
        *(EMBEDDINGS, 20),
        options={"text_epsilon": 0.05},
    ),
    Registered(
        *("edits", "text", "characters edited", "untargeted", "edits", "margin", TOKENS, 5),
        options={"candidates": 32, "similarity": 0.0, "strategy": "greedy"},
    ),
    Registered(
        *("words", "text", "words replaced", "untargeted", "edits", "margin", TOKENS, 2),
        options={"candidates": 32, "similarity": 0.0, "strategy": "greedy", "neighbours": 8},
    ),
    Registered(
        *("gcg", "text", "tokens appended", "untargeted", "gcg", "margin", TOKENS, 20),
        options={"candidates": 32, "tokens": 20, "top_k": _DEFAULT_TOP_K},
    ),
)

REGISTRY: Mapping[str, Registered] = {attack.name: attack for attack in _ALL}
"""Every attack by name, in the order in which a suite of all of them runs: the cheap ones first."""

INNER: Mapping[str, str] = {
    "picture": "pgd",
    "text": "embedding",
    "both": "joint",
    "edits": "edits",
}
"""What MBAT's adversary may change (``mbat.perturb``), and the attack here that changes the same;
MBAT takes its steps itself, inside the step of training."""


def parts() -> set[Callable[..., Any]]:
    """The functions of this package that the registered attacks are made of."""
    functions: set[Callable[..., Any]] = {eot}
    for attack in REGISTRY.values():
        search = SEARCHES[attack.search].function
        functions |= {getattr(search, "func", search), *CLIMBS[attack.climb].made_by}
        functions |= {arg for arg in getattr(search, "args", ()) if callable(arg)}
    weights = {weighted} if weighted_search in functions else set()
    return functions | weights


def registered(name: str, where: str = "--attack") -> Registered:
    """An attack by its name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if name not in REGISTRY:
        raise UserError(
            f"{where} {name!r}: no such attack, {_nearest(name, REGISTRY)}; see attack --list"
        )
    return REGISTRY[name]


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME`` or ``NAME:OPTION=VALUE,...``, as ``--attack`` takes it: the name, and what is to be
    changed of the attack (`Registered.changed`).

    Raises:
        UserError: an attack or an option that there is none of, or a value that is none.
    """
    name, _, rest = text.partition(":")
    attack, values = registered(name), {}
    for item in filter(None, rest.split(",")):
        option, _, value = item.partition("=")
        needed = {name: value for some in NEEDS.values() for name, value in some.items()}
        kind = type({**needed, **vars(attack), **attack.options}.get(option, ""))
        try:
            values[option] = _TRUTH[value] if kind is bool else kind(value)
        except (ValueError, KeyError):
            what = "true or false" if kind is bool else "a number"
            raise UserError(f"--attack {text}: {option} {value!r}: {what}") from None
    attack.changed(f"--attack {name}", **values)
    return name, values


_COUNTS = ("steps", "restarts", "samples")
_TRUTH = {"true": True, "false": False}


def _check_value(where: str, value: Any, default: Any) -> None:
    """Refuses what is not of the default's kind: whole numbers above 0, others not below it."""
    if isinstance(default, str):
        return
    if isinstance(default, bool) or isinstance(value, bool):
        if type(value) is not type(default):
            raise UserError(f"{where}: {_kind(default)}")
    elif not isinstance(value, int | float) or not value >= isinstance(default, int):
        raise UserError(f"{where}: {_kind(default)}")
    elif isinstance(default, int) and value != int(value):
        raise UserError(f"{where}: {_kind(default)}")


def _kind(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    return "a whole number above 0" if isinstance(default, int) else "a number not below 0"


def listing() -> str:
    """The table, as ``crossguard attack --list`` prints it."""
    heads = ("attack", "perturbs", "bound", "goal", "search", "climbs", "knows", "passes a row")
    rows = [heads]
    for attack in REGISTRY.values():
        cost = attack.cost
        knows = "the check" if attack.adaptive else "a model" if attack.transfer else ""
        passes = f"{cost.forward:,} forward"
        passes += f", {cost.gradient:,} gradient" if attack.gradient else ", no gradient"
        columns = (attack.perturbs, attack.bound, attack.goal, attack.search, attack.climb)
        rows.append((attack.name, *columns, knows, passes))
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _nearest(name: str, choices: Iterable[str]) -> str:
    (near,) = get_close_matches(name, [*choices], n=1, cutoff=0.0)
    return f"did you mean {near!r}?"
