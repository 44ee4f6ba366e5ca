"""Metrics of disentanglement against disentanglement_lib's, and on representations whose value is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentlab import disentanglement
from latentlab.disentanglement import Part, sample_groups
from tests.oracles import disentanglement as oracle

UNIFORM = (4, 4, 4)


@pytest.fixture(scope="module")
def reference():
    with np.load(oracle.DATA) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def parts(reference):
    return tuple(Part(reference[f"{part}_codes"], reference[f"{part}_factors"]) for part in ("train", "test"))


def draw_uniform(generator, n):
    return generator.integers(4, size=(n, 3))


def test_deterministic_metrics_are_those_of_disentanglement_lib(parts, reference):
    train, test = parts
    found = {
        "mig": disentanglement.mutual_information_gap(*train),
        "sap_continuous": disentanglement.sap(train),
        "dci": disentanglement.dci(train, test),
        "modularity": disentanglement.modularity(*train),
        "explicitness": disentanglement.explicitness(train, test),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, reference[name], rtol=0, atol=1e-6, err_msg=name)


def test_sap_of_classes_is_that_of_disentanglement_lib(parts, reference):
    # Its SVM is fitted by coordinate descent in an order of its own: an image in 300 may change sides.
    assert disentanglement.sap(*parts) == pytest.approx(float(reference["sap_discrete"]), abs=1 / 300)


def factor_vae(encode, draw, groups, size, seed=0):
    train, test = (
        sample_groups(encode, draw, n, size, seed=seed + part) for part, n in enumerate((groups, groups // 2))
    )
    return disentanglement.factor_vae_score(train, test, encode(draw(np.random.default_rng(seed), 1000)).var(axis=0))


def beta_vae(encode, draw, groups, size, seed=0):
    parts = (sample_groups(encode, draw, n, size, True, seed + part) for part, n in enumerate((groups, groups // 2)))
    return disentanglement.beta_vae_score(*parts)


@pytest.mark.parametrize(("name", "score"), [("factor_vae", factor_vae), ("beta_vae", beta_vae)])
def test_sampled_metrics_agree_within_their_spread(reference, name, score):
    expected = reference[name]
    found = [score(oracle.encode_observed, oracle.draw_factors, 600, 8, 2 * seed) for seed in range(10)]
    error = np.sqrt((expected.var(ddof=1) + np.var(found, ddof=1)) / 10)
    assert 0.5 < expected.mean() < 0.95  # neither chance nor perfect, so that a fault would show
    assert abs(np.mean(found) - expected.mean()) < 3 * error


@pytest.mark.parametrize("pairs", [False, True])
def test_groups_matched_out_of_a_table_score_as_new_ones_do(pairs):
    factors = oracle.draw_factors(np.random.default_rng(0), 4000)
    part = Part(oracle.encode_observed(factors), factors)
    found = []
    for make in (
        lambda n, seed: disentanglement.match_groups(part, n, 8, pairs, seed),
        lambda n, seed: sample_groups(oracle.encode_observed, oracle.draw_factors, n, 8, pairs, seed),
    ):
        scores = []
        for seed in range(0, 20, 2):
            groups = make(600, seed), make(300, seed + 1)
            scores.append(
                disentanglement.beta_vae_score(*groups)
                if pairs
                else disentanglement.factor_vae_score(*groups, part.codes.var(axis=0))
            )
        found.append(np.asarray(scores))
    error = np.sqrt(sum(scores.var(ddof=1) for scores in found) / 10)
    assert abs(found[0].mean() - found[1].mean()) < 3 * error + 0.01  # neighbours in the table are a little apart


def test_codes_that_the_encoder_does_not_use_have_no_vote():
    def encode(factors):
        tiny = 1e-3 * np.random.default_rng(len(factors)).normal(size=(len(factors), 20))
        return np.concatenate([factors.astype(float), tiny], axis=1)

    train, test = (sample_groups(encode, draw_uniform, n, 16, seed=n) for n in (600, 300))
    variances = encode(draw_uniform(np.random.default_rng(0), 2000)).var(axis=0)
    assert disentanglement.factor_vae_score(train, test, variances, 0.05) == 1
    assert disentanglement.factor_vae_score(train, test, 0 * variances) == 0


def test_codes_that_are_the_factors_are_perfect():
    generator = np.random.default_rng(0)
    scores = {}
    for part in ("train", "test"):
        factors = draw_uniform(generator, 2000)
        scores[part] = Part(factors[:, [2, 0, 1]] * np.asarray([1.0, -3.0, 10.0]), factors)  # any order and scale
    train, test = scores["train"], scores["test"]
    assert disentanglement.mutual_information_gap(*train) == pytest.approx(1, abs=0.01)
    assert disentanglement.sap(train) == pytest.approx(1, abs=0.01)
    assert disentanglement.modularity(*train) == pytest.approx(1, abs=0.001)
    assert disentanglement.explicitness(train, test) > 0.8  # the middle classes of an ordered code are not one-vs-rest
    for fit in (disentanglement.fit_trees, disentanglement.fit_lasso):
        np.testing.assert_allclose(disentanglement.dci(train, test, fit), 1, atol=0.01)

    def encode(factors):
        return factors[:, [2, 0, 1]] * np.asarray([1.0, -3.0, 10.0])

    assert factor_vae(encode, draw_uniform, 200, 32) == 1
    assert beta_vae(encode, draw_uniform, 200, 32) == 1


def test_a_rotation_keeps_the_information_and_loses_the_disentanglement():
    generator = np.random.default_rng(1)
    reflection = np.eye(3) - 2 / 3  # coefficients of a factor on the codes are 1/3, -2/3 and -2/3
    factors = [draw_uniform(generator, 4000) for _ in range(2)]
    train, test = (Part(part @ reflection, part) for part in factors)
    mixed = disentanglement.dci(train, test, disentanglement.fit_lasso)
    expected = 1 + np.sum(np.asarray([0.2, 0.4, 0.4]) * np.log([0.2, 0.4, 0.4])) / np.log(3)
    np.testing.assert_allclose(mixed, (expected, expected, 1), atol=0.005)
    assert disentanglement.mutual_information_gap(*train) < 0.4  # 1 before
    assert disentanglement.sap(train) == pytest.approx(0, abs=0.05)  # 4/9 - 4/9 of the variance


def test_noise_says_nothing():
    generator = np.random.default_rng(2)
    factors = [draw_uniform(generator, 4000) for _ in range(2)]
    train, test = (Part(generator.normal(size=(4000, 6)), part) for part in factors)
    assert disentanglement.mutual_information_gap(*train) < 0.01
    assert disentanglement.sap(train) < 0.01
    assert disentanglement.explicitness(train, test) == pytest.approx(0.5, abs=0.03)
    assert disentanglement.dci(train, test, disentanglement.fit_lasso).informativeness < 0.01
    noise = np.random.default_rng(3)

    def encode(rows):
        return noise.normal(size=(len(rows), 6))

    for score in (factor_vae, beta_vae):
        assert score(encode, draw_uniform, 300, 16) < 0.45  # chance is a third


def test_a_group_shares_one_factor_and_pairs_a_value_each():
    seen = []

    def encode(factors):
        seen.append(factors.copy())
        return factors.astype(float)

    fixed, _ = sample_groups(encode, draw_uniform, 20, 8)
    for index, group in zip(fixed, seen[0].reshape(20, 8, 3), strict=True):
        assert np.ptp(group[:, index]) == 0
        assert np.ptp(np.delete(group, index, axis=1), axis=0).all()
    fixed, _ = sample_groups(encode, draw_uniform, 20, 8, pairs=True)
    for index, group in zip(fixed, seen[1].reshape(20, 2, 8, 3), strict=True):
        assert (group[0, :, index] == group[1, :, index]).all()
        assert np.ptp(group[0, :, index]) > 0
        assert (group[0] != group[1]).any()


def test_what_has_no_score_is_refused():
    one = np.zeros((10, 1))
    with pytest.raises(ValueError, match="one code, expected at least two"):
        disentanglement.mutual_information_gap(one, one.astype(int))
    with pytest.raises(ValueError, match="one code, expected at least two"):
        disentanglement.sap(Part(one, one))
    with pytest.raises(ValueError, match="one factor, expected at least two"):
        disentanglement.modularity(np.zeros((10, 2)), one.astype(int))


def test_codes_and_factors_that_do_not_vary_count_as_nothing():
    generator = np.random.default_rng(0)
    codes = np.stack([np.zeros(100), generator.normal(size=100)], axis=1)
    factors = np.stack([np.zeros(100, int), generator.integers(2, size=100)], axis=1)
    for value in (
        disentanglement.mutual_information_gap(codes, factors),
        disentanglement.sap(Part(codes, factors)),
        disentanglement.modularity(codes, factors),
    ):
        assert 0 <= value <= 1


def test_scores_that_do_not_exist_are_left_out():
    generator = np.random.default_rng(0)
    codes, factors = generator.normal(size=(90, 3)), generator.integers(2, size=(90, 2))
    every = disentanglement.measure_disentanglement(Part(codes, factors), is_continuous=False)
    assert {"mig", "modularity", "factor_vae_score"} < set(every)
    alone = disentanglement.measure_disentanglement(Part(codes, factors[:, :1]), is_continuous=False)
    assert "mig" in alone and not {"modularity", "factor_vae_score", "beta_vae_score"} & set(alone)
    one_code = disentanglement.measure_disentanglement(Part(codes[:, :1], factors), is_continuous=False)
    assert "explicitness" in one_code and not {"mig", "sap"} & set(one_code)
    assert disentanglement.measure_disentanglement(Part(codes, 0 * factors), is_continuous=False) == {}


@given(
    images=st.integers(3, 12), codes=st.integers(1, 3), factors=st.integers(1, 3), classes=st.integers(1, 5),
    is_continuous=st.booleans(), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_however_few_images_have_scores_or_none(images, codes, factors, classes, is_continuous, seed):
    generator = np.random.default_rng(seed)
    values = generator.integers(classes, size=(images, factors)).astype(float if is_continuous else int)
    known = Part(generator.normal(size=(images, codes)), values)
    scores = disentanglement.measure_disentanglement(known, is_continuous)
    assert all(0 <= score <= 1 for score in scores.values())


def test_a_test_set_of_other_classes_has_no_explicitness():
    codes = np.random.default_rng(0).normal(size=(6, 2))
    with pytest.raises(ValueError, match=r"classes \[3 4\] of the test set"):
        disentanglement.explicitness(Part(codes, np.arange(6)[:, None] % 2), Part(codes, 3 + np.arange(6)[:, None] % 2))
