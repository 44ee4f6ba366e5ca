"""What foolbox and torchattacks make of the two networks of digits, for `tests/unit/test_nearest.py`.

    pip install -e . torch==2.13.0 pyautoattack==0.2.0 foolbox==3.3.4 torchattacks==3.5.1
    python -m tests.oracles.other_attacks

writes `tests/data/auto_attack/other_attacks.npz`: distances that the minimizing attacks of foolbox find, and images of
torchattacks' DIFGSM and TIFGSM, whose networks see the mean of three channels. A few minutes on two CPU cores.
"""

import foolbox
import numpy as np
import torch
import torchattacks
from torch import nn
from torch.nn import functional

from tests.oracles.auto_attack import DATA, digits, network

COUNT = 100
MANY, FEW = 1000, 200
SEEN = 16
PLACES = ((25, 0, 2), (26, 1, 0), (27, 0, 0), (14, 5, 9))
"""Sides of shrunk images, and where they lie."""


def distances(name):
    """Distances of the images found in the norms of the attacks, infinite where they are still recognised."""
    model = network(name)
    images, labels = digits(COUNT)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    attacks = {
        "deepfool/l2": (foolbox.attacks.L2DeepFoolAttack(), 2),
        "deepfool/linf": (foolbox.attacks.LinfDeepFoolAttack(), np.inf),
        "fmn/l2": (foolbox.attacks.L2FMNAttack(), 2),
        "fmn/linf": (foolbox.attacks.LInfFMNAttack(), np.inf),
        f"cw/{MANY}": (foolbox.attacks.L2CarliniWagnerAttack(steps=MANY), 2),
        f"cw/{FEW}": (foolbox.attacks.L2CarliniWagnerAttack(steps=FEW), 2),
    }
    found = {}
    for attack, (run, norm) in attacks.items():
        moved = run.run(wrapped, images, foolbox.criteria.Misclassification(labels))
        far = (moved - images).flatten(1).norm(p=norm, dim=1)
        found[f"{name}/{attack}"] = torch.where(model(moved).argmax(1) == labels, torch.inf, far).detach().numpy()
    return found


class MeanOfChannels(nn.Module):
    """A network of one channel that is shown three."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images.mean(dim=1, keepdim=True))


def transfer():
    """Shrunk images, and what the attacks for transfer make of images without anything that is drawn.

    In float64, for in float32 the gradient of the cross-entropy is rounding where a network is sure.
    """
    images, labels = digits(SEEN)
    images = (images.repeat(1, 3, 1, 1) * torch.tensor([0.9, 1.0, 0.8]).view(1, 3, 1, 1)).double()
    model = MeanOfChannels(network("standard")).double()
    how = {"eps": 0.1, "alpha": 0.03, "steps": 5, "decay": 0.7}
    attacks = {
        # Sides from 27 up to 28, which is left out, and places from 0 up to 1: there is one of each.
        "di": torchattacks.DIFGSM(model, **how, resize_rate=27.5 / 28, diversity_prob=1.0),
        "ti": torchattacks.TIFGSM(model, **how, diversity_prob=0.0, len_kernel=15),
        "ti-7": torchattacks.TIFGSM(model, **how, diversity_prob=0.0, len_kernel=7),
    }
    found = {"images": images.numpy().transpose(0, 2, 3, 1)}
    for name in ("ti", "ti-7"):
        attacks[name].stacked_kernel = attacks[name].stacked_kernel.double()
    for name, attack in attacks.items():
        found[name] = attack(images, labels).detach().numpy().transpose(0, 2, 3, 1)
    for side, row, column in PLACES:
        small = functional.interpolate(images[:2], size=[side, side], mode="bilinear", align_corners=False)
        pads = [column, 28 - side - column, row, 28 - side - row]
        found[f"shrunk/{side}/{row}/{column}"] = functional.pad(small, pads).numpy().transpose(0, 2, 3, 1)
    return found


def main():
    """Write the file."""
    torch.set_num_threads(1)
    found = transfer()
    for name in ("standard", "pgd"):
        found |= distances(name)
    np.savez_compressed(DATA / "other_attacks.npz", **{name: part.astype(np.float32) for name, part in found.items()})


if __name__ == "__main__":
    main()
