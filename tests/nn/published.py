"""The score networks of the papers: settings, parameter counts and operation counts of the original code."""

import math
from typing import NamedTuple

import jax.extend

from lsgm_jax.interop.ncsnpp import lsgm_channel_mult
from lsgm_jax.nn.convolution import OUTPUT
from lsgm_jax.nn.ncsnpp import NCSNpp


class Published(NamedTuple):
    """A published network.

    Attributes:
        module: the network.
        shape: height, width and channels of its input.
        parameters: number of trainable parameters, with the mixing logits.
        gflop: billions of operations per image, two per multiply-add.
        mixing_logits: one per channel in LSGM; they belong to the model, not to `module`.
    """

    module: NCSNpp
    shape: tuple[int, int, int]
    parameters: int
    gflop: float
    mixing_logits: int = 0


def lsgm(dataset, channels, scales, shape, parameters, gflop, fir=True):
    module = NCSNpp(
        out_channels=shape[-1],
        channels=channels,
        channel_mult=lsgm_channel_mult(dataset, scales),
        blocks=8,
        attention=(16,),
        dropout=0.2,
        fir=(1.0, 3.0, 3.0, 1.0) if fir else None,
        embedding_dim=128,
    )
    return Published(module, shape, parameters, gflop, mixing_logits=shape[-1])


def cld(side, parameters, gflop, **settings):
    module = NCSNpp(out_channels=3, channels=128, attention=(16,), dropout=0.1, **settings)
    return Published(module, (side, side, 6), parameters, gflop)


FACES = {"channel_mult": (1, 1, 2, 2, 2, 2, 2), "fir": None, "embedding_scale": 1.0}
NETWORKS = {
    "lsgm_mnist": lsgm("mnist", 256, 2, (8, 8, 40), 63_774_544, 4.56, fir=False),
    "lsgm_omniglot": lsgm("omniglot", 256, 3, (16, 16, 60), 97_804_152, 20.89, fir=False),
    "lsgm_cifar10": lsgm("cifar10", 512, 3, (16, 16, 180), 375_561_064, 82.61),
    "lsgm_celeba_quantitative": lsgm("celeba_256", 256, 4, (32, 32, 160), 408_367_680, 148.7),
    "lsgm_celeba_qualitative": lsgm("celeba_256", 256, 5, (64, 64, 200), 440_116_368, 385.0),
    "lsgm_celeba_stage_3": lsgm("celeba_256", 320, 5, (64, 64, 200), 680_827_984, 598.8),
    "cld_cifar10": cld(
        *(32, 107_593_859, 37.2),
        channel_mult=(1, 2, 2, 2),
        blocks=8,
        embedding="fourier",
        embedding_scale=16.0,
        input_pyramid="residual",
    ),
    "cld_celeba_paper": cld(256, 65_466_371, 532.0, blocks=2, **FACES),
    "cld_celeba_post_paper": cld(256, 103_073_795, 852.0, blocks=4, **FACES),
}


def operations(jaxpr):
    """Counts two operations per multiply-add of convolutions and matrix products, with those on padding.

    This is the convention of the published counts. The cost analysis of XLA does not count padding, a sixth of the
    operations of a convolution at height and width 8.
    """
    total = 0
    for equation in jaxpr.eqns:
        inputs, outputs = (
            [variable.aval.shape for variable in side] for side in (equation.invars, equation.outvars)
        )
        if equation.primitive.name == "conv_general_dilated" or equation.primitive is OUTPUT:
            total += 2 * math.prod(outputs[0]) * math.prod(inputs[1][:-1])
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * math.prod(outputs[0]) * math.prod(inputs[0][axis] for axis in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(operations(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return total
