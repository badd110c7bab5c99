"""Converts LSGM's state dict of an NVAE to variables of `NVAE` and back, by one table."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.autoencoders.nvae import NVAE
from lsgm_jax.interop.tables import (
    CONV,
    DENSE,
    SAME,
    Entry,
    Layout,
    Path,
    State,
    Variables,
    to_state,
    to_variables,
)

# One norm per output channel, along the first axis of the kernel in PyTorch.
LOG_NORM = Layout(lambda w: w.reshape(-1), lambda w: w.reshape(-1, 1, 1, 1))
CONSTANT = Layout(lambda w: w.transpose(1, 2, 0), lambda w: w.transpose(2, 0, 1))
# Redundant buffers: a counter, and a copy of the kernel of convolutions without weight normalisation.
IGNORED = (".num_batches_tracked", ".weight_normalized")


def nvae_variables(state: State, module: NVAE, image_shape: tuple[int, int, int]) -> Variables:
    """Returns the variables {"params", "batch_stats"} of `module` from a state dict; dtypes do not change.

    Raises:
        ConversionError: if tensors are unknown, missing or of another shape than the module's.
    """
    tensors = {name: tensor for name, tensor in state.items() if not name.endswith(IGNORED)}
    return to_variables(list(table(module)), tensors, _shapes(module, image_shape))


def nvae_state(variables: Mapping[str, Any], module: NVAE) -> dict[str, np.ndarray]:
    """Returns the state dict: the inverse of `nvae_variables`, without the redundant buffers."""
    return to_state(list(table(module)), dict(variables))


def _shapes(module: NVAE, image_shape: tuple[int, int, int]) -> Variables:
    """Returns the shapes of the variables. Allocates no arrays."""
    x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    noises = tuple(jax.ShapeDtypeStruct((1, *s), jnp.float32) for s in module.latent_shapes(image_shape))
    return jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x, noises)


def table(module: NVAE) -> Iterator[Entry]:
    """Yields the entries of all tensors of the network."""
    yield Entry("prior_ftr0", ("params", "constant", "value"), CONSTANT)
    yield from _conv("stem", ("encoder", "stem"))
    yield from _encoder(module)
    yield from _decoder(module)
    yield from _conv("image_conditional.1", ("tail", "features"))


def _encoder(module: NVAE) -> Iterator[Entry]:
    cell = functools.partial(_cell, expansion=0, use_se=module.use_se)
    for index in range(module.pre_blocks * module.pre_cells):
        block, place = divmod(index, module.pre_cells)
        resampling = "down" if place == module.pre_cells - 1 else "none"
        yield from cell(f"pre_process.{index}", ("encoder", f"block_{block}_{place}"), resampling)
    tower = _counter("enc_tower")
    # The encoder visits the groups in the reverse order of the decoder.
    decoder_index = module.group_count
    for scale in range(module.scales):
        if scale:
            yield from cell(next(tower), ("encoder", f"down_{scale}"), "down")
            if module.input_skip:
                key, path = f"progressive_input_cells.{scale - 1}.conv", ("encoder", f"pyramid_{scale}")
                yield from _norm(f"{key}.bn_act", (*path, "norm"))
                yield from _conv(f"{key}.conv_0", (*path, "conv"))
        for group in range(module.groups_per_scale):
            for place in range(module.encoder_cells):
                yield from cell(next(tower), ("encoder", f"cell_{scale}_{group}_{place}"))
            decoder_index -= 1
            if decoder_index:
                yield from _conv(f"{next(tower)}.conv", (f"group_{decoder_index}", "from_state"))


def _decoder(module: NVAE) -> Iterator[Entry]:
    in_tower, in_tail = module.expansions()
    cell = functools.partial(_cell, use_se=module.use_se)
    tower = _counter("dec_tower")
    for index in range(module.group_count):
        name = f"group_{index}"
        scale, place = divmod(index, module.groups_per_scale)
        if scale and not place:
            yield from cell(next(tower), (f"up_{scale - 1}",), "up", expansion=in_tower)
        yield from _conv(f"enc_sampler.{index}.1", (name, "posterior"))
        yield from _conv(f"eps_conv.{index}", (name, "from_latent"))
        yield from _conv(f"{next(tower)}.conv", (name, "merge"))
        for place in range(module.decoder_cells):
            yield from cell(next(tower), (name, f"cell_{place}"), expansion=in_tower)
        for pair in range(module.flows):
            yield from _flow(f"nf_cells.{index * module.flows + pair}", (name, f"flow_{pair}"))
    for index in range(module.post_blocks * module.post_cells):
        block, place = divmod(index, module.post_cells)
        path, resampling = ("tail", f"block_{block}_{place}"), "none" if place else "up"
        yield from cell(f"post_process.{index}", path, resampling, expansion=in_tail)


def _counter(prefix: str) -> Iterator[str]:
    index = 0
    while True:
        yield f"{prefix}.{index}"
        index += 1


def _cell(key: str, path: Path, resampling: str = "none", *, expansion: int, use_se: bool) -> Iterator[Entry]:
    branch = (*path, "branch")
    if expansion:
        yield from _bottleneck(f"{key}._ops.0.conv", branch, first=int(resampling == "up"))
    else:
        for index in range(2):
            yield from _norm(f"{key}._ops.{index}.bn_act", (*branch, f"norm_{index}"))
            yield from _conv(f"{key}._ops.{index}.conv_0", (*branch, f"conv_{index}"))
    if use_se:
        yield from _dense(f"{key}.se.se.0", (*path, "se", "squeeze"))
        yield from _dense(f"{key}.se.se.2", (*path, "se", "excite"))
    if resampling == "down":
        for index in range(4):
            yield from _conv(f"{key}.skip.conv_{index + 1}", (*path, "skip", f"corner_{index}"))
    elif resampling == "up":
        yield from _conv(f"{key}.skip.1", (*path, "skip", "conv"), bias=False)


def _bottleneck(key: str, path: Path, first: int) -> Iterator[Entry]:
    """Yields the entries of an inverted residual; `first` is 1 if upsampling precedes the first norm, else 0."""
    plain = functools.partial(_conv, bias=False, norm=False)
    yield from _norm(f"{key}.{first}.bn", (*path, "norm_in"))
    yield from plain(f"{key}.{first + 1}.conv.0", (*path, "expand"))
    yield from _norm(f"{key}.{first + 1}.conv.1", (*path, "norm_0"))
    yield from plain(f"{key}.{first + 2}.conv.0", (*path, "depthwise"))
    yield from _norm(f"{key}.{first + 2}.conv.1", (*path, "norm_1"))
    yield from plain(f"{key}.{first + 3}", (*path, "project"))
    yield from _norm(f"{key}.{first + 4}.bn", (*path, "norm_out"))


def _flow(key: str, path: Path) -> Iterator[Entry]:
    for cell, name in (("cell1", "forward"), ("cell2", "mirrored")):
        yield from _conv(f"{key}.{cell}.conv.convz.0", (*path, name, "first"), bias=False)
        yield from _conv(f"{key}.{cell}.conv.convz.2", (*path, name, "depthwise"), bias=False)
        yield from _conv(f"{key}.{cell}.mu.conv_0", (*path, name, "last"))


def _conv(key: str, path: Path, *, bias: bool = True, norm: bool = True) -> Iterator[Entry]:
    yield Entry(f"{key}.weight", ("params", *path, "kernel"), CONV)
    if bias:
        yield Entry(f"{key}.bias", ("params", *path, "bias"), SAME)
    if norm:
        yield Entry(f"{key}.log_weight_norm", ("params", *path, "log_norm"), LOG_NORM)


def _norm(key: str, path: Path) -> Iterable[Entry]:
    yield Entry(f"{key}.weight", ("params", *path, "scale"), SAME)
    yield Entry(f"{key}.bias", ("params", *path, "bias"), SAME)
    yield Entry(f"{key}.running_mean", ("batch_stats", *path, "mean"), SAME)
    yield Entry(f"{key}.running_var", ("batch_stats", *path, "var"), SAME)


def _dense(key: str, path: Path) -> Iterable[Entry]:
    yield Entry(f"{key}.weight", ("params", *path, "kernel"), DENSE)
    yield Entry(f"{key}.bias", ("params", *path, "bias"), SAME)
