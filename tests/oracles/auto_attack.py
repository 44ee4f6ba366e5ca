"""What Auto-Attack's own code makes of two networks of digits, for `tests/unit/test_auto_attack.py`.

    pip install -e . torch==2.13.0 pyautoattack==0.2.0
    python tests/oracles/auto_attack.py

reads `tests/data/auto_attack/networks.npz`, whose networks `adversarial.digits` trained on the packaged digits (one on
digits, one on digits attacked at ε = 0.3), and writes `expected.npz` beside it. Half an hour on two
CPU cores.
"""

import time
from pathlib import Path

import numpy as np
import torch
from pyautoattack import AutoAttack
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_projections import projection_l2, projection_linf
from pyautoattack.square import SquareAttack
from torch import nn

from latentlab.labeled_images import open_dataset

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "auto_attack"
EPSILONS = {"linf": (0.1, 0.2, 0.3), "l2": (1.5,)}
THEIRS = {"linf": "Linf", "l2": "L2"}
MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
STEPS = 10
WATCHED = 32
SEEDS = 3


def network(name):
    """A network with the weights of one of ours."""
    weights = {
        key.removeprefix(f"{name}/"): value.astype(np.float32)
        for key, value in np.load(DATA / "networks.npz").items()
        if key.startswith(f"{name}/")
    }
    first, second = (weights[f"Conv_{index}/kernel"] for index in range(2))
    hidden, last = (weights[f"Dense_{index}/kernel"] for index in range(2))
    channels, units = second.shape[3], hidden.shape[1]
    model = nn.Sequential(
        nn.Conv2d(1, first.shape[3], 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(first.shape[3], channels, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(49 * channels, units),
        nn.ReLU(),
        nn.Linear(units, last.shape[1]),
    )
    hidden = hidden.reshape(7, 7, channels, units).transpose(3, 2, 0, 1).reshape(units, -1)
    kernels = (first.transpose(3, 2, 0, 1), second.transpose(3, 2, 0, 1), hidden, last.T)
    names = ("Conv_0", "Conv_1", "Dense_0", "Dense_1")
    with torch.no_grad():
        for layer, kernel, name_of in zip((model[0], model[2], model[5], model[7]), kernels, names, strict=True):
            layer.weight.copy_(torch.tensor(kernel.copy()))
            layer.bias.copy_(torch.tensor(weights[f"{name_of}/bias"]))
    return model.eval()


def digits(count):
    """The first held-out digits of the packaged ones."""
    test = open_dataset("packaged").test
    images = torch.tensor(test.images[:count].transpose(0, 3, 1, 2)).float() / 255
    return images, torch.tensor(test.labels[:count]).long()


class Watched(nn.Module):
    """A network that keeps what it is called with."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, []

    def forward(self, images):
        self.seen.append(images.detach().clone().numpy().transpose(0, 2, 3, 1))
        return self.inner(images)


def watch_apgd(model, images, labels, start, loss, norm, epsilon):
    """The start and the first steps of a climb of 100."""
    watched = Watched(model)
    if loss == "dlr-targeted":
        attack = APGDAttack_targeted(watched, n_iter=100, norm=THEIRS[norm], eps=epsilon, seed=0, device="cpu")
        attack.y_target = model(images).sort(dim=1)[1][:, -2]
    else:
        attack = APGDAttack(watched, n_iter=100, norm=THEIRS[norm], eps=epsilon, seed=0, loss=loss, device="cpu")
    attack.init_hyperparam(images)
    attack.attack_single_run(images, labels, x_init=start)
    return np.stack(watched.seen[: STEPS + 1])


def robust_over_seeds(model, images, labels, norm, epsilon, member):
    """Robust accuracy of APGD from `SEEDS` random starts."""
    found = []
    for seed in range(SEEDS):
        attack = AutoAttack(model, norm=THEIRS[norm], eps=epsilon, version="custom", attacks=[member], seed=seed)
        attack.verbose, attack.apgd.n_restarts = False, 1
        moved, _ = attack.run_standard_evaluation(images, labels, batch_size=500)
        found.append((model(moved).argmax(1) == labels).float().mean().item())
    return np.asarray(found)


def main():
    torch.set_num_threads(2)
    found = {}
    images, labels = digits(500)
    draw = np.random.default_rng(0)

    some, truth = images[:WATCHED], labels[:WATCHED]
    noise = torch.tensor(draw.uniform(-1, 1, some.shape)).float()
    starts = {"linf": some + 0.2 * noise, "l2": some + 1.5 * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)}
    for name in ("standard", "pgd"):
        model = network(name)
        logits = model(some)
        targeted = APGDAttack_targeted(model, eps=0.1, device="cpu")
        targeted.y_target = logits.sort(dim=1)[1][:, -2]
        found[f"{name}/logits"] = logits.detach().numpy()
        found[f"{name}/dlr"] = APGDAttack(model, eps=0.1).dlr_loss(logits, truth).detach().numpy()
        found[f"{name}/dlr-targeted"] = targeted.dlr_loss_targeted(logits, truth).detach().numpy()
        for norm, epsilon in (("linf", 0.2), ("l2", 1.5)):
            start = starts[norm].clamp(0, 1)
            found[f"start/{norm}"] = start.numpy().transpose(0, 2, 3, 1)
            for loss in ("ce", "dlr", "dlr-targeted"):
                watched = watch_apgd(model, some[:8], truth[:8], start[:8], loss, norm, epsilon)
                found[f"{name}/{norm}/{loss}"] = watched[:: STEPS // 2]  # start, fifth and tenth

    points, normals = draw.uniform(0, 1, (40, 30)), draw.normal(0, 1, (40, 30))
    normals[:, :3] = 0
    # All but the last ten are within reach.
    offsets = (points * normals).sum(1) + draw.normal(0, 1, 40) * np.where(np.arange(40) < 30, 2, 40)
    found |= {"plane/points": points, "plane/normals": normals, "plane/offsets": offsets}
    arguments = [torch.tensor(part).float() for part in (points, normals, offsets)]
    found["plane/linf"] = projection_linf(*arguments).numpy()
    found["plane/l2"] = projection_l2(*arguments).numpy()

    square = SquareAttack(network("pgd"), norm="L2", eps=1.0, device="cpu", resc_schedule=False)
    found["square/shares"] = np.asarray([square.p_selection(query) for query in range(5000)])
    for side in (3, 5, 6, 9):
        half = side // 2
        pattern = torch.zeros(side, side)
        pattern[:half], pattern[half:] = square.eta_rectangles(half, side), -square.eta_rectangles(side - half, side)
        found[f"square/pattern{side}"] = (pattern / pattern.norm()).numpy()

    for name in ("standard", "pgd"):
        model = network(name)
        for norm, epsilons in EPSILONS.items():
            for epsilon in epsilons:
                for member in MEMBERS[:2]:
                    shares = robust_over_seeds(model, images, labels, norm, epsilon, member)
                    found[f"seeds/{name}/{norm}/{epsilon}/{member}"] = shares
                for member in (*MEMBERS, "standard"):
                    attacks = ["apgd-ce", "apgd-t", "fab-t", "square"] if member == "standard" else [member]
                    attack = AutoAttack(
                        model, norm=THEIRS[norm], eps=epsilon, version="custom", attacks=attacks, seed=0
                    )
                    attack.verbose, start = False, time.time()
                    attack.apgd.n_restarts = attack.fab.n_restarts = 1
                    moved, _ = attack.run_standard_evaluation(images, labels, batch_size=500)
                    robust = (model(moved).argmax(1) == labels).numpy()
                    found[f"robust/{name}/{norm}/{epsilon}/{member}"] = robust
                    print(name, norm, epsilon, member, robust.mean(), round(time.time() - start, 1), flush=True)
        np.savez_compressed(DATA / "expected.npz", **found)


if __name__ == "__main__":
    main()
