"""Inception agrees with torchvision's layers and FID's pooling; its files are read, or refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from lsgm_jax.errors import ConversionError
from lsgm_jax.evaluation.inception import SIDE as PUBLISHED_SIDE
from lsgm_jax.evaluation.inception import Inception, average, features_of
from lsgm_jax.evaluation.inception_weights import read_inception, shapes, table
from lsgm_jax.interop.tables import to_state, to_variables
from tests.evaluation.torch_inception import FIXTURE, SIDE, draw_images, draw_weights
from tests.interop.write_torch import write_legacy, write_zip
from tests.mutate import attempt


@pytest.fixture(scope="module")
def torchvision():
    return dict(np.load(FIXTURE))


@pytest.fixture(scope="module")
def official():
    """Returns tensors under their official names, drawn like those of the fixture."""
    ours = flatten_dict(shapes())
    blank = {entry.official: entry.layout.to_official(np.zeros(ours[entry.path].shape)) for entry in table()}
    return draw_weights({name: value.shape for name, value in blank.items()})


@pytest.fixture(scope="module")
def variables(official):
    return to_variables(table(), official, shapes())


def test_tensors_are_those_of_torchvision(torchvision, official):
    """There are 470 tensors; with a head of 1000 classes they have the published 23,834,568 parameters."""
    assert sorted(official) == list(torchvision["names"])
    assert sum(value.size for value in official.values()) == torchvision["total"]
    learned = [value.size for name, value in official.items() if "running" not in name]
    assert sum(learned) + 1000 * 2049 == 23_834_568


def test_maps_have_the_published_shapes():
    """Table 1 of Szegedy et al. 2015, after each layer of the stem and each block."""
    sides = []

    def record(method, args, kwargs, context):
        output = method(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1:
            sides.append(output.shape[1:])
        return output

    with nn.intercept_methods(record):
        x = jnp.zeros((1, PUBLISHED_SIDE, PUBLISHED_SIDE, 3))
        jax.eval_shape(lambda: Inception().init(jax.random.key(0), x))
    stem = [(149, 149, 32), (147, 147, 32), (147, 147, 64), (73, 73, 80), (71, 71, 192)]
    middle = [(35, 35, 256), (35, 35, 288), (35, 35, 288), *5 * [(17, 17, 768)]]
    assert sides == [*stem, *middle, (8, 8, 1280), (8, 8, 2048), (8, 8, 2048)]


def test_features_are_those_of_torchvision(torchvision, variables):
    x = draw_images(3, SIDE) / np.float32(127.5) - 1
    features = np.asarray(jax.jit(Inception().apply)(variables, x))[:, ::16]
    between_images = torchvision["features"].std(axis=0).mean()
    assert np.abs(features - torchvision["features"]).max() < 1e-3 * between_images


def test_small_images_are_resized_as_by_torch(torchvision, variables):
    features = np.asarray(jax.jit(features_of)(variables, jnp.asarray(draw_images(1, 32))))[:, ::16]
    np.testing.assert_allclose(features, torchvision["from_32_pixels"], atol=1e-4)


def test_average_pooling_excludes_the_padding():
    """Windows at corners have four elements, at edges six."""
    h = np.random.default_rng(0).normal(size=(1, 5, 6, 2))
    found = np.asarray(average(jnp.asarray(h)))
    for i in range(5):
        for j in range(6):
            near = h[0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            np.testing.assert_allclose(found[0, i, j], near.mean(axis=(0, 1)), rtol=1e-5)


# Files


def published_file(official):
    """Returns the tensors of the published file, with the head and with the counters that newer PyTorch adds."""
    head = {"fc.weight": np.zeros((1008, 2048), np.float32), "fc.bias": np.zeros(1008, np.float32)}
    return {**official, **head, "Conv2d_1a_3x3.bn.num_batches_tracked": np.array(7)}


def test_all_kinds_of_file_are_read_and_names_map_both_ways(tmp_path, official, variables):
    write_zip(tmp_path / "a.pth", published_file(official))
    write_legacy(tmp_path / "b.pth", published_file(official))
    np.savez(tmp_path / "c.npz", **official)
    read = [read_inception(tmp_path / name) for name in ("a.pth", "b.pth", "c.npz")]
    assert len({extractor.identity for extractor in read}) == 1
    assert read[0].name == "Inception"
    jax.tree.map(np.testing.assert_array_equal, read[0].params, variables)
    np.testing.assert_equal(to_state(table(), read[1].params), official)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {**s, "fc.weight": np.zeros((1000, 2048))}, "torchvision's own InceptionV3"),
        (lambda s: {**s, "AuxLogits.fc.bias": np.zeros(1000)}, "torchvision's own InceptionV3"),
        (lambda s: {n: v for n, v in s.items() if "Mixed_7c" not in n}, "missing: Mixed_7c.*pt_inception"),
        (
            lambda s: {**s, "Mixed_5b.branch1x1.conv.weight": np.zeros((64, 192, 3, 3))},
            r"another shape: Mixed_5b",
        ),
        (
            lambda s: {
                **s,
                "Mixed_5b.branch1x1.conv.weight": np.broadcast_to(np.float32(0), (64, 192, 999, 999)),
            },
            "a tensor of shape .64, 192, 999, 999. repeats the 1 values",
        ),
        (
            lambda s: {**s, "Mixed_5b.branch1x1.bn.bias": np.full(64, np.nan)},
            "branch1x1.bn.bias has values that",
        ),
        (lambda s: {"model": s}, "no state dictionary of tensors"),
    ],
)
def test_another_network_is_refused_by_name(tmp_path, official, change, message):
    write_zip(tmp_path / "a.pth", change(official))
    with pytest.raises(ConversionError, match=f"{tmp_path}/a.pth: .*{message}") as caught:
        read_inception(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def test_views_of_one_number_take_no_memory(tmp_path):
    """A file of 600 bytes states a tensor of 12 GB."""
    write_zip(tmp_path / "a.pth", {"Conv2d_1a_3x3.conv.weight": np.broadcast_to(np.float32(0), (3 * 10**9,))})
    outcome = attempt(lambda: read_inception(tmp_path / "a.pth"))
    assert outcome.fault is None
    assert f"{tmp_path}/a.pth: a tensor of shape (3000000000,) repeats" in outcome.line


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_objects_and_text_are_no_weights(tmp_path, official, suffix):
    changed = official | {"Mixed_5b.branch1x1.bn.bias": np.full(64, "a")}
    if suffix == ".pth":
        changed = {str(index): "text" for index in range(3)}
        write_zip(tmp_path / "a.pth", changed)
    else:
        np.savez(tmp_path / "a.npz", **changed)
    with pytest.raises(ConversionError, match=f"a{suffix}: .*(not finite numbers|no state dictionary)"):
        read_inception(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("name", ["none.npz", "none.pth", "torn.npz"])
def test_an_unreadable_file_is_named(tmp_path, name):
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ConversionError, match=name):
        read_inception(tmp_path / name)
