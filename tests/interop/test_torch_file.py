"""Files of torch.save are read exactly, and no code from a file runs."""

import collections
import io
import pathlib
import pickle
import tracemalloc
import types
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.errors import ConversionError
from lsgm_jax.interop import restricted
from lsgm_jax.interop.checkpoint_file import read_checkpoint
from lsgm_jax.interop.restricted import DTYPES
from tests.interop.write_torch import Call, Global, Storage, write_legacy, write_zip

HERE = pathlib.Path(__file__).parent
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
WRITERS = {"zip": write_zip, "legacy": write_legacy}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """A function that writes a tree in one of the layouts and returns the path."""

    def write(tree, **options):
        path = tmp_path / f"{request.param}.pt"
        WRITERS[request.param](path, tree, **options)
        return path

    return write


def assert_array(array, expected, dtype):
    assert isinstance(array, np.ndarray)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("name", ["torch_2_5.pt", "torch_2_5_legacy.pt"])
def test_files_written_by_pytorch_are_read(name):
    """Torch 2.5.1 wrote them with the values below."""
    tree = read_checkpoint(HERE / name)
    base = np.arange(12.0).reshape(3, 4)
    views = {"base": base, "transposed": base.T, "part": base[1:, ::2], "spread": np.ones((3, 2))}
    for key, expected in {**views, "scalar": 2.5, "empty": np.zeros((0, 3)), "parameter": [1.5]}.items():
        assert_array(tree[key], expected, np.float32)
    for key, array in tree["dtypes"].items():
        assert_array(array, np.array([0, 1, 3]).astype(DTYPES[key]), DTYPES[key])
    assert len(tree["dtypes"]) == 9
    assert list(tree["state_dict"]) == ["weight", "bias"]
    # The first step of Adam is the learning rate times the sign of the gradient; all gradients are 1.
    np.testing.assert_allclose(tree["state_dict"]["weight"], np.array([[1, 2], [3, 4]]) - 0.5, rtol=1e-6)
    np.testing.assert_allclose(tree["optimiser"]["state"][1]["exp_avg"], [0.1, 0.1], rtol=1e-6)
    assert tree["optimiser"]["param_groups"][0]["betas"] == (0.9, 0.999)
    args = types.SimpleNamespace(lr=0.1, device="cuda:0", shape=(2, 3), dtype="torch.float32")
    assert tree["args"] == args
    assert tree["best"] == 0.25
    assert_array(tree["numpy"], [[1, 2], [3, 4]], np.int64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(write, dtype):
    values = np.arange(-3, 5).reshape(2, 4).astype(DTYPES[dtype])
    assert_array(read_checkpoint(write({"a": [values]}))["a"][0], values, values.dtype)


def test_views_of_one_storage_share_memory(write):
    base = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    tree = {
        "base": base,
        "offset": base[2:],
        "steps": base[::2, 1::3],
        "turned": base.T,
        "column": base[:, 4],
    }
    tree["other"] = base.copy()
    read = read_checkpoint(write(tree))
    for key, expected in tree.items():
        assert_array(read[key], expected, np.float32)
        assert np.shares_memory(read[key], read["base"]) == (key != "other")
        assert not read[key].flags.writeable
    jnp.asarray(read["turned"])


def test_other_values_than_tensors_come_back(write):
    tree = {
        "epoch": 3,
        "names": ("a", None, 2.5, True),
        "nested": collections.OrderedDict(x=[{}, 2**80]),
        "scalar": np.float32(0.5),
        "bytes": b"\x00\xff",
    }
    checkpoint_class = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    written = {
        **tree,
        "args": Call(Global("argparse", "Namespace"), state={"lr": 0.1}),
        "callbacks": {Global(*checkpoint_class.rsplit(".", 1)): {"best": 1.5}},
    }
    read = read_checkpoint(write(written))
    callbacks = {checkpoint_class: {"best": 1.5}}
    assert read == {**tree, "args": types.SimpleNamespace(lr=0.1), "callbacks": callbacks}


def test_files_from_before_2_1_have_no_byte_order(tmp_path):
    write_zip(tmp_path / "old.pt", [np.arange(3)], drop=["byteorder"])
    assert_array(read_checkpoint(tmp_path / "old.pt")[0], [0, 1, 2], np.int64)


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("os", "system", ["touch {}"]),
        ("posix", "system", ["touch {}"]),
        ("subprocess", "Popen", [["touch", "{}"]]),
        ("builtins", "eval", ["open({!r}, 'w')"]),
        ("__builtin__", "getattr", [{}, "pop"]),
        ("functools", "partial", [print]),
        ("numpy", "save", ["{}", 1]),
        ("torch", "load", ["{}"]),
        ("torch.nn.modules.linear", "Linear", [1, 1]),
        ("collections", "OrderedDict.fromkeys", [[1]]),
    ],
)
def test_no_other_function_is_called(write, tmp_path, module, name, arguments):
    victim = str(tmp_path / "victim")
    arguments = [a.format(victim) if isinstance(a, str) else a for a in arguments]
    path = write({"state_dict": {}, "extra": Call(Global(module, name), *arguments)})
    with pytest.raises(ConversionError) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"{path}: its pickle names {module}.{name}, which")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call(Global("_codecs", "encode"), "text", "rot13"), "encodes text in rot13"),
        (Call(Global("numpy", "dtype"), "O"), "numpy array of O"),
        (Call(Global("numpy", "ndarray"), (3,)), "not callable"),
        (Call(Global("torch", "FloatStorage"), 3), "not callable"),
        (Call(REBUILD, np.broadcast_to(np.ones(1), (9,)), 0, (9,), (1,)), "of what is no storage"),
        (Storage(("module", "a", "b")), "no storage"),
        (Storage(("storage", Global("torch", "FloatStorage"), "0", "cpu", -1)), "has -1 values"),
    ],
)
def test_allowed_names_refuse_other_arguments(write, call, message):
    with pytest.raises(ConversionError, match=message):
        read_checkpoint(write([call]))


def test_a_pickle_cannot_change_the_reader():
    """The opcode BUILD sets the state of any object in `pickle.Unpickler`, functions included."""
    program = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__name__X\x01\x00\x00\x00xsb."
    before = dict(vars(restricted.rebuild_tensor)), restricted.rebuild_tensor.__name__
    with pytest.raises(pickle.UnpicklingError, match="a Function has no state"):
        restricted.load_torch(io.BytesIO(program))
    assert (dict(vars(restricted.rebuild_tensor)), restricted.rebuild_tensor.__name__) == before


def one_line(path):
    with pytest.raises(ConversionError) as error:
        read_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_refused(write, share):
    path = write({"a": np.arange(100.0), "b": np.arange(50)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    one_line(path)


def plain_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot be read .No such file"),
        (lambda path: path.mkdir(), "is a folder, and not one in diffusers' layout"),
        (lambda path: path.write_text("<html>not found</html>"), "neither a zip nor a pickle"),
        (plain_zip, "without the data.pkl"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "a pickle, but none of torch.save"),
        (lambda path: write_zip(path, [np.ones(3)], drop=["data/0"]), "no entry archive/data/0"),
        (
            lambda path: write_zip(path, [np.ones(3)], shorten="0"),
            "23 bytes where 3 values of float64 need 24",
        ),
        (lambda path: write_zip(path, [1], compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (
            lambda path: write_legacy(path, [np.ones(3)], numel_of=lambda _: 2),
            "2 values where its pickle says 3",
        ),
    ],
)
def test_a_foreign_or_damaged_file_is_refused_in_one_line(tmp_path, make, message):
    path = tmp_path / "file.pt"
    make(path)
    with pytest.raises(ConversionError, match=message):
        read_checkpoint(path)
    one_line(path)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (3, 2), (2, 1)),
        (1, (5,), (1,)),
        (-1, (2,), (1,)),
        (2, (2,), (-1,)),
        (0, (2**40,), (1,)),
        (0, (2,), (2**61,)),
    ],
)
def test_a_tensor_cannot_leave_its_storage(write, offset, size, stride):
    values = np.arange(5.0)
    kind = ("storage", Global("torch", "DoubleStorage"), "0", "cpu", 5)
    rebuild = Call(REBUILD, Storage(kind), offset, size, stride)
    with pytest.raises(ConversionError, match="reaches beyond the 5 values of its storage"):
        read_checkpoint(write([values, rebuild]))


@pytest.mark.parametrize(("layout", "copies"), [("zip", 0.1), ("legacy", 1.1)])
def test_storages_are_in_memory_at_most_once(tmp_path, layout, copies):
    """Those of a zip file are not: they are memory-mapped."""
    path, values = tmp_path / "large.pt", np.arange(4_000_000.0)
    WRITERS[layout](path, {"a": values, "b": values[10:]})
    tracemalloc.start()
    read = read_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < copies * values.nbytes
    np.testing.assert_array_equal(read["b"], values[10:])
