"""Imports run one way, and each library has its room; read from the source, not from running it."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "lsgm_jax"
PARTS = {"autoencoders", "diffusions", "scores", "conditioning"}
# What each room may import from the package, besides itself. `arrays`, `files` and `layers` are the foundation.
MAY_IMPORT = {
    "arrays": set(),
    "files": set(),
    "layers": {"arrays"},
    "autoencoders": {"arrays", "layers"},
    "diffusions": {"arrays"},
    "scores": {"arrays", "layers"},
    "conditioning": {"arrays", "layers"},
    "objectives": {"arrays", *PARTS},
    "solvers": {"arrays", *PARTS},
    # `interop` turns what others have stored into what our modules take.
    "interop": {"arrays", "layers", "autoencoders", "conditioning", "diffusions", "scores", "models"},
    # `layers` to know what a block is: the boundary says whether its inside is kept.
    "models": {"arrays", "layers", "objectives", "solvers", *PARTS},
    "training": {"arrays", "files", "models", "objectives"},
    "data": {"arrays", "files"},
    # `layers` for a classifier, `interop` for published weights of Inception: what judges images is no part of a model.
    "evaluation": {
        "arrays",
        "files",
        "layers",
        "diffusions",
        "models",
        "interop",
        "data",
        "training",
        "objectives",
    },
    "schema": {"models", "training", "data", "objectives", "solvers", *PARTS},
    # `interop` for the published weights of a perceptual distance.
    "building": {"arrays", "schema", "interop", "models", "training", "objectives", "solvers", *PARTS},
    "config": {"schema", "files"},
    "stages": {
        "schema",
        "arrays",
        "building",
        "data",
        "evaluation",
        "models",
        "objectives",
        "solvers",
        "training",
    },
    "conditions": {"schema", "building", "data", "models"},
    "run": {
        "schema",
        "arrays",
        "building",
        "conditions",
        "config",
        "data",
        "evaluation",
        "models",
        "objectives",
        "solvers",
        "stages",
        "training",
    },
    "scoring": {
        "schema",
        "arrays",
        "building",
        "conditions",
        "data",
        "evaluation",
        "models",
        "objectives",
        "run",
        "solvers",
        "stages",
        "training",
        "config",
    },
    "quality": {
        "schema",
        "arrays",
        "building",
        "conditions",
        "data",
        "evaluation",
        "models",
        "run",
        "scoring",
        "solvers",
        "training",
    },
    "study": {
        "schema",
        "arrays",
        "building",
        "config",
        "data",
        "evaluation",
        "files",
        "models",
        "run",
        "solvers",
    },
    "animate": {
        "conditions",
        "schema",
        "arrays",
        "building",
        "data",
        "diffusions",
        "evaluation",
        "models",
        "run",
        "solvers",
    },
    "restore": {"schema", "arrays", "building", "conditioning", "data", "models", "run", "solvers"},
    "convert": {"schema", "building", "conditions", "interop", "models", "run", "stages", "training"},
    "command_line": set(),
    "commands": {
        "schema",
        "animate",
        "command_line",
        "restore",
        "files",
        "convert",
        "interop",
        "building",
        "config",
        "run",
        "scoring",
        "quality",
        "stages",
        "study",
        "data",
        "evaluation",
        "training",
    },
    "cli": {"command_line", "commands", "data", "interop", "schema", "training"},
    "__init__": set(),
}
# Third-party libraries that are confined to some rooms.
CONFINED = {
    "flax": {
        "layers",
        "autoencoders",
        "scores",
        "conditioning",
        "interop",
        "models/network.py",
        "training/state.py",
        "evaluation/inception.py",
        "evaluation/inception_weights.py",
        "evaluation/classifier.py",
    },
    "diffrax": {"solvers"},
    "orbax": {"training/checkpoint.py"},
    "ml_collections": {"config"},
    "tensorflow": set(),
    "torch": set(),
    "tensorflow_datasets": {"data"},
    "grain": {"data", "training/loop.py"},
    "tokenizers": {"data"},
    "tensorboardX": {"training/logs.py"},
}


def imports(path):
    """Modules that a file imports, at whatever depth of the code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "lsgm_jax":
                yield from (f"lsgm_jax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    here = room(path)
    inner = {name.split(".")[1] for name in imports(path) if name.startswith("lsgm_jax.")}
    assert inner <= MAY_IMPORT[here] | {here}


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_in_their_rooms(library):
    users = {p for p in ROOT.rglob("*.py") if any(n.split(".")[0] == library for n in imports(p))}
    strangers = [
        str(p.relative_to(ROOT))
        for p in users
        if room(p) not in CONFINED[library] and str(p.relative_to(ROOT)) not in CONFINED[library]
    ]
    assert strangers == []
    assert users or not CONFINED[library]


def test_objectives_and_solvers_never_import_flax():
    """Not even through what they import: a chain would pull it in."""

    def reached(start):
        seen, todo = set(), [start]
        while todo:
            for path in ROOT.glob(f"{todo.pop()}/*.py"):
                for name in imports(path):
                    inner = name.split(".")[1] if name.startswith("lsgm_jax.") else None
                    assert name.split(".")[0] != "flax", path
                    if inner and inner not in seen:
                        seen.add(inner)
                        todo.append(inner)

    for start in ("objectives", "solvers", "diffusions"):
        reached(start)
