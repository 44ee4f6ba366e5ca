"""How disentangled a representation is, where the factors are known that images were made from.

Codes are (n, D), posterior means; factors (n, F). All scores lie in 0…1 and 1 is best. They measure three things (Zaidi
et al. 2020, arXiv 2012.09276): that a code depends on one factor only (`dci`'s disentanglement, `modularity`, the
FactorVAE and β-VAE scores), that a factor is in one code only (`mutual_information_gap`, `sap`, `dci`'s completeness),
and that factors can be read off the codes at all (`dci`'s informativeness, `explicitness`). On the same codes and
factors they give what disentanglement_lib gives (Locatello et al. 2019, arXiv 1811.12359).

The metrics that count or classify want discrete factors: `discretize` divides continuous ones. Scikit-learn is imported
where it is used, because its import takes long.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator

from latentlab.statistics import with_one_thread

BINS = 20
"""Bins of equal width that a code is divided into for its mutual information with factors."""

CLASSES = 4
"""Classes of equal width that a continuous factor is divided into for metrics that count or classify."""
GROUPS, GROUP = 3000, 16
"""Groups that train the scores of FactorVAE and β-VAE (half as many judge), and images or pairs in each."""
UNUSED = 0.05
"""Variance of the posterior means up to which a latent dimension counts as one that the encoder does not use."""

Codes = Float[np.ndarray, "n codes"]
Factors = Float[np.ndarray, "n factors"] | Int[np.ndarray, "n factors"]
DiscreteFactors = Int[np.ndarray, "n factors"]
Encode = Callable[[Factors], Codes]
"""Factors to the codes of images that are made from them."""
DrawFactors = Callable[[Generator, int], Factors]
"""A generator and n to n rows of independent factors."""


class Dci(NamedTuple):
    """Disentanglement, completeness and informativeness; see `dci`."""

    disentanglement: float
    completeness: float
    informativeness: float


class Part(NamedTuple):
    """Codes and factors of one part of the data."""

    codes: Codes
    factors: Factors


FitImportance = Callable[[Codes, np.ndarray, Codes, np.ndarray], tuple[np.ndarray, float]]
"""Training codes and one factor, test codes and factor to the importance of every code and how well it is predicted."""


@with_one_thread
def measure_disentanglement(known: Part, is_continuous: bool, seed: int = 0) -> dict[str, float]:
    """Return all scores, factors in 4 classes where a metric wants classes.

    Factors that do not vary, or whose classes differ between the two parts of few images, are left out, and so are
    scores that one code or one factor does not have; of none, all.

    Args:
        known: Codes and factors; the last third of the rows is the test set.
        is_continuous: Whether factors are continuous, and not classes.
        seed: Of the groups of FactorVAE's and β-VAE's scores, which are matched among the images.
    """
    end = len(known.codes) - len(known.codes) // 3
    classes = discretize(known.factors, CLASSES) if is_continuous else known.factors.astype(np.int64)
    rows = slice(end), slice(end, None)
    varying = np.array([_has_known_classes(factor[:end], factor[end:]) for factor in classes.T], bool)
    train, test = (Part(known.codes[part], known.factors[part][:, varying]) for part in rows)
    discrete = [Part(known.codes[part], classes[part][:, varying]) for part in rows]
    scores: dict[str, float] = {}
    if not varying.any():
        return scores
    if known.codes.shape[1] > 1:
        scores["mig"] = mutual_information_gap(*discrete[0])
        scores["sap"] = sap(train)
    scores |= {f"dci_{name}": value for name, value in dci(train, test, fit_lasso)._asdict().items()}
    scores["explicitness"] = explicitness(*discrete)
    if varying.sum() < 2:
        return scores
    scores["modularity"] = modularity(*discrete[0])
    alone, pairs = (
        tuple(
            match_groups(part, count, GROUP, is_pairs, seed + row)
            for row, (part, count) in enumerate(((train, GROUPS), (test, GROUPS // 2)))
        )
        for is_pairs in (False, True)
    )
    scores["factor_vae_score"] = factor_vae_score(alone[0], alone[1], train.codes.var(axis=0), UNUSED)
    scores["beta_vae_score"] = beta_vae_score(pairs[0], pairs[1])
    return scores


def _has_known_classes(train: Int[np.ndarray, " n"], test: Int[np.ndarray, " m"]) -> bool:
    """Say whether both parts have several classes, and one in common."""
    return len(np.unique(train)) > 1 and len(np.unique(test)) > 1 and bool(np.isin(train, test).any())


def discretize(values: Float[np.ndarray, "n columns"], bins: int = BINS) -> Int[np.ndarray, "n columns"]:
    """Return in which of `bins` bins of equal width between its least and largest value each number lies, from 1 on."""
    edges = (np.histogram(column, bins)[1][:-1] for column in values.T)
    return np.stack([np.digitize(column, edge) for column, edge in zip(values.T, edges, strict=True)], axis=1)


def mutual_information(codes: Codes, factors: DiscreteFactors) -> Float[np.ndarray, "codes factors"]:
    """Return I(code; factor) of all pairs in nats, codes in 20 bins."""
    return _information(discretize(codes), factors)


def mutual_information_gap(codes: Codes, factors: DiscreteFactors) -> float:
    """Return MIG, the mean over factors of (I₁ - I₂) / H: the two largest informations over the factor's entropy.

    Chen et al. 2018, arXiv 1802.04942. A factor that is constant has no entropy, and counts as 0.

    Raises:
        ValueError: There is only one code, which has no runner-up.
    """
    _check_codes(codes)
    largest = np.sort(mutual_information(codes, factors), axis=0)[::-1]
    entropy = np.diag(_information(factors, factors))
    return float(np.mean((largest[0] - largest[1]) / np.where(entropy > 0, entropy, 1)))


def sap(train: Part, test: Part | None = None) -> float:
    """Return the separated attribute predictability: how much better the best code predicts a factor than the next.

    Kumar et al. 2018, arXiv 1711.00848. Without `test` factors are continuous, and a prediction is as good as the
    squared correlation; with it they are classes, which a linear SVM tells from one code, and its accuracy counts.

    Raises:
        ValueError: There is only one code.
    """
    _check_codes(train.codes)
    scores = np.sort(_squared_correlations(*train) if test is None else _svm_accuracies(train, test), axis=0)
    return float(np.mean(scores[-1] - scores[-2]))


def dci(train: Part, test: Part, fit: FitImportance | None = None) -> Dci:
    """Return disentanglement, completeness and informativeness of Eastwood & Williams (2018).

    R[c, f] is how important code c is for predicting factor f. Disentanglement is the mean over codes of 1 - the
    entropy of a row of R to base F, completeness that over factors of 1 - the entropy of a column to base D, both
    weighted by importance; informativeness is how well factors of `test` are predicted, on average.

    Args:
        train: What predictors are fitted to.
        test: What they are judged by.
        fit: `fit_trees` (the default), for discrete factors, or `fit_lasso`, for continuous ones.
    """
    fitted = [
        (fit or fit_trees)(train.codes, factor, test.codes, tested)
        for factor, tested in zip(train.factors.T, test.factors.T, strict=True)
    ]
    importance = np.stack([column for column, _ in fitted], axis=1)
    codes, factors = importance.shape
    weights = importance if importance.sum() > 0 else np.ones_like(importance)
    weights = weights / weights.sum()
    per_code = 1 - _entropies(importance.T, factors)
    per_factor = 1 - _entropies(importance, codes)
    return Dci(
        float(per_code @ weights.sum(axis=1)),
        float(per_factor @ weights.sum(axis=0)),
        float(np.mean([score for _, score in fitted])),
    )


def fit_trees(
    codes: Codes, factor: np.ndarray, test_codes: Float[np.ndarray, "m codes"], test_factor: np.ndarray
) -> tuple[Float[np.ndarray, " codes"], float]:
    """Return importances of codes for gradient-boosted trees that tell the classes of a factor, and their accuracy."""
    from sklearn.ensemble import GradientBoostingClassifier

    model = GradientBoostingClassifier(random_state=0).fit(codes, factor)
    return np.abs(model.feature_importances_), float(np.mean(model.predict(test_codes) == test_factor))


def fit_lasso(
    codes: Codes, factor: np.ndarray, test_codes: Float[np.ndarray, "m codes"], test_factor: np.ndarray
) -> tuple[Float[np.ndarray, " codes"], float]:
    """Return |coefficients| of a Lasso of a continuous factor on codes, and R² on the test set, which is at least 0.

    Both are standardised by the training set; the penalty is 0.01 Σ |coefficients|.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    means, deviations = codes.mean(axis=0), codes.std(axis=0)
    scale = np.where(deviations > 0, deviations, 1)
    with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):  # where images are fewer than codes
        model = Lasso(0.01).fit((codes - means) / scale, (factor - factor.mean()) / (factor.std() or 1))
    score = model.score((test_codes - means) / scale, (test_factor - factor.mean()) / (factor.std() or 1))
    return np.abs(model.coef_), max(0.0, float(score))


def modularity(codes: Codes, factors: DiscreteFactors) -> float:
    """Return the mean over codes of 1 - Σ I² / (max I² (F - 1)), the sum over all factors but the code's own.

    Ridgeway & Mozer 2018, arXiv 1802.05312. A code that says nothing of any factor counts as 0.

    Raises:
        ValueError: There is only one factor.
    """
    if factors.shape[1] < 2:
        raise ValueError("there is one factor, expected at least two: a code cannot depend on others")
    squared = mutual_information(codes, factors) ** 2
    largest = squared.max(axis=1)
    others = (squared.sum(axis=1) - largest) / (np.where(largest > 0, largest, 1) * (factors.shape[1] - 1))
    return float(np.mean(np.where(largest > 0, 1 - others, 0)))


def explicitness(train: Part, test: Part) -> float:
    """Return the mean area under the ROC curve of one-vs-rest logistic regressions of every factor's classes on codes.

    Ridgeway & Mozer 2018. Codes are standardised by the training set's mean and standard deviation. Chance is 0.5.

    Raises:
        ValueError: A factor's test set has no class of its training set, or no other.
    """
    from sklearn.metrics import roc_auc_score

    mean, deviation = train.codes.mean(axis=0), train.codes.std(axis=0)
    scaled, tested = ((part.codes - mean) / np.where(deviation > 0, deviation, 1) for part in (train, test))
    areas = []
    for factor, expected in zip(train.factors.T, test.factors.T, strict=True):
        model = _fit_logistic(scaled, factor)
        present = [value for value in model.classes_ if 0 < np.mean(expected == value) < 1]
        if not present:
            raise ValueError(
                f"classes {np.unique(expected)} of the test set, expected several, one of {model.classes_}"
            )
        probabilities = model.predict_proba(tested)[:, np.isin(model.classes_, present)]
        areas.append(roc_auc_score(expected[:, None] == np.asarray(present), probabilities))
    return float(np.mean(areas))


class Groups(NamedTuple):
    """Codes of groups of images that share one factor each; of pairs, image i shares it with image `size` + i alone."""

    fixed: Int[np.ndarray, " groups"]
    codes: Float[np.ndarray, "groups images codes"]


def sample_groups(
    encode: Encode, draw_factors: DrawFactors, groups: int, size: int = 64, pairs: bool = False, seed: int = 0
) -> Groups:
    """Return groups of new images: all factors are drawn at random but one, which the images of a group share.

    Args:
        encode: Factors to codes.
        draw_factors: Draws independent factors.
        groups: Number of groups.
        size: Images in a group, or pairs.
        pairs: Let the two images of a pair share the factor, which every pair has a value of its own of.
        seed: Of all that is drawn.
    """
    generator, images = np.random.default_rng(seed), 2 * size if pairs else size
    factors = draw_factors(generator, groups * images).reshape(groups, images, -1)
    fixed = generator.integers(factors.shape[2], size=groups)
    for group, index in enumerate(fixed):
        factors[group, -size:, index] = factors[group, :size, index] if pairs else factors[group, 0, index]
    codes = encode(factors.reshape(groups * images, -1))
    return Groups(fixed, codes.reshape(groups, images, -1))


def match_groups(part: Part, groups: int, size: int = 16, pairs: bool = False, seed: int = 0) -> Groups:
    """Return groups of images out of those whose factors are known: those of a group are neighbours in one factor.

    What `sample_groups` does where no new images can be made, or would take too long. It wants many images, whose
    factors are independent: of n images the neighbours differ by up to `size` / n of a factor's range.
    """
    generator, n = np.random.default_rng(seed), len(part.codes)
    fixed = generator.integers(part.factors.shape[1], size=groups)
    codes = []
    for index in fixed:
        order = np.lexsort((generator.random(n), part.factors[:, index]))
        if pairs:
            starts = generator.integers(n - 1, size=size)
            rows = np.concatenate([order[starts], order[starts + 1]])
        else:
            start = generator.integers(max(1, n - size + 1))
            rows = order[start : start + size]
        codes.append(part.codes[rows])
    return Groups(fixed, np.stack(codes))


def factor_vae_score(
    train: Groups, test: Groups, variances: Float[np.ndarray, " codes"], threshold: float = 0.0
) -> float:
    """Return how well the code of least variance tells which factor was held fixed.

    Kim & Mnih 2018, arXiv 1802.05983. A group's vote goes to the code whose variance in the group is the smallest part
    of its variance overall. Every code stands for the factor that most votes of `train` give it, and the score is the
    share of `test` for which that is right.

    Args:
        train: Groups, not pairs.
        test: Others.
        variances: Of every code over all images. Codes of at most `threshold` are left out; if none is left, the score
            is 0.
        threshold: Variance up to which a code counts as one that the encoder does not use.
    """
    active = variances > threshold
    if not active.any():
        return 0.0
    votes, expected = (
        np.argmin(groups.codes.var(axis=1, ddof=1)[:, active] / variances[active], axis=1) for groups in (train, test)
    )
    counts = np.zeros((int(active.sum()), max(train.fixed.max(), test.fixed.max()) + 1), int)
    np.add.at(counts, (votes, train.fixed), 1)
    return float(np.mean(counts.argmax(axis=1)[expected] == test.fixed))


def beta_vae_score(train: Groups, test: Groups) -> float:
    """Return how well a linear classifier tells which factor two images share, from how far apart their codes are.

    Higgins et al. 2017. What it sees of a group of pairs is the mean over them of |code - code'|; the score is its
    accuracy on `test`.
    """

    def distances(groups: Groups) -> Float[np.ndarray, "groups codes"]:
        first, second = np.split(groups.codes, 2, axis=1)
        return np.abs(first - second).mean(axis=1)

    model = _fit_logistic(distances(train), train.fixed)
    return float(np.mean(model.predict(distances(test)) == test.fixed))


def _information(first: Int[np.ndarray, "n a"], second: Int[np.ndarray, "n b"]) -> Float[np.ndarray, "a b"]:
    """Return the mutual information of the empirical distribution of all pairs of columns, in nats."""
    (one, one_starts), (other, other_starts) = map(_one_hot, (first, second))
    joint = one.T @ other / len(first)
    independent = np.outer(one.mean(axis=0), other.mean(axis=0))
    terms = joint * np.log(np.where(joint > 0, joint / independent, 1))
    return np.add.reduceat(np.add.reduceat(terms, one_starts, axis=0), other_starts, axis=1)


def _one_hot(values: Int[np.ndarray, "n columns"]) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of 0 and 1 for every value of every column, and at which of these each column starts."""
    blocks = [(column[:, None] == np.unique(column)).astype(np.float64) for column in values.T]
    return np.concatenate(blocks, axis=1), np.cumsum([0, *(block.shape[1] for block in blocks[:-1])])


def _squared_correlations(codes: Codes, factors: Factors) -> Float[np.ndarray, "codes factors"]:
    """Return squared correlations of all pairs, 0 for a code or factor that hardly varies."""
    codes, factors = (part - part.mean(axis=0) for part in (codes.astype(np.float64), factors.astype(np.float64)))
    degrees = len(codes) - 1
    covariance = codes.T @ factors / degrees
    variances = np.outer((codes**2).sum(axis=0) / degrees, (factors**2).sum(axis=0) / degrees)
    varies = np.outer((codes**2).sum(axis=0) / degrees > 1e-12, (factors**2).sum(axis=0) > 0)
    return np.where(varies, covariance**2 / np.where(varies, variances, 1), 0)


def _svm_accuracies(train: Part, test: Part) -> Float[np.ndarray, "codes factors"]:
    from sklearn.svm import LinearSVC

    def score(code: np.ndarray, factor: np.ndarray, tested: np.ndarray, expected: np.ndarray) -> float:
        model = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(code[:, None], factor)
        return float(np.mean(model.predict(tested[:, None]) == expected))

    return np.asarray(
        [
            [
                score(code, factor, tested, expected)
                for factor, expected in zip(train.factors.T, test.factors.T, strict=True)
            ]
            for code, tested in zip(train.codes.T, test.codes.T, strict=True)
        ]
    )


def _fit_logistic(codes: Codes, classes: np.ndarray) -> Any:
    """Return a logistic regression after at most 100 iterations, with which disentanglement_lib makes do too."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):
        return LogisticRegression(max_iter=100).fit(codes, classes)


def _entropies(columns: Float[np.ndarray, "rows columns"], base: int) -> Float[np.ndarray, " columns"]:
    """Return the entropy of every column, taken as a distribution, to a base; of a single row it is 0."""
    from scipy.stats import entropy

    return np.asarray(entropy(columns + 1e-11, base=base)) if base > 1 else np.zeros(columns.shape[1])


def _check_codes(codes: Codes) -> None:
    if codes.shape[1] < 2:
        raise ValueError("there is one code, expected at least two: the gap is between the best and the next")
