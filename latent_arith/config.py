"""Settings of the face experiment and their presets; imports nothing heavy, so that `--help` is quick."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from latentlab.config import Decoder, Precision, check_numbers
from latentlab.errors import UserError

Crop = tuple[int, int, int]
"""Left and upper edge and width of what is cut out of a photo, in pixels."""
Resize = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


AUTO, PACKAGED = "auto", "packaged"
"""What `weights` may be beside a path."""
TRAINING = (
    "data", "size", "latent_dim", "correlation", "epochs", "steps_per_epoch", "batch_size", "learning_rate",
    "cosine_decay", "adam_epsilon", "precision", "dropout", "reconstruction_weight", "synthetic_images",
)  # fmt: skip
"""Fields that the weights of a VAE depend on, but for the seed."""


UNITS = {
    "deviation": "standard deviations",
    "means": "half distances of the means",
    "unit": "units of latent space",
}
"""What a strength of 1 is, by `config.scale`."""


@dataclass(frozen=True)
class LatentArithConfig:
    """A VAE of faces, and directions of their attributes."""

    data: str = "synthetic"
    """synthetic (painted here), celeba:DIR (CelebA, CelebA-HQ or LFW, unpacked or not), folder:DIR (own pictures,
    with an attributes.csv or, as FFHQ, without), tfds, or tfds:NAME."""
    size: int = 128
    """Height and width of the images: 32 to 256, a multiple of 16."""
    resize: Resize = "bilinear"
    """Interpolation of images that are read; bilinear is antialiased, nearest is what Keras and the exercise do."""
    decoder: Decoder = "pillow"
    """Whose pixels a JPEG has; Keras decodes with Pillow, tf.data and TFDS with TensorFlow."""
    latent_dim: int = 200
    """Latent dimensions."""
    label: str = ""
    """The one attribute whose direction is found; without it, those of all."""
    skip_bad: bool = False
    """Leave out images that cannot be read or have no attributes, and rows without an image, and list them in the
    results, instead of stopping at the first."""
    weights: str = ""
    """Weights to use instead of training: a run, its weights.npz, a Keras or TensorFlow checkpoint, packaged (a VAE of
    painted faces that was trained for an hour), or auto: packaged, if what training depends on is as in the demo."""
    train: bool = False
    """Train, where weights is auto."""
    weights_md5: str = ""
    """MD5 that the file of weights must have."""
    synthetic_images: int = 20_000
    """Faces that are painted for training and directions, where data is synthetic."""
    correlation: float = 0.6
    """Correlation of the factors that go together in synthetic faces (smile and cheekbones, …)."""
    held_out_images: int = 1000
    """Images that neither network nor directions see; edits begin with them."""
    epochs: int = 500
    """Epochs of training."""
    steps_per_epoch: int = 100
    """Batches that count as an epoch; data go on from one epoch to the next."""
    batch_size: int = 32
    """Images a step."""
    learning_rate: float = 5e-4
    """Adam's learning rate."""
    cosine_decay: bool = False
    """Let the learning rate fall to 0 over the training, along a cosine."""
    adam_epsilon: float = 1e-7
    """Adam's epsilon, added before the bias correction as in Keras."""
    precision: Precision = "default"
    """Of products in training; default is the platform's own, and bf16 holds for activations too."""
    dropout: float = 0.25
    """Share of the activations that is dropped in training."""
    reconstruction_weight: float = 10_000.0
    """Weight of the cross-entropy, a mean over pixels, against the KL."""
    seed: int = 0
    """Seed of everything random."""
    epochs_per_checkpoint: int = 10
    """Epochs between checkpoints, each with the held-out loss."""
    shard_optimizer: bool = False
    """Divide Adam's moments over the devices, instead of replicating them."""
    resident: Literal["auto", "always", "never"] = "auto"
    """Keep all images on the device as uint8: auto does where they are painted, or take half of its free memory."""
    rule: Literal["all", "stderr", "classic"] = "all"
    """When the pass over the images stops: never, at a standard error, or as the original exercise does."""
    stderr_degrees: float = 2.0
    """Standard error of every direction at which the rule stderr stops."""
    estimator: Literal["balanced", "raw"] = "balanced"
    """Of the direction of the one edit that is kept (edit.npz, ans11): raw is the difference of means, as in the
    original exercise."""
    classifier_images: int = 4000
    """Images that train the attribute classifier of the scorecard, and nothing else."""
    classifier_epochs: int = 8
    """Passes of the classifier over them."""
    scored_faces: int = 200
    """Held-out faces that are edited along every direction and scored."""
    scale: Literal["deviation", "means", "unit"] = "deviation"
    """What a strength of 1 is in figures and scorecard: a standard deviation of the latents along the direction, half
    the distance between the means of those with and without the attribute, or a length of 1."""
    score_strength: int = 3
    """Strength at which leakage is measured; at most 4."""

    compared_images: int = 10_000
    """Training images that all estimators of directions are fitted to, to be compared."""
    compared_faces: int = 100
    """Held-out faces that are moved along the direction of every estimator."""
    bootstrap_resamples: int = 20
    """Resamples of the images for the standard error of every estimator's directions; 0 for none."""

    image: str = ""
    """A photo to edit with the model and the directions of the run that weights names, instead of all else."""
    crop: Crop | None = None
    """Where its face is: left and upper edge and width, in pixels; without it the face is found, with OpenCV."""
    edit: tuple[str, ...] = ()
    """How far to move it along directions, as Smiling=3 Eyeglasses=-2; strengths count as the run's scale does."""

    RENAMED: ClassVar = {"score_factor": "score_strength"}
    """Fields of older versions, for their runs."""

    def __post_init__(self) -> None:
        least = {"correlation": -1, "dropout": 0, "seed": 0, "size": 32, "bootstrap_resamples": 0}
        check_numbers(self, least, {"correlation": 1, "dropout": 0.99, "size": 256, "score_strength": 4})
        if self.size % 16:
            raise UserError(f"size is {self.size}, expected a multiple of 16 from 32 to 256")
        if self.train and self.weights not in ("", AUTO):
            raise UserError(f"train is given, and so is weights, {self.weights!r}; leave one of them out")
        if self.image and self.trains:
            raise UserError("image is given, but no weights; expected --weights RUN, a run whose directions it has")
        if self.image and not self.edit:
            raise UserError("image is given, but no edit; expected --edit ATTRIBUTE=STRENGTH, as Smiling=3")
        if not self.image and (self.edit or self.crop):
            raise UserError(f"{'edit' if self.edit else 'crop'} is given, but no image; expected --image PHOTO")
        parse_edit(self.edit)
        if self.weights_md5 and self.weights in ("", AUTO):
            raise UserError("weights_md5 is given, but no weights; expected --weights FILE beside it")

    @property
    def trains(self) -> bool:
        """Whether the VAE is trained, because nothing names weights for it."""
        differs = any(getattr(self, name) != getattr(DEMO, name) for name in TRAINING)
        return self.train or differs if self.weights == AUTO else not self.weights


def parse_edit(words: tuple[str, ...]) -> dict[str, float]:
    """Return strengths by attribute of words such as `Smiling=3`.

    Raises:
        UserError: A word has another form, the strength is no finite number, or an attribute is named twice.
    """
    strengths: dict[str, float] = {}
    for word in words:
        name, equals, value = word.partition("=")
        try:
            strength = float(value)
        except ValueError:
            strength = math.nan
        if not name or not equals or not math.isfinite(strength):
            raise UserError(f"edit is {word!r}, expected ATTRIBUTE=STRENGTH with a number, as Smiling=3")
        if name in strengths:
            raise UserError(f"edit names {name} twice; expected each attribute once")
        strengths[name] = strength
    if words and not any(strengths.values()):
        raise UserError("all strengths of edit are 0; expected another for at least one attribute")
    return strengths


ORIGINAL = LatentArithConfig(resize="nearest", estimator="raw")
DEMO = replace(
    ORIGINAL,
    resize="bilinear",
    estimator="balanced",
    weights=AUTO,
    synthetic_images=12_000,
    held_out_images=500,
    epochs=20,
    steps_per_epoch=50,
    batch_size=16,
    learning_rate=2e-3,
    cosine_decay=True,
    dropout=0.0,
    classifier_images=6000,
    classifier_epochs=4,
    scored_faces=60,
    compared_images=4000,
    compared_faces=20,
    bootstrap_resamples=5,
)
QUICK = replace(
    DEMO,
    weights="",
    synthetic_images=1000,
    held_out_images=100,
    epochs=2,
    steps_per_epoch=5,
    classifier_images=256,
    classifier_epochs=1,
    scored_faces=5,
    compared_images=300,
    compared_faces=2,
    bootstrap_resamples=1,
)
PRESETS = {"quick": QUICK, "demo": DEMO, "original": ORIGINAL}
