"""Imports run one way, and each library has its room; read from the source, not from running it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "lsgm_jax"
# From the foundation up to the command: a module imports from its own entry and from those above it. The longest entry
# that fits counts, so a file may stand elsewhere than its room.
LAYERS = (
    ("errors.py",),
    (
        "arrays.py",
        "bounded.py",
        "files.py",
        "jax_internals.py",
        "locks.py",
        "numpy_files.py",
        "sealed.py",
        "unpickling/",
        "__init__.py",
    ),
    ("processes/",),
    ("objectives/",),
    ("solvers/",),
    ("nn/",),
    ("autoencoders/",),
    ("conditioning/",),
    ("data/",),
    ("models/",),
    ("interop/",),
    ("distributed/",),
    ("training/",),
    ("evaluation/",),
    ("training/recipes/", "conditioning/request.py"),
    # The only entry that sees a ConfigDict; what stands below it may open a run.
    ("config/", "interop/kinds.py"),
    ("sampling/run.py",),
    (
        "sampling/",
        "training/train.py",
        "evaluation/generators.py",
        "evaluation/likelihood.py",
        "evaluation/programs.py",
        "evaluation/sample_quality.py",
        "evaluation/solver_study.py",
        "interop/convert.py",
    ),
    ("cli/parser.py",),
    ("cli/metrics.py",),
    ("cli/commands.py",),
    ("cli/",),
)
# What stands above an entry, and yet is none of its business.
STRANGERS = {
    "nn/": ("solvers/",),
    "autoencoders/": ("solvers/",),
    "conditioning/": ("solvers/", "autoencoders/"),
    "data/": ("processes/", "objectives/", "solvers/", "nn/", "autoencoders/", "conditioning/"),
    "models/": ("data/",),
    "interop/": ("data/",),
    "distributed/": ("processes/", "models/", "interop/"),
    "training/": ("interop/", "solvers/"),
    # Usage errors should not wait for JAX.
    "cli/parser.py": tuple(entry for entries in LAYERS[1:] for entry in entries),
}
# Third-party libraries that are confined to some rooms.
CONFINED = {
    "flax": (
        "autoencoders/",
        "nn/",
        "conditioning/",
        "interop/",
        "training/state.py",
        "evaluation/inception.py",
        "evaluation/inception_weights.py",
        "evaluation/classifier.py",
    ),
    "diffrax": ("solvers/",),
    "orbax": ("training/checkpoint.py", "training/checkpoint_record.py"),
    "ml_collections": ("config/",),
    "tensorflow": (),
    "torch": (),
    "tensorflow_datasets": ("data/",),
    "grain": ("data/", "training/loop.py"),
    "tokenizers": ("data/",),
    "tensorboardX": ("training/tensorboard.py",),
}
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


def parsed(file):
    return ast.parse((ROOT / file).read_text())


def imports(file):
    """Modules that a file imports, at whatever depth of the code."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_files(file):
    """The files of the package that a file imports."""
    names = (
        name.removeprefix("lsgm_jax").lstrip(".") for name in imports(file) if name.startswith("lsgm_jax")
    )
    for name in names:
        path = name.replace(".", "/")
        yield from {f"{path}.py", f"{path}/__init__.py"} & set(FILES)


ENTRIES = {entry: index for index, entries in enumerate(LAYERS) for entry in entries}


def entry(file):
    """The longest entry of `LAYERS` that fits a file."""
    fitting = [entry for entry in ENTRIES if file.startswith(entry)]
    assert fitting, f"{file} has no entry in LAYERS"
    return max(fitting, key=len)


@pytest.mark.parametrize("file", FILES)
def test_imports_run_one_way(file):
    found, here = imported_files(file), entry(file)
    strangers = STRANGERS.get(here, ())
    assert [
        name for name in found if ENTRIES[entry(name)] > ENTRIES[here] or name.startswith(strangers)
    ] == []


def test_no_module_imports_itself_in_a_circle():
    done, path = set(), []

    def visit(file):
        assert file not in path, " imports ".join([*path[path.index(file) :], file])
        if file not in done:
            path.append(file)
            for name in imported_files(file):
                visit(name)
            done.add(path.pop())

    for file in FILES:
        visit(file)


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_in_their_rooms(library):
    users = [file for file in FILES if any(name.split(".")[0] == library for name in imports(file))]
    assert [file for file in users if not file.startswith(CONFINED[library])] == []
    assert users or not CONFINED[library]


def test_only_one_module_takes_private_names_of_jax():
    """Neither by import nor as an attribute `jax._src`; `tests/test_jax_internals.py` checks that they exist."""

    def is_private(file):
        attributes = (node.attr for node in ast.walk(parsed(file)) if isinstance(node, ast.Attribute))
        return "_src" in attributes or any(f"{name}.".startswith("jax._src.") for name in imports(file))

    assert [file for file in FILES if is_private(file)] == ["jax_internals.py"]


@pytest.mark.parametrize("room", ["processes/", "objectives/", "solvers/"])
def test_mathematics_never_imports_flax(room):
    """Not even through what it imports: a chain would pull it in."""
    seen, todo = set(), [file for file in FILES if file.startswith(room)]
    assert todo
    while todo:
        file = todo.pop()
        seen.add(file)
        assert "flax" not in {name.split(".")[0] for name in imports(file)}, file
        todo.extend(set(imported_files(file)) - seen)
