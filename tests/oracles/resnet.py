"""What torchvision makes of ResNets and photos, and files that PyTorch saves, for `tests/unit/test_resnet.py`.

    pip install -e . torch==2.13.0 torchvision==0.28.0 safetensors
    python -m tests.oracles.resnet

writes `tests/data/torch`. The weights of the ResNets are drawn by NumPy here and in the test, so that logits alone need
to be kept.
"""

import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

DATA = Path(__file__).parents[1] / "data" / "torch"
LAYERS = (18, 50)
CLASSES = 7
SIZE = 96
SHORTER, CROP = 64, 56
PHOTOS = ((90, 140), (131, 77), (64, 64))


def draw_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw the weights of a network by their names and shapes in PyTorch."""
    weights = {}
    for index, name in enumerate(sorted(shapes)):
        draw, shape = np.random.default_rng(index), shapes[name]
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            drawn = draw.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            drawn = 0.1 * draw.normal(size=shape)
        else:
            drawn = draw.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        weights[name] = drawn.astype(np.float32)
    return weights


def draw_images() -> np.ndarray:
    """Draw two images in [0, 1]."""
    return np.random.default_rng(7).uniform(0, 1, (2, SIZE, SIZE, 3)).astype(np.float32)


def draw_photo(height: int, width: int) -> np.ndarray:
    """Draw a photo with coarse and fine structure."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9 + columns / 5), np.cos(rows / 2.1), np.sin(rows * columns / 300)]
    return np.round(127.5 + 127 * np.stack(waves, axis=2)).astype(np.uint8)


def main() -> None:
    """Write the files."""
    import torch

    # What torchvision registers there fails where its compiled part does not fit to this build of torch.
    sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")
    import torchvision
    from PIL import Image
    from safetensors.torch import save_file
    from torchvision import transforms

    DATA.mkdir(exist_ok=True)
    found = {}
    mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    for layers in LAYERS:
        network = getattr(torchvision.models, f"resnet{layers}")(num_classes=CLASSES).eval()
        shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if value.is_floating_point()}
        weights = {name: torch.tensor(value) for name, value in draw_weights(shapes).items()}
        network.load_state_dict(weights, strict=False)
        images = torch.tensor(draw_images().transpose(0, 3, 1, 2)).requires_grad_()
        logits = network(transforms.functional.normalize(images, mean, std))
        logits[:, 2].sum().backward()
        found[f"logits/{layers}"] = logits.detach().numpy()
        found[f"gradient/{layers}"] = images.grad.numpy().transpose(0, 2, 3, 1)[:, ::7, ::7]
        if len(sys.argv) > 1:  # the whole file, to be tried by hand
            torch.save(network.state_dict(), Path(sys.argv[1]) / f"resnet{layers}.pth")
    crop = transforms.Compose([transforms.Resize(SHORTER), transforms.CenterCrop(CROP)])
    for height, width in PHOTOS:
        found[f"photo/{height}/{width}"] = np.asarray(crop(Image.fromarray(draw_photo(height, width))))
    np.savez_compressed(DATA / "expected.npz", **found)

    torch.manual_seed(0)
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    tensors = OrderedDict(
        weight=whole,
        transposed=whole.T,
        part=whole[1:3, ::2],
        scalar=torch.tensor(3.5),
        half=whole[:2].half(),
        brain=whole[:2].bfloat16(),
        double=whole[:2].double(),
        bn_num_batches_tracked=torch.tensor(7),
    )
    np.savez(DATA / "tensors.npz", **{name: value.double().numpy() for name, value in tensors.items()})
    torch.save(tensors, DATA / "plain.pth")
    torch.save(tensors, DATA / "legacy.pth", _use_new_zipfile_serialization=False)
    within = {f"_orig_mod.module.{name}": value for name, value in tensors.items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(whole.clone())])
    optimizer.param_groups[0]["params"][0].sum().backward()
    optimizer.step()
    around = {"epoch": 3, "best_acc1": torch.tensor(0.5), "arguments": Namespace(lr=0.1), "size": whole.shape}
    wrapped = around | {"optimizer": optimizer.state_dict(), "state_dict": within}
    torch.save(wrapped, DATA / "wrapped.pth")
    torch.save(wrapped, DATA / "wrapped_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({name: torch.nn.Parameter(value) for name, value in list(tensors.items())[:3]}, DATA / "parameters.pth")
    torch.save(torch.nn.Linear(2, 3), DATA / "module.pth")
    save_file({name: value.contiguous() for name, value in tensors.items()}, DATA / "plain.safetensors")


if __name__ == "__main__":
    main()
