"""SGM: a score-based generative model of the data themselves, without an autoencoder.

With `CLD` as the process it is CLD-SGM (Dockhorn, Vahdat, Kreis 2022); with `VP`, its baseline in the same trainer.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Condition, Key, Latents, Params, Scalar, draw_array
from lsgm_jax.models.protocol import Model
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch, Posterior


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGM(Model):
    """A score model of the data. The parameters are those of the `ScoreModel`.

    Attributes:
        prior: of the data.
        bin_width: distance of the grey levels in [-1, 1]. Likelihood evaluation dequantises each value uniformly over
            its bin, and the bound is then on the probability of the grey levels. 0 for continuous data.
    """

    prior: ScoreModel
    bin_width: float = 0.0
    stages = ("score",)
    encoder_draws = decoder_draws = False

    @property
    def autoencoder(self) -> None:
        """None: the prior models the data themselves."""
        return None

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.prior.shape

    @property
    def pixel_values(self) -> int:
        """The number of discrete values per sample; 0 if the data are continuous."""
        return math.prod(self.data_shape) if self.bin_width else 0

    def init(self, key: Key) -> Params:
        """Returns fresh parameters."""
        return self.prior.init(key)

    def loss(self, params: Params, batch: Batch, key: Key) -> tuple[Scalar, Aux]:
        """Computes the score matching loss, mean over the batch, nats; the data are not dequantised."""
        return self.prior.loss(params, batch, key, self._bin_entropy)

    def posterior(self, params: Params, x: Latents, key: Key) -> Posterior:
        """Draws dequantised data, uniform over the bin of each value; the data themselves if they are continuous."""
        zero = jnp.zeros(len(x), x.dtype)
        noise = draw_array(jax.random.uniform, key, x.shape, x.dtype) - 0.5
        return Posterior(
            x + self.bin_width * noise, zero, zero + self._bin_entropy, zero, zero - self._bin_entropy
        )

    def encode_data(self, params: Params, batch: Batch, key: Key) -> Batch:
        """Returns the data."""
        return batch

    def encode_known(self, params: Params, x: Latents, key: Key) -> Latents:
        """Returns the data."""
        return x

    def encode_condition(self, params: Params, condition: Condition) -> Condition:
        """Returns the condition."""
        return condition

    def decode_latents(self, params: Params, z_0: Latents, key: Key) -> Latents:
        """Returns the data."""
        return z_0

    @property
    def _bin_entropy(self) -> float:
        """The entropy of the dequantisation noise, nats per sample."""
        return math.prod(self.data_shape) * math.log(self.bin_width) if self.bin_width else 0.0
