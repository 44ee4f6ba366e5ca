"""Autoencoders, latent arithmetic and adversarial attacks as pure functions in JAX and Flax.

Nothing is imported here: under `python -m latentlab` Python would look for it in the working directory first.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from latentlab.experiment import Run


def load(run_dir: "str | Path") -> "Run":
    """Open a run to use its results: `load("runs/0001").vae.decode(z)`.

    Raises:
        UserError: The directory holds no run, or its configuration cannot be read.
    """
    from pathlib import Path

    from latentlab.experiment import Run

    return Run(Path(run_dir))
