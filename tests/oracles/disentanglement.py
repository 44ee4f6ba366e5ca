"""Scores of disentanglement_lib 1.5, whose metrics need no TensorFlow: `python -m tests.oracles.disentanglement`.

Needs `pip install --no-deps disentanglement_lib==1.5` and `pip install six absl-py`. Its configuration library is
replaced by one that leaves functions as they are, so every setting is given here. Writes
`tests/data/disentanglement.npz`: codes and factors of a training and a test set, and what every metric gives for them.
"""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "data" / "disentanglement.npz"
SIZES = (3, 4, 5)
"""Values of the three factors."""


def draw_factors(generator: Any, n: int) -> np.ndarray:
    """Return n rows of independent factors, with either of NumPy's generators."""
    integers = getattr(generator, "integers", None) or generator.randint
    return np.stack([integers(size, size=n) for size in SIZES], axis=1)


def encode_mixed(factors: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return five codes: one of each factor with noise, one of two of them, and one of noise alone."""
    scaled = factors / (np.asarray(SIZES) - 1)
    first, second, third = (scaled + 0.25 * noise[:, :3]).T
    return np.stack([first, 2 * second, third, scaled[:, 0] + scaled[:, 1] + 0.2 * noise[:, 3], noise[:, 4]], axis=1)


def encode_observed(factors: np.ndarray) -> np.ndarray:
    """Return three codes that are functions of the factors alone, for metrics that make their own images."""
    scaled = factors / (np.asarray(SIZES) - 1)
    mixed = scaled @ np.asarray([[1.0, 0.6, 0.4], [0.5, 1.0, 0.6], [0.3, 0.5, 1.0]])
    return mixed + 0.3 * np.sin(1e3 * (factors @ np.asarray([1.0, 7.0, 31.0]))[:, None] + np.arange(3))


class _Data:
    num_factors = len(SIZES)

    def sample_factors(self, n: int, state: Any) -> np.ndarray:
        return draw_factors(state, n)

    def sample_observations_from_factors(self, factors: np.ndarray, state: Any) -> np.ndarray:
        return factors

    def sample(self, n: int, state: Any) -> tuple[np.ndarray, np.ndarray]:
        factors = self.sample_factors(n, state)
        return factors, factors

    def sample_observations(self, n: int, state: Any) -> np.ndarray:
        return self.sample_factors(n, state)


def _import_metrics() -> Any:
    gin: Any = types.ModuleType("gin")
    gin.REQUIRED = object()
    gin.configurable = lambda *arguments, **options: lambda function: function
    gin.tf = gin
    sys.modules |= {"gin": gin, "gin.tf": gin}
    from disentanglement_lib.evaluation.metrics import (
        utils,
    )

    discretize: Any = utils.make_discretizer
    utils.make_discretizer = lambda target: discretize(target, 20, utils._histogram_discretize)
    return types.SimpleNamespace(**locals())


def main() -> None:
    """Write the fixture."""
    metrics, generator = _import_metrics(), np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 600), ("test", 300)):
        factors = draw_factors(generator, n)
        codes = encode_mixed(factors, generator.normal(size=(n, 5)))
        parts |= {f"{part}_codes": codes, f"{part}_factors": factors}
    train, test, tested = (parts[f"{name}"].T for name in ("train_codes", "test_codes", "test_factors"))
    factors = parts["train_factors"].T
    both = metrics.modularity_explicitness
    scaled, mean, deviation = metrics.utils.normalize_data(train)
    scaled_test, _, _ = metrics.utils.normalize_data(test, mean, deviation)
    informations = metrics.utils.discrete_mutual_info(metrics.utils.make_discretizer(train), factors)
    areas = [both.explicitness_per_factor(scaled, factors[i], scaled_test, tested[i])[1] for i in range(3)]
    trees = metrics.dci.ensemble.GradientBoostingClassifier
    metrics.dci.ensemble = types.SimpleNamespace(GradientBoostingClassifier=lambda: trees(random_state=0))
    scores = metrics.dci._compute_dci(train, factors, test, tested)
    settings = {"artifact_dir": None, "batch_size": 8, "num_train": 600, "num_eval": 300}
    states = [np.random.RandomState(seed) for seed in range(10)]
    values = {
        "mig": metrics.mig._compute_mig(train, factors)["discrete_mig"],
        "sap_continuous": metrics.sap_score._compute_sap(train, factors, test, tested, True)["SAP_score"],
        "sap_discrete": metrics.sap_score._compute_sap(train, factors, test, tested, False)["SAP_score"],
        "dci": [scores[name] for name in ("disentanglement", "completeness", "informativeness_test")],
        "modularity": both.modularity(informations),
        "explicitness": np.mean(areas),
        "factor_vae": [
            metrics.factor_vae.compute_factor_vae(
                _Data(), encode_observed, state, num_variance_estimate=1000, **settings
            )["eval_accuracy"]
            for state in states
        ],
        "beta_vae": [
            metrics.beta_vae.compute_beta_vae_sklearn(_Data(), encode_observed, state, **settings)["eval_accuracy"]
            for state in states
        ],
    }
    for name, value in values.items():
        print(name, value)
    np.savez_compressed(DATA, **parts, **{name: np.asarray(value) for name, value in values.items()})


if __name__ == "__main__":
    main()
