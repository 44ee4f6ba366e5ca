"""Adam as Keras computes it."""

import jax.numpy as jnp
import optax

from latentlab.kernels.materialize import materialize


def adam(learning_rate: optax.ScalarOrSchedule, epsilon: float) -> optax.GradientTransformation:
    """Return Adam in the form that Keras uses, m / (√v + ε) · learning_rate · √(1 - β₂ᵗ) / (1 - β₁ᵗ).

    The epsilon is added before the bias correction ("ε̂" in Kingma & Ba 2015, section 2), so it weighs 30 times more in
    the first step than Optax's own, which is added after it.
    """
    decay = 0.999

    def update(
        gradients: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        steps = state.count.astype(jnp.float32) + 1
        corrected = epsilon / jnp.sqrt(1 - jnp.asarray(decay) ** steps)
        return optax.scale_by_adam(b2=decay, eps=corrected).update(materialize(gradients), state, params)

    scale = optax.GradientTransformation(optax.scale_by_adam(b2=decay).init, update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))
