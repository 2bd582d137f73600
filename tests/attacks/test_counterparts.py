"""On 1,000 rows, each attack that torchattacks has not against what one would write without us: a
plain loop in torch, or torchattacks' nearest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchattacks

from crossguard_jax.attacks.apgd import apgd
from crossguard_jax.attacks.logits import from_logits
from crossguard_jax.attacks.problem import Budget, Outcome
from crossguard_jax.attacks.text.gcg import GcgBudget, gcg
from crossguard_jax.attacks.universal import shared_perturbation, shared_picture
from crossguard_jax.core.typing import Array, PRNGKeyArray
from tests.attacks.small_classifier import CLASSES, LINF, pictures, trained

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("compiled_as_users_do")]

N, STEPS, POINT = 1000, 30, 0.01
EPSILON = 16 / 255  # of what is shared: it takes more to turn half
V, LENGTH, WIDTH = 64, 6, 8


def no_weaker(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Shares of the same rows that are broken."""
    print(f"broken by ours {ours.mean():.3f}, by theirs {theirs.mean():.3f}")
    assert 0.05 < theirs.mean() < 0.95, "or the two could not be told apart"
    assert ours.mean() >= theirs.mean() - POINT


def broken(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    model = trained().torch_in(torch.float32)
    return (model(torch.from_numpy(x)).argmax(dim=1).numpy() != labels) & _right(labels)


def _right(labels: np.ndarray) -> np.ndarray:
    model, (x, _) = trained().torch_in(torch.float32), pictures(N, seed=2)
    return model(torch.from_numpy(x)).argmax(dim=1).numpy() == labels


def test_a_targeted_attack_is_as_strong_as_torchattacks() -> None:
    x, labels = pictures(N, seed=2)
    targets = ((labels + 1) % CLASSES).astype(np.int32)
    model = trained().torch_in(torch.float32)
    attack = torchattacks.PGD(model, LINF, LINF / 4, steps=20)
    attack.set_mode_targeted_by_label(quiet=True)
    torch.manual_seed(0)
    theirs = attack(torch.from_numpy(x), torch.from_numpy(targets).long())
    goal = from_logits(trained().logits_of, labels, "margin", targets)
    run = jax.jit(lambda x, budget: apgd(goal, x, jax.random.key(0), budget).x_adv)
    ours = run(jnp.asarray(x), Budget(LINF, steps=20))
    reached = [
        model(torch.tensor(np.asarray(each))).argmax(dim=1).numpy() == targets
        for each in (ours, theirs)
    ]
    no_weaker(*reached)


def test_one_perturbation_of_many_pictures_is_as_strong_as_a_plain_loop() -> None:
    x, labels = pictures(N, seed=2)
    model, there = trained().torch_in(torch.float32), torch.from_numpy(x)
    delta = torch.zeros(1, *x.shape[1:])
    for _ in range(STEPS):
        delta.requires_grad_(True)
        logits = model((there + delta).clamp(0, 1))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels).long())
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = (delta.detach() + 2.5 * EPSILON / STEPS * gradient.sign()).clamp(-EPSILON, EPSILON)
    theirs = (there + delta).clamp(0, 1).numpy()
    logits_of = trained().logits_of

    def objective(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
        return from_logits(logits_of, jnp.asarray(labels)[rows])(x, key)

    budget = Budget(EPSILON, steps=STEPS, random_start=False)
    run = jax.jit(
        lambda x, b: shared_perturbation(objective, x, jax.random.key(0), b, chunk=256).result.x_adv
    )
    ours = np.array(run(jnp.asarray(x), budget))
    no_weaker(broken(ours, labels), broken(theirs, labels))


def test_one_picture_for_many_prompts_is_as_strong_as_a_plain_loop() -> None:
    """A prompt here is a linear reading of what the classifier's logits are of the one picture."""
    (x, _), rng = pictures(1, seed=5), np.random.default_rng(0)
    readings = rng.normal(size=(N, CLASSES)).astype(np.float32)
    model, there = trained().torch_in(torch.float32), torch.from_numpy(x)
    prompts = torch.from_numpy(readings)
    cut = (model(there) @ prompts.T)[0] + 4.0 * torch.from_numpy(rng.random(N).astype(np.float32))
    delta = torch.zeros_like(there)
    for _ in range(STEPS):
        delta.requires_grad_(True)
        margins = (model((there + delta).clamp(0, 1)) @ prompts.T)[0] - cut
        (gradient,) = torch.autograd.grad(torch.nn.functional.softplus(margins).sum(), delta)
        delta = (delta.detach() + 2.5 * EPSILON / STEPS * gradient.sign()).clamp(-EPSILON, EPSILON)
    logits_of, cuts = trained().logits_of, jnp.asarray(cut.numpy())

    def objective(x: Array, rows: Array, key: PRNGKeyArray) -> Outcome:
        margin = (logits_of(x, key) @ jnp.asarray(readings)[rows].T)[0] - cuts[rows]
        return Outcome(jax.nn.softplus(margin), margin)

    run = jax.jit(lambda x, b: shared_picture(objective, x, jax.random.key(0), b, N).result.x_adv)
    ours = np.asarray(run(jnp.asarray(x), Budget(EPSILON, steps=STEPS, random_start=False)))
    won = [
        ((model(torch.tensor(np.asarray(each))) @ prompts.T)[0] > cut).numpy()
        for each in (ours, (there + delta).clamp(0, 1).numpy())
    ]
    no_weaker(*won)


def test_gcg_is_as_strong_as_a_naive_one() -> None:
    """Zou et al.'s algorithm 1 as written: of ``candidates`` substitutions, drawn with replacement
    among each place's best, the best is taken."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(V, WIDTH)).astype(np.float32)
    weights = [rng.normal(size=s).astype(np.float32) for s in ((N, LENGTH * WIDTH, 12), (N, 12))]
    start = rng.integers(0, V, (N, LENGTH)).astype(np.int32)
    steps, candidates, top_k = 3, 12, 8

    def margins(x: Array, cut: Array) -> Array:
        """[B, K] of embeddings [B, K, LENGTH, WIDTH]."""
        hidden = jnp.tanh(jnp.einsum("bki,bij->bkj", x.reshape(*x.shape[:2], -1), weights[0]) / 4)
        return jnp.einsum("bkj,bj->bk", hidden, weights[1]) - cut[:, None]

    words = jnp.asarray(table)
    nothing = jnp.zeros(N)
    # Above where a row begins, by as much as makes the task hard for about half of them.
    cut = margins(words[start][:, None], nothing)[:, 0] + 10.5
    one_hot = jax.jit(
        lambda ids: jax.grad(lambda e: margins(e[:, None], cut).sum())(words[ids]) @ words.T
    )
    score = jax.jit(lambda ids: margins(words[ids], cut))

    def evaluate(ids: Array, key: PRNGKeyArray) -> Outcome:
        margin = score(ids)
        return Outcome(margin, margin)

    budget = GcgBudget(steps, candidates, top_k)
    ours = gcg(lambda ids, key: one_hot(ids), evaluate, start, jax.random.key(0), budget)
    ids = start.copy()
    won = np.zeros(N, bool)
    for _ in range(steps):
        best = np.argsort(-np.asarray(one_hot(ids)), axis=-1)[..., :top_k]
        tried = np.repeat(ids[:, None], candidates, axis=1)
        for row in range(N):
            for k in range(candidates):
                place = rng.integers(LENGTH)
                tried[row, k, place] = best[row, place, rng.integers(top_k)]
        values = np.asarray(score(tried))
        ids = tried[np.arange(N), values.argmax(axis=1)]
        won |= values.max(axis=1) > 0
    no_weaker(np.asarray(ours.success), won)
