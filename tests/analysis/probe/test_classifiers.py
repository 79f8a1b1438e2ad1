import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from repshift.analysis.probe import classifiers
from repshift.analysis.probe.classifiers import fit_linear, fit_neighbours
from repshift.errors import DataError, MissingPackageError


def clouds(classes, count=20, channels=6, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, channels, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(classes).repeat(count)
    noise = torch.randn(len(labels), channels, generator=generator)
    return (3 * centres[labels] + spread * noise) * torch.logspace(-3, 3, channels), labels


def names(classes):
    return [f"class {number}" for number in range(classes)]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_probe_is_scikit_learns_on_standardised_features(classes):
    features, labels = clouds(classes, spread=4.0)
    probe = fit_linear(features, labels, names(classes))
    inputs = ((features - features.mean(0)) / features.std(0, correction=0)).double().numpy()
    expected = LogisticRegression(C=probe.strength, max_iter=5000).fit(inputs, labels.numpy())
    torch.testing.assert_close(
        probe(features), torch.from_numpy(expected.predict_log_proba(inputs)), rtol=1e-3, atol=1e-3
    )
    assert probe.strength in classifiers.STRENGTHS


def test_the_strength_is_chosen_on_images_that_are_held_back():
    separate = fit_linear(*clouds(3), names(3))
    features, labels = clouds(3, spread=4.0)
    meaningless = fit_linear(features, labels[torch.randperm(len(labels))], names(3))
    assert meaningless.strength < separate.strength
    again = fit_linear(features, labels, names(3), seed=5)
    assert torch.equal(again.weight, fit_linear(features, labels, names(3), seed=5).weight)


def test_a_channel_that_never_changes_says_nothing():
    features, labels = clouds(3)
    features[:, 2] = 7.0
    probe = fit_linear(features, labels, names(3))
    assert probe(features).isfinite().all()
    changed = features.clone()
    changed[:, 2] = 8.0
    torch.testing.assert_close(probe(changed).argmax(1), probe(features).argmax(1))


@pytest.mark.parametrize("count", [1, 5, 500])
def test_neighbours_vote_as_scikit_learns_with_the_same_weights(count):
    features, labels = clouds(3, spread=4.0)
    others, _ = clouds(3, spread=4.0, seed=1)
    found = fit_neighbours(features, labels, 3, count)(others)
    expected = KNeighborsClassifier(
        min(count, len(labels)), metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / 0.07)
    ).fit(features.double().numpy(), labels.numpy())
    assert found.argmax(1).tolist() == expected.predict(others.double().numpy()).tolist()


@pytest.mark.parametrize(
    ("labels", "classes", "told"),
    [([0, 0, 0, 0], 1, "of 1 class"), ([0, 0, 0, 1], 2, r"class 1 \(1\)"), ([0, 0, 1, 1], 3, r"class 2 \(0\)")],
)
def test_too_little_to_learn_is_refused(labels, classes, told):
    with pytest.raises(DataError, match=told):
        fit_linear(torch.randn(4, 3), torch.tensor(labels), names(classes))


def test_two_images_of_every_class_are_enough():
    features, labels = clouds(5, count=2)
    assert fit_linear(features, labels, names(5))(features).argmax(1).tolist() == labels.tolist()


def test_without_scikit_learn_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r'pip install "repshift\[probe\]"'):
        fit_linear(*clouds(2), names(2))
