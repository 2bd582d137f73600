"""The table of attacks: it has everything that there is, and costs what it says."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import pytest

from crossguard_jax import attacks
from crossguard_jax.attacks import registry
from crossguard_jax.attacks.adaptive import candidate
from crossguard_jax.attacks.problem import AttackResult, Budget, Objective, Outcome
from crossguard_jax.attacks.registry import CLIMBS, GOALS, INNER, REGISTRY, ROUTES, ROWS, SEARCHES
from crossguard_jax.attacks.search import as_result, best_of_restarts, better, judge, no_result
from crossguard_jax.attacks.universal import Universal
from crossguard_jax.cmai.mbat import PERTURB
from crossguard_jax.core.errors import UserError
from crossguard_jax.core.typing import Array, PRNGKeyArray

KEY = jax.random.key(0)
X = jax.random.uniform(KEY, (3, 1, 4, 4))
PIECES = {as_result, better, candidate, judge, no_result, best_of_restarts}
"""What searches are written with: no attack by itself."""


def public_functions() -> Iterator[Callable[..., Any]]:
    """Of every module of `attacks`, its own."""
    for module in pkgutil.walk_packages(attacks.__path__, "crossguard_jax.attacks."):
        here = importlib.import_module(module.name)
        for name, function in vars(here).items():
            own = getattr(function, "__module__", "") == module.name
            if own and inspect.isfunction(function) and not name.startswith("_"):
                yield function


def attacks_there_are() -> set[Callable[..., Any]]:
    """What searches, and what makes something to climb: by what it returns."""
    functions = set()
    for function in public_functions():
        returned = get_type_hints(inspect.unwrap(function)).get("return")
        searched = inspect.isclass(returned) and issubclass(returned, AttackResult | Universal)
        if searched or returned == Objective:
            functions.add(function)
    return functions


def test_everything_in_attacks_is_registered() -> None:
    there = attacks_there_are()
    assert len(there) > 15
    assert there - registry.parts() == PIECES & there


def test_names_goals_routes_and_climbs_are_what_they_say() -> None:
    for name, attack in REGISTRY.items():
        assert (name, attack.goal in GOALS, attack.route in ROUTES) == (attack.name, True, True)
        assert attack.search in SEARCHES and attack.climb in CLIMBS
    assert set(INNER) == set(PERTURB) and set(INNER.values()) <= set(REGISTRY)


def test_the_list_has_a_line_for_each_with_its_passes() -> None:
    head, *lines = registry.listing().splitlines()
    assert [line.split()[0] for line in lines] == list(REGISTRY)
    assert all("forward" in line and "gradient" in line for line in lines)
    assert "passes a row" in head


class Counted:
    """A linear model that counts how often it is run, and how often gone back through."""

    def __init__(self) -> None:
        self.forward, self.gradient = 0, 0

        def note(kind: str) -> None:
            setattr(self, kind, getattr(self, kind) + 1)

        @jax.custom_vjp
        def total(x: Array) -> Array:
            jax.debug.callback(lambda: note("forward"))
            return x.reshape(len(x), -1).sum(axis=1)

        def forward(x: Array) -> tuple[Array, Array]:
            return total(x), x

        def back(x: Array, ahead: Array) -> tuple[Array]:
            jax.debug.callback(lambda: note("gradient"))
            return (jnp.ones_like(x) * ahead.reshape(-1, *[1] * (x.ndim - 1)),)

        total.defvjp(forward, back)
        self.total = total

    def objective(self, x: Array, key: PRNGKeyArray) -> Outcome:
        total = self.total(x)
        return Outcome(total, total - 1e6, total - 1e6)


ONES = [name for name, attack in REGISTRY.items() if attack.route == ROWS and name != "donors"]


@pytest.mark.parametrize("search", sorted({REGISTRY[name].search for name in ONES}))
def test_a_picture_search_costs_what_the_table_says(search: str) -> None:
    attack = next(a for a in REGISTRY.values() if a.search == search and a.route == ROWS)
    attack = attack.changed("", steps=3, restarts=2, samples=1)
    counted, budget = Counted(), Budget(0.1, steps=3, restarts=2)
    run = jax.jit(lambda x: SEARCHES[search].function(counted.objective, x, KEY, budget).x_adv)
    jax.block_until_ready(run(X))
    jax.effects_barrier()
    cost = attack.cost
    assert (counted.forward, counted.gradient) == (cost.forward, cost.gradient)


def test_options_are_read_and_what_is_unknown_is_named() -> None:
    assert registry.parse("apgd") == ("apgd", {})
    name, values = registry.parse("gcg:steps=3,tokens=5")
    attack = REGISTRY[name].changed("", **values)
    assert (attack.steps, attack.options["tokens"]) == (3, 5)
    assert attack.options["candidates"] == REGISTRY["gcg"].options["candidates"]
    assert registry.parse("targeted:target=safe")[1] == {"target": "safe"}
    assert registry.parse("edits:similarity=0.9")[1] == {"similarity": 0.9}
    for text, words in (
        ("apdg", "no such attack, did you mean 'apgd'"),
        ("gcg:token=5", "unknown token, did you mean 'tokens'"),
        ("gcg:tokens=many", "tokens 'many': a number"),
        ("apgd:steps=0", "steps 0: a whole number above 0"),
        ("apgd:search=magic", "search 'magic' is none of pgd"),
        ("pgd:transfer=maybe", "transfer 'maybe': true or false"),
        ("donors:donors=0", "donors 0: a whole number above 0"),
        ("embedding:text_epsilon=-1", "text_epsilon -1.0: a number not below 0"),
    ):
        with pytest.raises(UserError, match=words):
            registry.parse(text)


def test_a_truth_is_read_as_what_it_says() -> None:
    assert registry.parse("pgd:transfer=false")[1] == {"transfer": False}
    assert registry.parse("pgd:transfer=true")[1] == {"transfer": True}


@pytest.mark.parametrize("name", [name for name, a in REGISTRY.items() if a.route != ROWS])
def test_what_would_do_nothing_to_an_attack_cannot_be_set(name: str) -> None:
    others = ["search=pgd", "climb=loss", "transfer=true", "samples=2"]
    for option in others + ["restarts=2"] * (REGISTRY[name].route == registry.TOKENS):
        with pytest.raises(UserError, match=f"unknown {option.partition('=')[0]}"):
            registry.parse(f"{name}:{option}")


def test_another_search_or_climb_brings_its_options() -> None:
    for text, options in (
        ("apgd:climb=target,target=safe", {"target": "safe"}),
        ("apgd:climb=features", {"metric": "cosine"}),
        ("apgd:search=donors,donors=3", {"donors": 3, "metric": "cosine"}),
    ):
        name, values = registry.parse(text)
        attack = REGISTRY[name].changed("", **values)
        assert attack.options == options and attack.cost.forward > 0


@pytest.mark.parametrize(("steps", "step"), [(2, 1.25), (10, 0.25), (20, 0.25), (80, 0.25)])
def test_plain_pgds_steps_do_not_shrink_below_a_quarter_of_the_radius(steps, step) -> None:
    assert REGISTRY["pgd"].changed("pgd", steps=steps).relative_step == step
    assert REGISTRY["apgd"].changed("apgd", steps=steps).relative_step == 0.0
