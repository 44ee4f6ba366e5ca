"""Classifiers of digits, trained with and without attacks, and what each training withstands.

Every training makes one network a seed, all seeds at once. The networks are attacked on held-out digits at every ε,
and the share of digits that are still recognised is compared. Training goes on from its checkpoints, attacks from
the outcome of every call.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Key

from adversarial.attacks import Ensemble, SweptAttack
from adversarial.config import AdversarialConfig, Training
from adversarial.digits import AdversarialTraining, DigitsNetwork
from adversarial.ensemble import Standing, attack_in_stages
from adversarial.pixels import RANGES, Epsilon
from adversarial.results import DefenseResults, make_classifier
from latentlab import parallel
from latentlab.errors import UserError
from latentlab.labeled_images import Dataset
from latentlab.model import Variables
from latentlab.parallel import batched_apply
from latentlab.statistics import share_with_interval
from latentlab.storage.metrics import MetricsLog
from latentlab.training.loop import LoopSchedule, init_states, resident_steps_per_dispatch, resident_train_steps
from latentlab.training.resume import train_with_checkpoints

TRAININGS: tuple[Training, ...] = get_args(Training)
"""Trainings in the order of their keys: that of seed s and training i is `fold_in(key(s), i)`."""
EPSILONS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
"""Radii of the sweep of digits, in [0, 1], where none are given."""
BATCH_SIZE, LEARNING_RATE, WARMUP = 50, 2e-3, 0.6
"""Digits a step, Adam's rate, which falls as a cosine, and the share of the steps in which ε grows."""
DIGITS_PER_PHOTO = 16
"""Digits that are attacked at once for every photo that would be."""
EVALUATED_AT_ONCE = 500

Log = Callable[[str], None]


def run(
    config: AdversarialConfig, attack: SweptAttack, data: Dataset, run_dir: Path | None = None, log: Log = print
) -> DefenseResults:
    """Train the networks, attack them, and measure.

    Args:
        config: Settings.
        attack: What the networks are attacked with.
        data: Digits.
        run_dir: Where checkpoints, metrics and the outcome of every call are kept; None to keep nothing.
        log: Called with lines that say what is going on.

    Raises:
        UserError: There are too few digits, the loss diverged, or a file could not be written.
    """
    data = _select_digits(config, data)
    metrics = MetricsLog(run_dir and run_dir / "metrics.jsonl")
    log(
        f"adversarial: {len(data.train.images):,} training and {len(data.test.images):,} attacked digits from "
        f"{data.source}"
    )
    trained = {kind: _train(config, kind, data, metrics, run_dir, log) for kind in config.training}
    attack = attack if isinstance(attack.attack, Ensemble) else _make_ensemble(config.attack, attack)
    radii = epsilons(config)
    found: dict[str, list[Standing]] = {}
    for kind, variables in trained.items():
        found[kind] = []
        for seed in range(config.seeds):
            classifier = make_classifier(variables, seed, data.classes)
            log(f"adversarial: attacking {kind}, seed {config.seed + seed}")
            found[kind].append(
                attack_in_stages(
                    classifier,
                    attack,
                    config.seed,
                    data.test.images,
                    data.test.labels,
                    radii,
                    config.batch_size * DIGITS_PER_PHOTO,
                    calls=_open_calls(run_dir, kind, seed),
                )
            )
    arrays = {
        f"{kind}_{name}": np.stack([getattr(standing, name) for standing in standings])
        for kind, standings in found.items()
        for name in ("as_floats", "on_grid", "felled_by")
    }
    measures = {
        "classifier": config.classifier,
        "data": data.describe(),
        "attack": config.attack,
        "norm": config.norm,
        "attack_settings": dict(attack.settings),
        "photos": len(data.test.images),
        "seeds": config.seeds,
        "trainings": {kind: _measure(standings, radii) for kind, standings in found.items()},
    }
    return DefenseResults(config, data.classes, trained, arrays, measures)


def epsilons(config: AdversarialConfig) -> list[Epsilon]:
    """Return the radii of the sweep, of which the first is 0."""
    values = EPSILONS if config.epsilons == AdversarialConfig.epsilons else config.epsilons
    unit = RANGES["zero-one" if config.range == "auto" else config.range]
    return [Epsilon(value, unit) for value in sorted({0.0, *values})]


def _select_digits(config: AdversarialConfig, data: Dataset) -> Dataset:
    """Return as many digits as the configuration asks for.

    Raises:
        UserError: There are not as many, or no classes.
    """
    if len(data.classes) < 2:
        raise UserError(f"{data.source} has {len(data.classes)} classes, expected two or more to tell apart")
    parts = []
    for name, part, count in (
        ("train_images", data.train, config.train_images),
        ("test_images", data.test, config.test_images),
    ):
        if count > len(part.images):
            raise UserError(
                f"{name} is {count}, but {data.source} has {len(part.images)}; expected at most as many, or 0 for all"
            )
        parts.append(type(part)(*(array[: count or len(array)] for array in part)))
    return Dataset(data.source, parts[0], parts[1], data.classes)


def _train(
    config: AdversarialConfig, kind: Training, data: Dataset, metrics: MetricsLog, run_dir: Path | None, log: Log
) -> Variables:
    """Return the variables of all seeds of a training, every leaf with a leading axis of seeds."""
    count = len(data.train.images)
    size = min(BATCH_SIZE, count)
    steps = -(-count // size)
    dispatch = resident_steps_per_dispatch(steps, config.epochs, config.seeds)
    schedule = LoopSchedule(count, size, config.epochs, dispatch, max(1, config.epochs // 10))
    network, warmup = DigitsNetwork(len(data.classes)), int(WARMUP * config.epochs * steps)
    training = AdversarialTraining(network, kind, config.train_epsilon, config.train_steps, warmup_steps=warmup)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, config.epochs * steps))

    def key_of_seed(seed: Array) -> Key[Array, ""]:
        return jax.random.fold_in(jax.random.key(seed), TRAININGS.index(kind))

    def evaluate(variables: Variables) -> dict[str, np.ndarray]:
        correct = _recognise(network, variables, data, config.seeds)
        return {"accuracy": correct.mean(axis=1)}

    digits = parallel.put_replicated((data.train.images, data.train.labels))
    state = train_with_checkpoints(
        init_states(key_of_seed, range(config.seed, config.seed + config.seeds), training.init, optimizer),
        resident_train_steps(digits, schedule, loss=training.loss, optimizer=optimizer, seeds=config.seeds),
        schedule,
        label=kind,
        metrics=metrics,
        evaluate=evaluate,
        checkpoint_dir=run_dir and run_dir / "checkpoints" / kind,
        log=log,
    )
    params = parallel.gather_to_host(state.params)
    params = params if config.seeds > 1 else jax.tree.map(lambda leaf: leaf[None], params)
    return {"params": jax.tree.map(np.asarray, params), "batch_stats": {}}


def _recognise(
    network: DigitsNetwork, variables: Variables, data: Dataset, seeds: int
) -> Bool[np.ndarray, "seeds digits"]:
    """Return which held-out digits the networks of all seeds recognise."""
    params = variables["params"] if seeds > 1 else jax.tree.map(lambda leaf: leaf[None], variables["params"])
    tops = batched_apply(_top_classes, data.test.images, batch_size=EVALUATED_AT_ONCE, shared=params, static=(network,))
    recognised: np.ndarray = data.test.labels == tops.T
    return recognised


def _top_classes(network: DigitsNetwork, params: Any, images: Array) -> Array:
    floats = images.astype(jnp.float32) / 255
    logits: Any = jax.vmap(lambda params: network.apply({"params": params}, floats))(params)
    return jnp.argmax(logits, axis=-1).T


def _make_ensemble(name: str, attack: SweptAttack) -> SweptAttack:
    """Return an attack as an ensemble of it alone."""
    return SweptAttack(Ensemble(((name, attack.attack),), aiming=()), attack.norm, attack.settings)


def _open_calls(run_dir: Path | None, kind: str, seed: int) -> MetricsLog:
    if run_dir is None:
        return MetricsLog(None)
    (run_dir / "calls").mkdir(exist_ok=True)
    return MetricsLog(run_dir / "calls" / f"{kind}_{seed}.jsonl")


def _measure(standings: Sequence[Standing], radii: Sequence[Epsilon]) -> dict[str, Any]:
    """Return what `results.json` has of a training: accuracies at every ε, and what felled the digits."""
    entries = []
    for column, epsilon in enumerate(radii):
        entry: dict[str, Any] = {
            "epsilon": epsilon.value,
            "epsilon_range": str(epsilon.range),
            "epsilon_grey_levels": epsilon.grey_levels,
        }
        for name, part in (("accuracy", "as_floats"), ("accuracy_8_bit", "on_grid")):
            entry |= _interval(name, np.stack([getattr(standing, part)[:, column] for standing in standings]))
        names = np.concatenate([standing.felled_by[:, column] for standing in standings])
        entries.append(entry | {"felled_by": dict(Counter(names.tolist()))})
    return {"clean_accuracy": entries[0]["accuracy"], "robust_accuracy": entries}


def _interval(name: str, stands: Bool[np.ndarray, "seeds digits"]) -> dict[str, Any]:
    """Return the mean accuracy with a 95 % interval: Student's t over seeds, or Wilson's over digits of one seed."""
    from scipy.stats import t as student_t

    values: Float[np.ndarray, " seeds"] = stands.mean(axis=1)
    if len(values) == 1:
        share, low, high = map(float, share_with_interval(stands[0]))
        return {name: share, f"{name}_low": low, f"{name}_high": high, f"{name}_per_seed": [share]}
    half = student_t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return {name: mean, f"{name}_low": low, f"{name}_high": high, f"{name}_per_seed": values.tolist()}
