"""Where PyTorch computes."""

import torch


def fastest_device() -> torch.device:
    """Return the GPU if there is one, with the precision of matrix products that JAX has there; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda")
