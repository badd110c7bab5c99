"""Writes files of `torch.save` in both layouts from numpy arrays, without PyTorch. For tests only."""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np

from lsgm_jax.interop.restricted import STORAGES
from lsgm_jax.interop.torch_file import LEGACY_MAGIC, LEGACY_PROTOCOL


class Global:
    """A name in the pickle of an object that need not exist here; only a reader of the pickle calls it."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("written, never called")


class Call:
    """Pickles as the call of a global, followed by its state."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


class Storage(Global):
    """A reference to a storage by key."""

    def __init__(self, pid):
        self.pid = pid


class TorchPickler(pickle._Pickler):
    """Writes globals by name, and arrays as tensors: views of a storage, the array that owns their memory."""

    def __init__(self, file, legacy=False):
        super().__init__(file, protocol=2)
        self.storages, self.legacy = {}, legacy

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None

    def save(self, obj, save_persistent_id=True):
        if type(obj) is Global:
            return self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())  # pyright: ignore
        if isinstance(obj, np.ndarray):
            obj = self._tensor(obj)
        return super().save(obj, save_persistent_id)  # pyright: ignore

    def _tensor(self, array):
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        key = str(list(self.storages).index(id(owner)) if id(owner) in self.storages else len(self.storages))
        self.storages[id(owner)] = owner
        offset = (array.ctypes.data - owner.ctypes.data) // array.itemsize
        stride = tuple(step // array.itemsize for step in array.strides)
        kind = Global("torch", STORAGES[array.dtype.name])
        pid = ("storage", kind, key, "cuda:0", owner.size, *([None] if self.legacy else []))
        rebuild = Global("torch._utils", "_rebuild_tensor_v2")
        hooks = collections.OrderedDict()
        return Call(rebuild, Storage(pid), offset, array.shape, stride, False, hooks)


def memory_of(owner):
    return owner.ravel(order="K").tobytes()


def write_zip(path, tree, *, drop=(), shorten=None, compression=zipfile.ZIP_STORED):
    """Writes a file in the layout since 1.6.

    Args:
        drop: names of entries that are not written.
        shorten: key of a storage that is written without its last byte.
    """
    file = io.BytesIO()
    pickler = TorchPickler(file)
    pickler.dump(tree)
    entries = {"data.pkl": file.getvalue(), "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{i}": memory_of(owner) for i, owner in enumerate(pickler.storages.values())}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            if name not in drop:
                archive.writestr(f"archive/{name}", content[:-1] if name == f"data/{shorten}" else content)


def write_legacy(path, tree, *, numel_of=lambda owner: owner.size):
    """Writes a file in the layout before 1.6."""
    with open(path, "wb") as file:
        for head in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(head, file, protocol=2)
        pickler = TorchPickler(file, legacy=True)
        pickler.dump(tree)
        pickle.dump([str(i) for i in range(len(pickler.storages))], file, protocol=2)
        for owner in pickler.storages.values():
            file.write(struct.pack("<q", numel_of(owner)) + memory_of(owner))
