"""RCS's parts against plain rewritings of its description."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from crossguard_jax.core.errors import UserError
from crossguard_jax.guard.guard import Guard
from crossguard_jax.systems.load import identity, load
from crossguard_jax.systems.rivals import rcs
from crossguard_jax.systems.rivals.folders import save_detector


def rows(n=60, width=8, seed=0):
    rng = np.random.default_rng(seed)
    sets, unsafe = rng.integers(0, 3, n), rng.random(n) < 0.5
    return rng.normal(size=(n, width)) + 2 * unsafe[:, None] + sets[:, None], sets, unsafe


def test_mcd_is_the_least_distance_to_safe_clusters_less_that_to_unsafe_ones():
    z, sets, unsafe = rows()
    asked = rows(20, seed=1)[0]
    reference = rcs.reference_of("mcd", z, sets, unsafe)
    expected = []
    for row in asked:
        nearest = {}
        for label in (False, True):
            distances = []
            for one in range(3):
                cluster = z[(sets == one) & (unsafe == label)]
                apart = row - cluster.mean(axis=0)
                inverse = np.linalg.inv(rcs.shrunk_covariance(cluster))
                distances.append(np.sqrt(apart @ inverse @ apart))
            nearest[label] = min(distances)
        expected.append(nearest[False] - nearest[True])
    np.testing.assert_allclose(rcs.figure("mcd", reference, asked), expected, atol=1e-4)


@pytest.mark.parametrize("k", [1, 5, 1_000])
def test_kcd_is_the_distance_to_the_kth_safe_row_less_that_to_the_kth_unsafe_one(k):
    z, sets, unsafe = rows()
    asked = rows(20, seed=1)[0]

    def unit(x):
        return x / np.linalg.norm(x)

    expected = []
    for row in asked:
        kth = {}
        for label in (False, True):
            distances = sorted(
                np.linalg.norm(unit(row) - unit(z[i])) for i in np.flatnonzero(unsafe == label)
            )
            kth[label] = distances[min(k, len(distances)) - 1]
        expected.append(kth[False] - kth[True])
    reference = rcs.reference_of("kcd", z, sets, unsafe, k)
    np.testing.assert_allclose(rcs.figure("kcd", reference, asked), expected, atol=1e-4)


def test_a_shrunk_covariance_lies_between_the_sample_and_a_multiple_of_the_identity():
    x = rows(6, 8)[0]  # fewer rows than columns: the sample alone has no inverse
    shrunk, sample = rcs.shrunk_covariance(x), np.cov(x.T)
    assert np.linalg.matrix_rank(sample) < 8
    assert np.linalg.eigvalsh(shrunk).min() > 1e-6
    np.testing.assert_allclose(np.trace(shrunk), np.trace(sample))
    many = rows(20_000, 4)[0]
    np.testing.assert_allclose(rcs.shrunk_covariance(many), np.cov(many.T), rtol=0.05, atol=0.01)


def test_the_loss_is_the_contrast_of_its_description():
    rng = np.random.default_rng(0)
    z, sets, unsafe = rng.normal(size=(12, 5)), rng.integers(0, 3, 12), rng.random(12) < 0.5
    unit = torch.nn.functional.normalize(torch.tensor(z), dim=1)
    distances = torch.cdist(unit, unit)
    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    same = [distances[i, j] for i, j in pairs if sets[i] == sets[j]]
    apart = [torch.relu(1 - distances[i, j]) for i, j in pairs if sets[i] != sets[j]]
    safe, harm = unit[~unsafe], unit[unsafe]
    between = (safe.mean(0) - harm.mean(0)).norm()
    by_label = torch.relu(2 - between)
    by_label = by_label + sum((s - s.mean(0)).norm(dim=1).mean() for s in (safe, harm))
    expected = sum(same) / len(same) + sum(apart) / len(apart) + 5 * by_label
    ours = rcs.contrast(*map(jnp.asarray, (z, sets, unsafe)))
    np.testing.assert_allclose(float(ours), float(expected), atol=1e-4)


def test_the_projection_is_three_layers_normalized_by_what_training_saw():
    z, sets, unsafe = rows(64, 10)
    projection = rcs.train_projection(z.astype(np.float32), sets, unsafe, epochs=2)
    layers = []
    for i, n_out in enumerate(rcs.WIDTHS):
        kernel = torch.tensor(projection[f"kernel_{i}"])
        linear = torch.nn.Linear(kernel.shape[0], n_out)
        norm = torch.nn.BatchNorm1d(n_out).eval()
        linear.weight.data, linear.bias.data = kernel.T, torch.tensor(projection[f"bias_{i}"])
        norm.weight.data = torch.tensor(projection[f"scale_{i}"])
        norm.bias.data = torch.tensor(projection[f"shift_{i}"])
        norm.running_mean = torch.tensor(projection[f"mean_{i}"])
        norm.running_var = torch.tensor(projection[f"variance_{i}"])
        layers += [linear, norm, torch.nn.ReLU()]
    with torch.no_grad():
        expected = torch.nn.Sequential(*layers[:-1])(torch.tensor(z, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(rcs.project(projection, z), expected, atol=1e-4)


@pytest.mark.parametrize("rule", rcs.RULES)
def test_rows_that_differ_by_their_label_are_told_apart(rule):
    z, sets, unsafe = rows(120)
    other, _, truth = rows(60, seed=2)
    projection = rcs.train_projection(z.astype(np.float32), sets, unsafe, epochs=20)
    reference = rcs.reference_of(rule, rcs.project(projection, z), sets, unsafe)
    scores = rcs.figure(rule, reference, rcs.project(projection, other))
    above = (scores[truth][:, None] > scores[~truth]).mean()
    assert above > 0.8


@pytest.mark.parametrize("rule", rcs.RULES)
def test_a_saved_detector_gives_the_same_verdicts(llava_folder, tmp_path, rule):
    guard = Guard.from_pretrained(llava_folder, prompt="short")
    texts = [
        ("is it safe ?", "can i touch it ?")[i % 2] + " the red one" * (i % 5) for i in range(40)
    ]
    unsafe, sets = np.arange(40) % 2 == 0, np.arange(40) // 20
    rows, held = ([None] * 40, texts), np.arange(0, 40, 3)
    detector = rcs.fit(guard, rows, sets, unsafe, held, rule=rule, fpr=0.2)
    assert detector.layer == 1
    save_detector(tmp_path / "rcs", detector, str(llava_folder))
    again = load(tmp_path / "rcs")
    ours, theirs = (
        [v.p_unsafe for v in each.score([None] * 4, texts[:4])] for each in (again, detector)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert identity(again) == identity(detector)


def test_what_rcs_cannot_use_is_named(llava_folder):
    guard = Guard.from_pretrained(llava_folder, prompt="short")
    with pytest.raises(UserError, match="--layer 2: the model has 0 to 1"):
        rcs.states(guard, 2, [None], ["a"])
    with pytest.raises(UserError, match="--rule 'knn' is none of mcd, kcd"):
        rcs.check_rule("knn")
    with pytest.raises(UserError, match="give both"):
        rcs.reference_of("kcd", np.zeros((4, 2)), np.zeros(4, int), np.ones(4, bool))
