"""Timings of this project alone, on whatever device is there: every hot function, stage by stage, against its limit.

python run.py bench [--quick] [--works NAME …] [--out FILE.json]

Tracing, lowering and compilation are timed once each, with no cache; then the compiled program runs until it has taken
`SECONDS` or `MOST_REPEATS` times. The limit of a program is the longer of two times: that of its floating-point
operations at the rate of a large matrix product, and that of reading its arguments and writing its results at the rate
of a large copy, both measured in the same run. Operations are those of the products and convolutions that the network
asks for (`count_operations`), not those that a platform's form of it takes.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.core import jaxprs_in_params

from adversarial import attacks
from benchmarks import fgsm_ours, fgsm_work
from latent_arith import directions
from latent_arith import experiment as faces
from latent_arith.config import ORIGINAL as FACES
from latent_arith.datasets.synthetic_faces import ATTRIBUTES
from latent_arith.model import FaceVae, decode_rows, encode_rows
from latentlab.config import Precision
from latentlab.errors import UserError
from latentlab.model import LatentVariableModel, Variables
from latentlab.parallel import map_seeds
from latentlab.storage.run_directory import describe_machine, write_json
from latentlab.training.loop import LoopSchedule, train_epoch
from latentlab.training.optimizer import adam
from latentlab.training.state import TrainState, init_state, train_step
from vae import evaluate, experiment
from vae.config import ORIGINAL as DIGITS

SECONDS, MOST_REPEATS, FEWEST_REPEATS = 3.0, 50, 3


class Program(NamedTuple):
    """A function of arrays, and arrays for it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Work:
    """One hot function.

    Attributes:
        title: What it does.
        images: Images that a call handles: trains on, encodes, or makes.
        program: What is timed.
    """

    title: str
    images: int
    program: Program


@dataclass(frozen=True)
class Sizes:
    """How much work there is.

    Attributes:
        digits: Training images of the digits' VAE.
        batch: Images of a training step.
        faces: Images that are encoded at once; and of the direction pass, a tenth of a block of it.
        grid: Points of the latent plane that are decoded.
        photo: Side of a photo.
        photos: Numbers of photos of FGSM; the second is also that of the sweep.
        pgd: Photos of PGD.
        epsilons: Radii of the sweep.
        objectives: Objectives of the sweep.
        attributes: Attributes of the direction pass.
        seeds: Seeds that an epoch trains at once.
    """

    digits: int = 1000
    batch: int = 32
    faces: int = 50
    grid: int = 400
    photo: int = fgsm_work.SIZE
    photos: tuple[int, int, int] = (1, 16, 64)
    pgd: int = 4
    epsilons: int = 10
    objectives: int = 4
    attributes: int = len(ATTRIBUTES)
    seeds: int = 1


QUICK = Sizes(digits=64, batch=8, faces=10, grid=100, photo=32, photos=(1, 2, 3), pgd=2, epsilons=2)


def run(quick: bool, names: tuple[str, ...], out: Path | None, precision: Precision = "default") -> Path:
    """Measures, prints a table and writes the JSON; returns its path.

    Args:
        quick: Small arrays and few repeats, to see that everything runs; the times mean nothing.
        names: Works to measure, of `WORKS`; all if there are none.
        out: File of the JSON, by default named after the time, under runs/.
        precision: Of the training steps.

    Raises:
        UserError: A name is unknown, or the file exists or cannot be written.
    """
    unknown = [name for name in names if name not in WORKS]
    if unknown:
        raise UserError(f"works: there is no {unknown[0]!r}; expected some of {', '.join(WORKS)}")
    out = out or Path("runs") / f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    with without_compilation_cache():
        rates = measured_rates(quick)
        print(_rates_line(rates), flush=True)
        rows: dict[str, dict[str, Any]] = {}
        for name in names or WORKS:
            jax.clear_caches()
            work = WORKS[name](QUICK if quick else Sizes(), precision)
            rows[name] = measured(work, rates, quick)
            if len(rows) == 1:
                print(_line(HEADINGS) + "\n" + _line(["---"] * len(HEADINGS)))
            print(_line(_cells(rows[name])), flush=True)
    record = {**describe_machine(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "quick": quick}
    memory = jax.local_devices()[0].memory_stats() or {}
    record |= {"precision": precision, "peak_bytes_of_all": memory.get("peak_bytes_in_use"), "rates": rates}
    write_json(out, {**record, "works": rows})
    print(out)
    return out


def measured(
    work: Work,
    rates: dict[str, float],
    quick: bool = False,
    inspect: Callable[[jax.stages.Compiled, tuple[Any, ...]], dict[str, Any]] = lambda compiled, arguments: {},
) -> dict[str, Any]:
    """Seconds of every stage, rates, memory, the share of the limit that the work reaches, and what `inspect` finds."""
    function, arguments = work.program
    stages: dict[str, float] = {}

    def timed(stage: str, step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = step()
        stages[f"{stage}_seconds"] = time.perf_counter() - start
        return result

    traced = timed("trace", lambda: jax.jit(function).trace(*arguments))
    lowered = timed("lower", traced.lower)
    compiled = timed("compile", lowered.compile)
    seconds = warm_seconds(lambda: compiled(*arguments), 0 if quick else SECONDS)
    plan: Any = compiled.memory_analysis()
    flops = count_operations(function, *arguments)
    moved = plan.argument_size_in_bytes + plan.output_size_in_bytes
    median = statistics.median(seconds)
    limits = {"products": flops / rates["flops_per_second"], "copies": moved / rates["bytes_per_second"]}
    bound = max(limits, key=lambda name: limits[name])
    return {
        "title": work.title,
        **stages,
        "warm_seconds": {"median": median, "min": min(seconds), "max": max(seconds), "repeats": len(seconds)},
        "images_per_second": work.images / median,
        "flops": flops,
        "flops_per_second": flops / median,
        "bytes_in_and_out": moved,
        "share_of_limit": limits[bound] / median,
        "limit": bound,
        "peak_bytes": peak_bytes(compiled),
        **inspect(compiled, arguments),
    }


def peak_bytes(compiled: jax.stages.Compiled) -> int:
    """Return the memory that a call takes at most, its arguments and results included."""
    plan: Any = compiled.memory_analysis()
    whole = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return int(whole - plan.alias_size_in_bytes)


def count_operations(function: Callable[..., Any], *arguments: Any) -> int:
    """Return the floating-point operations of a function's matrix products and convolutions, 2 for each multiply-add.

    They are counted in its jaxpr, before any compiler, in the form that no platform has of its own. A loop of known
    length counts as often as it runs; taps that lie in the padding count, zeros of a dilated input do not.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params, out = equation.primitive.name, equation.params, equation.outvars[0].aval
        shapes = [variable.aval.shape for variable in equation.invars]
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * out.size * prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            features = shapes[1][params["dimension_numbers"].rhs_spec[0]]
            taps = prod(shapes[1]) // features // params["batch_group_count"]
            total += 2 * out.size * taps // prod(params["lhs_dilation"])
        elif params.get("branches_platforms"):
            total += _count(params["branches"][params["branches_platforms"].index(None)].jaxpr)
        else:
            total += params.get("length", 1) * sum(map(_count, jaxprs_in_params(params)))
    return total


def measured_rates(quick: bool = False) -> dict[str, float]:
    """FLOP/s of a large matrix product and bytes/s, read and written, of a large copy on this device."""
    side, size = (256, 2**20) if quick else (2048, 2**26) if jax.default_backend() == "cpu" else (8192, 2**28)
    matrix, array = jnp.ones((side, side)), jnp.ones(size)
    multiply, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    products = warm_seconds(lambda: multiply(matrix, matrix), 0 if quick else 1)
    copies = warm_seconds(lambda: copy(array), 0 if quick else 1)
    return {
        "flops_per_second": 2 * side**3 / statistics.median(products),
        "bytes_per_second": 2 * array.nbytes / statistics.median(copies),
    }


def warm_seconds(call: Callable[[], Any], budget: float) -> list[float]:
    """Seconds of repeats after a first one; at least `FEWEST_REPEATS` of them."""
    jax.block_until_ready(call())
    seconds: list[float] = []
    while len(seconds) < FEWEST_REPEATS or (sum(seconds) < budget and len(seconds) < MOST_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds


def digits_step(sizes: Sizes, precision: Precision) -> Work:
    """Return a training step of the digits' VAE."""
    model = experiment.make_vae(replace(DIGITS, precision=precision))
    step, state = _step(model, adam(DIGITS.learning_rate, DIGITS.adam_epsilon))
    arguments = state, _pixels(sizes.batch, 28, 1), jnp.ones(sizes.batch)
    return Work(f"digit VAE, a training step of {sizes.batch}", sizes.batch, Program(step, arguments))


def digits_epoch(sizes: Sizes, precision: Precision) -> Work:
    """Return an epoch of such steps, as one scan, of one seed or several."""
    step = digits_step(sizes, precision).program
    schedule = LoopSchedule(sizes.digits, sizes.batch, 1, sizes.digits, 1)

    def run_epoch(state: TrainState, images: Array) -> Any:
        return train_epoch(state, images, schedule, step.function)

    state = step.arguments[0]
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * sizes.seeds), state) if sizes.seeds > 1 else state
    program = Program(map_seeds(run_epoch, sizes.seeds, (0, None)), (states, _pixels(sizes.digits, 28, 1)))
    title = f"digit VAE, an epoch of {sizes.digits:,}" + (f", {sizes.seeds} seeds" if sizes.seeds > 1 else "")
    return Work(title, sizes.seeds * sizes.digits, program)


def digits_grid(sizes: Sizes, precision: Precision) -> Work:
    """Return the latent plane, decoded."""
    model = experiment.make_vae(replace(DIGITS, precision=precision))
    variables = model.init(jax.random.key(0))

    def decode(variables: Variables, latents: Array) -> Array:
        return jax.vmap(partial(evaluate.decode_latent, model, variables))(latents)

    latents = jax.random.normal(jax.random.key(1), (sizes.grid, model.latent_dim))
    return Work(f"digit VAE, a grid of {sizes.grid} decoded", sizes.grid, Program(decode, (variables, latents)))


def face_step(sizes: Sizes, precision: Precision) -> Work:
    """Return a training step of the face VAE."""
    model = faces.make_model(replace(FACES, precision=precision))
    step, state = _step(model, adam(FACES.learning_rate, FACES.adam_epsilon))
    arguments = state, _pixels(sizes.batch, 128, 3), jnp.ones(sizes.batch)
    return Work(f"face VAE, a training step of {sizes.batch}", sizes.batch, Program(step, arguments))


def face_encode(sizes: Sizes, precision: Precision) -> Work:
    """Return posterior means of faces."""
    program = Program(partial(encode_rows, FaceVae()), (_face_variables(), _pixels(sizes.faces, 128, 3)))
    return Work(f"face VAE, {sizes.faces} encoded", sizes.faces, program)


def face_decode(sizes: Sizes, precision: Precision) -> Work:
    """Return faces from latents."""
    latents = jax.random.normal(jax.random.key(1), (sizes.faces, FACES.latent_dim))
    program = Program(partial(decode_rows, FaceVae()), (_face_variables(), latents))
    return Work(f"face VAE, {sizes.faces} decoded", sizes.faces, program)


def face_directions(sizes: Sizes, precision: Precision) -> Work:
    """Return what the direction pass computes of a block of images, all attributes at once."""
    count, attributes = 10 * sizes.faces, sizes.attributes

    def measure_block(variables: Variables, moments: Any, pixels: Array, signs: Array, weights: Array) -> Any:
        return directions.update_moments(moments, encode_rows(FaceVae(), variables, pixels), signs, weights)

    signs = jax.random.choice(jax.random.key(2), jnp.asarray([-1, 1], jnp.int8), (count, attributes))
    moments = directions.init_moments(1, attributes, FACES.latent_dim)
    arguments = _face_variables(), moments, _pixels(count, 128, 3), signs, jnp.ones((1, *signs.shape))
    return Work(f"direction pass, {count} faces, {attributes} attributes", count, Program(measure_block, arguments))


def forward(sizes: Sizes, precision: Precision) -> Work:
    """Return logits of photos."""
    count = sizes.photos[1]

    def logits(variables: Any, images: Array) -> Array:
        return attacks.evaluate_logits(fgsm_ours.logits_of(variables), images)

    program = Program(logits, (fgsm_ours.variables_on_device(), _photos(sizes, count)))
    return Work(f"MobileNetV2, logits of {count}", count, program)


def gradient(which: int, sizes: Sizes, precision: Precision) -> Work:
    """FGSM's gradient with respect to photos."""
    count = sizes.photos[which]

    def of_images(variables: Any, images: Array, labels: Array) -> Array:
        return attacks.input_gradient(fgsm_ours.logits_of(variables), images, labels, jnp.asarray(False))

    arguments = fgsm_ours.variables_on_device(), _photos(sizes, count), jnp.asarray(fgsm_work.labels(count))
    return Work(f"MobileNetV2, FGSM gradient of {count}", count, Program(of_images, arguments))


def sweep(sizes: Sizes, precision: Precision) -> Work:
    """Every ε, untargeted and towards some classes."""
    count = sizes.photos[1]
    targeted, epsilons = jnp.arange(sizes.objectives) > 0, jnp.linspace(1, 10, sizes.epsilons) / 255

    def swept(variables: Any, images: Array, rows: Array) -> Any:
        logits = fgsm_ours.logits_of(variables)
        return attacks.sweep(attacks.fgsm, jax.random.key(0), logits, images, rows, targeted, epsilons)

    rows = jnp.asarray(fgsm_ours.objectives(count, sizes.objectives - 1))
    arguments = fgsm_ours.variables_on_device(), _photos(sizes, count), rows
    title = f"FGSM, {sizes.epsilons} ε × {sizes.objectives} objectives, {count} photos"
    return Work(title, count * sizes.objectives * sizes.epsilons, Program(swept, arguments))


def pgd(sizes: Sizes, precision: Precision) -> Work:
    """Ten steps of PGD."""
    count, steps = sizes.pgd, fgsm_ours.PGD_STEPS

    def attack(key: Array, variables: Any, images: Array, labels: Array) -> Any:
        logits, epsilon = fgsm_ours.logits_of(variables), fgsm_work.EPSILON
        size = fgsm_ours.PGD_STEP * epsilon
        keys = jax.random.split(key, len(labels))
        return attacks.pgd(keys, logits, images, labels, epsilon=epsilon, step_size=size, steps=steps)

    labels = jnp.asarray(fgsm_work.labels(count))
    arguments = jax.random.key(0), fgsm_ours.variables_on_device(), _photos(sizes, count), labels
    return Work(f"PGD-{steps}, {count} photos", count, Program(attack, arguments))


WORKS: dict[str, Callable[[Sizes, Precision], Work]] = {
    "digits_step": digits_step,
    "digits_epoch": digits_epoch,
    "digits_grid": digits_grid,
    "face_step": face_step,
    "face_encode": face_encode,
    "face_decode": face_decode,
    "face_directions": face_directions,
    "forward": forward,
    "gradient_1": partial(gradient, 0),
    "gradient_16": partial(gradient, 1),
    "gradient_64": partial(gradient, 2),
    "sweep": sweep,
    "pgd": pgd,
}
HEADINGS = (
    "work",
    "trace, lower, compile, s",
    "warm, ms",
    "images/s",
    "GFLOP/s",
    "share of the limit",
    "peak memory, MB",
)


def _step(model: LatentVariableModel, optimizer: optax.GradientTransformation) -> tuple[Callable[..., Any], TrainState]:
    """Return a training step of a model and the state that it begins with."""
    step = partial(train_step, loss=partial(model.loss, train=True), optimizer=optimizer)
    return step, init_state(jax.random.key(0), model.init, optimizer)


def _face_variables() -> Variables:
    variables: Variables = jax.jit(FaceVae().init)(jax.random.key(0))
    return variables


def _pixels(count: int, side: int, channels: int) -> Array:
    return jax.random.randint(jax.random.key(3), (count, side, side, channels), 0, 256, jnp.uint8)


def _photos(sizes: Sizes, count: int) -> Array:
    return jax.random.uniform(jax.random.key(4), (count, sizes.photo, sizes.photo, 3))


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compiles everything anew; JAX reads this setting once, so what it read is forgotten before and after."""
    settings: Any = jax.config
    was = settings.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", was)
        compilation_cache.reset_cache()


def _rates_line(rates: Mapping[str, float]) -> str:
    device = jax.devices()[0].device_kind
    products, copies = rates["flops_per_second"] / 1e9, rates["bytes_per_second"] / 1e9
    return f"{device}: matrix products {products:,.0f} GFLOP/s, copies {copies:,.1f} GB/s, read and written\n"


def _cells(work: Mapping[str, Any]) -> list[str]:
    warm = {name: f"{1e3 * work['warm_seconds'][name]:,.1f}" for name in ("median", "min", "max")}
    return [
        work["title"],
        ", ".join(f"{work[f'{stage}_seconds']:.2f}" for stage in ("trace", "lower", "compile")),
        f"{warm['median']} ({warm['min']} to {warm['max']})",
        f"{work['images_per_second']:,.0f}",
        f"{work['flops_per_second'] / 1e9:,.1f}",
        f"{work['share_of_limit']:.0%} of {work['limit']}",
        f"{work['peak_bytes'] / 1e6:,.0f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
