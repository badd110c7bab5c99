"""Conversion of official checkpoints: the state dicts of the fixtures, written as .pt files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.autoencoders.backbones import Hierarchical
from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.checkpoint_file import read_checkpoint
from lsgm_jax.interop.ema import FIXED
from lsgm_jax.interop.ncsnpp import ncsnpp_variables
from lsgm_jax.interop.nvae import nvae_variables
from lsgm_jax.interop.official import find_parts, mixing_logits, score_params, vae_params
from lsgm_jax.nn.network import Network, StatefulNetwork
from tests.interop.write_torch import Call, Global, write_legacy, write_zip
from tests.parity import scores
from tests.parity.cld import channels_first, channels_last
from tests.parity.fixture import FOLDER, load
from tests.parity.nvae import check_mode, nvae_module
from tests.parity.scores import cld_module, lsgm_net, lsgm_shape

NVAES = sorted(path.stem for path in FOLDER.glob("lsgm_nvae_*.json"))
NETS = sorted(path.stem for path in FOLDER.glob("lsgm_ncsnpp_*.json"))


def official_state(name):
    fixture = load(name)
    state = {key.removeprefix("param/"): a for key, a in fixture.arrays.items() if key.startswith("param/")}
    return fixture, state


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("name", NVAES)
def test_an_nvae_is_read_from_its_file(tmp_path, name, write):
    """The file gives the same variables as the arrays, whose outputs test_oracles.py checks."""
    fixture, state = official_state(name)
    write(tmp_path / "vae.pt", {"epoch": 3, "vae_state_dict": state})
    read = read_checkpoint(tmp_path / "vae.pt")["vae_state_dict"]
    height, width, channels = np.moveaxis(fixture.arrays["in/x"], 1, -1).shape[1:]
    module = nvae_module(fixture.spec["hyper_parameters"], state)
    convert = lambda state: nvae_variables(state, module, (height, width, channels))
    jax.tree.map(np.testing.assert_array_equal, convert(read), convert(state))


@pytest.mark.parametrize("name", NETS)
def test_a_score_network_is_read_from_its_file(tmp_path, name):
    fixture, state = official_state(name)
    write_zip(tmp_path / "dae.pt", state)
    read, h = read_checkpoint(tmp_path / "dae.pt"), fixture.spec["hyper_parameters"]
    module, shape = lsgm_net(h), lsgm_shape(h)
    convert = lambda state: ncsnpp_variables(state, module, shape)
    jax.tree.map(np.testing.assert_array_equal, convert(read), convert(state))


def test_the_file_of_another_model_is_refused(tmp_path):
    """An NVAE instead of a score network gives one line that names the tensors."""
    write_zip(tmp_path / "vae.pt", official_state(NVAES[0])[1])
    h = load(NETS[0]).spec["hyper_parameters"]
    with pytest.raises(ConversionError, match="tensors missing: all_modules") as error:
        ncsnpp_variables(read_checkpoint(tmp_path / "vae.pt"), lsgm_net(h), (16, 16, h["num_input_channels"]))
    assert "\n" not in str(error.value)


# Full checkpoints. Their keys are arbitrary: networks are found by their tensors.

VAE = "lsgm_nvae_d_logistic"
MIXED = "lsgm_ncsnpp_c_nofir_mixed"
INACTIVE = "lsgm_ncsnpp_d_channel_mult_inactive"
FOURIER = "cld_ncsnpp_a_fourier_residual_input"
MLP = "cld_mlp"


def changed(state):
    """Returns other values, as of an EMA; untrained tensors stay."""
    return {k: v if FIXED.fullmatch(k) else 0.5 * v + 1 for k, v in state.items()}


def moved(state):
    return [v for k, v in state.items() if not FIXED.fullmatch(k)]


def wrapped(state):
    return {f"module.{k}": v for k, v in state.items()}


def optimiser(tensors, groups=1):
    """Returns its state with EMAs; None for a tensor without gradients. Only `params` has the order."""
    names = [700 - index for index, _ in enumerate(tensors)]
    named = [(name, tensor) for name, tensor in zip(names, tensors, strict=True) if tensor is not None]
    state = {name: {"step": 5, "exp_avg": 0 * tensor, "ema": tensor} for name, tensor in reversed(named)}
    split = [group.tolist() for group in np.array_split(names, groups)]
    return {"state": state, "param_groups": [{"lr": 0.1, "params": group} for group in split]}


def listed(tensors):
    return {"decay": 0.9999, "num_updates": 5, "shadow_params": list(tensors)}


def namespace(**values):
    return Call(Global("argparse", "Namespace"), state=values)


OTHER = optimiser([np.ones(2), np.ones(3)])
LAYOUTS = {
    "optimiser": lambda raw, average: {"opts": [OTHER, optimiser(moved(average), groups=2)], "net": raw},
    "optimiser with untrained tensors": lambda raw, average: {
        "net": wrapped(raw),
        "opt": optimiser([None if FIXED.fullmatch(k) else v for k, v in average.items()]),
        "other_opt": {"state": {0: {"exp_avg": np.ones(2)}}, "param_groups": [{"params": [0]}]},
    },
    "list": lambda raw, average: {"model": wrapped(raw), "average": listed(moved(average))},
    "list with untrained tensors": lambda raw, average: {"model": raw, "ema": listed(average.values())},
    "names": lambda raw, average: {"score": raw, "score_ema": wrapped(average)},
    "names without untrained tensors": lambda raw, average: {
        "EMA": {"net": {k: v for k, v in average.items() if not FIXED.fullmatch(k)}},
        "net": wrapped(raw),
    },
    "prefixes": lambda raw, average: {
        f"{place}.{k}": v for place, state in (("net", raw), ("net_ema", average)) for k, v in state.items()
    },
}


def through_file(path, tree):
    write_zip(path / "checkpoint.pt", tree)
    return find_parts(read_checkpoint(path / "checkpoint.pt"))


def assert_state(state, expected):
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(state[name], tensor, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [MIXED, FOURIER, MLP])
def test_a_score_network_and_its_ema_are_found(tmp_path, name, layout):
    state = official_state(name)[1]
    average = changed(state)
    parts = through_file(tmp_path, LAYOUTS[layout](state, average))
    assert_state(parts.score_net, state)
    assert_state(parts.score_net_average, average)
    assert parts.vae is None


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        wrapped,
        lambda state: {"ema": state},  # a single network, whatever its name
        lambda state: {"last": state, "best": state},  # the same object
        lambda state: [{"net": state, "opt": {"state": {}, "param_groups": [{"params": [0]}]}}],
    ],
)
def test_a_network_without_an_ema_is_found(tmp_path, layout):
    state = official_state(MLP)[1]
    parts = through_file(tmp_path, layout(state))
    assert_state(parts.score_net, state)
    assert (parts.score_net_average, parts.arguments, parts.counters) == (None, None, {})


def test_arguments_and_counters_are_found(tmp_path):
    state = official_state(MLP)[1]
    inner = {"config": {"lr": 1}, "args": namespace(lr=2), "epoch": 5}
    other = {"step": np.array(7), "global_step": 3, "epoch": "last", "inner": inner}
    parts = through_file(tmp_path, {**other, "net": state})
    assert (parts.arguments, parts.counters) == ({"lr": 1}, {"global_step": 3, "step": 7})
    parts = through_file(tmp_path, {**other, "net": state, "options": namespace(lr=3)})
    assert parts.arguments == {"lr": 3}


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def double(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


def nvae_backbone(fixture, state):
    height, width, channels = channels_last(fixture.arrays["in/x"]).shape[1:]
    module = nvae_module(fixture.spec["hyper_parameters"], state)
    return Hierarchical(image_shape=(height, width, channels), net=module)


@pytest.mark.usefixtures("x64")
def test_a_second_stage_has_the_outputs_of_the_original(tmp_path):
    """Both the NVAE and the EMA of the score network."""
    (vae_fixture, vae), (fixture, average) = official_state(VAE), official_state(MIXED)
    tree = {"vae": wrapped(vae), "vae_optimizer": optimiser([vae["prior_ftr0"]]), "args": namespace(epochs=2)}
    tree |= {"dae": wrapped(changed(average)), "dae_optimizer": optimiser(average.values()), "epoch": 1}
    parts = through_file(tmp_path, tree)

    backbone = nvae_backbone(vae_fixture, vae)
    params = vae_params(parts.require_vae(), backbone)
    assert described(params) == described(jax.eval_shape(backbone.init, jax.random.key(0)))
    groups = range(backbone.net.group_count)
    noises = tuple(channels_last(vae_fixture.input(f"in/noise/group{index}")) for index in groups)
    evaluate = jax.jit(functools.partial(StatefulNetwork(backbone.net).apply, train=False))
    output, *_ = evaluate(double(params), channels_last(vae_fixture.input("in/x")), noises)
    check_mode(vae_fixture, backbone.net, "eval", output)

    h = fixture.spec["hyper_parameters"]
    assert_same_output(fixture, "in/x", parts.score_net_average, lsgm_net(h), lsgm_shape(h))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", [FOURIER, MLP])
def test_a_network_of_cld_has_the_outputs_of_the_original(tmp_path, name):
    fixture, average = official_state(name)
    tree = {"model": wrapped(changed(average)), "ema": listed(moved(average)), "step": 9}
    state = through_file(tmp_path, tree).score_net_average
    assert_same_output(fixture, "in/u", state, *cld_module(fixture.spec["hyper_parameters"], average))


def assert_same_output(fixture, inputs, state, module, shape):
    params, net = score_params(state, module, shape), Network(module)
    z_t, t = channels_last(fixture.input(inputs)), fixture.input("in/t")
    assert described(params) == described(jax.eval_shape(net.init, jax.random.key(0), z_t[:1], t[:1]))
    net_eps = jax.jit(net.apply)(double(params), z_t, t)
    scores.check(fixture, "net", channels_first(net_eps))


def test_half_precision_becomes_single(tmp_path):
    """The arrays are copies, so the file is not needed afterwards."""
    fixture, state = official_state(INACTIVE)
    h, half = fixture.spec["hyper_parameters"], {k: v.astype(np.float16) for k, v in state.items()}
    parts = through_file(tmp_path, half)
    params = score_params(parts.require_score_net(), lsgm_net(h), lsgm_shape(h))
    expected = ncsnpp_variables(half, lsgm_net(h), lsgm_shape(h))["params"]
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    logits = mixing_logits(parts.require_score_net())
    np.testing.assert_array_equal(logits, half["mixing_logit"].ravel())
    np.testing.assert_array_equal(logits[h["inactive"]], -15.0)
    for leaf in [logits, *jax.tree.leaves(params)]:
        assert (leaf.dtype, leaf.flags.owndata, leaf.flags.c_contiguous) == (np.float32, True, True)


NET = {"all_modules.0.weight": np.ones((3, 2)), "all_modules.0.bias": np.ones(3)}
AUTOENCODER = {"prior_ftr0": np.ones((2, 4, 4)), "stem.bias": np.ones(2)}
AS_IT_IS = [np.ones((3, 2)), np.ones(3)]
NOT_OURS = "has an EMA, but not of its score network"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"model": {"conv.weight": np.ones(3)}, "epoch": 3},
            "holds no network of LSGM or CLD-SGM, only model, epoch: no tensor is called",
        ),
        (
            {f"layer{i}.weight": np.ones(3) for i in range(9)},
            "holds .* only (layer.*, ){4}layer4.weight and 4 more: ",
        ),
        ([], "holds no network of LSGM or CLD-SGM, only a list: "),
        ({"a": NET, "b": {"net": wrapped(NET)}}, "holds 2 score networks, a, b/net/module.: save it again"),
        ({"a_ema": NET, "b_ema": dict(NET)}, "holds 2 score networks, a_ema, b_ema: "),
        ({"a": AUTOENCODER, "b\nc": dict(AUTOENCODER)}, "holds 2 NVAEs, a, b c: "),
        (
            {"net": NET, "ema": dict(NET), "opt": optimiser(AS_IT_IS)},
            "has 2 EMAs of the score network, ema, opt: ",
        ),
        (
            {"net": NET, "opt": optimiser([np.ones((3, 2)), np.ones(4)])},
            rf"{NOT_OURS} \(opt: all_modules.0.bias is \(4,\), not \(3,\)\): ",
        ),
        (
            {"net": NET, "opt": optimiser([None, np.ones(3)])},
            rf"{NOT_OURS} \(opt: all_modules.0.weight is missing",
        ),
        (
            {"net": NET, "ema": listed(AS_IT_IS[:1])},
            rf"{NOT_OURS} \(ema/shadow_params: all_modules.0.bias is missing",
        ),
        ({"net": NET, "ema": listed([*AS_IT_IS, np.ones(3)])}, rf"{NOT_OURS} \(ema/\w+: number 2 is unknown"),
        (
            {
                "net": NET,
                "net_ema": {**NET, "all_modules.1.bias": np.ones(3)},
                "opt": optimiser(AS_IT_IS[1:]),
            },
            rf"{NOT_OURS} \(net_ema: all_modules.1.bias is unknown; opt: all_modules.0.weight is \(3,\), not \(3, 2",
        ),
    ],
)
def test_ambiguous_checkpoints_are_refused_in_one_line(tree, message):
    assert_refused(lambda: find_parts(tree), message)


def assert_refused(convert, message):
    with pytest.raises(ConversionError, match=f"^{message}") as error:
        convert()
    assert "\n" not in str(error.value)


def test_missing_networks_and_other_settings_are_refused_in_one_line(tmp_path):
    """A first stage instead of a second and the reverse; networks with other settings than the checkpoint."""
    (vae_fixture, vae), (fixture, net) = official_state(VAE), official_state(MLP)
    first, score = through_file(tmp_path, {"vae": vae}), through_file(tmp_path, {"net": net})
    assert_refused(first.require_score_net, "holds an NVAE but no score network: give the second stage's")
    assert_refused(score.require_vae, "holds a score network but no NVAE: give a checkpoint of LSGM$")
    assert_refused(lambda: mixing_logits(score.require_score_net()), "tensors missing: mixing_logit$")

    backbone, (mlp, shape) = (
        nvae_backbone(vae_fixture, vae),
        cld_module(fixture.spec["hyper_parameters"], net),
    )
    more, less = {**vae, "stem.extra": np.ones(2)}, {k: v for k, v in net.items() if k != "main.2.bias"}
    assert_refused(lambda: vae_params(more, backbone), "tensors unknown: stem.extra$")
    assert_refused(lambda: score_params(less, mlp, shape), "tensors missing: main.2.bias$")
    assert_refused(lambda: score_params(net, mlp, (5,)), r"tensors of another shape: main.0.weight \(128, 5")
