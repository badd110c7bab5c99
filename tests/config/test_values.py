"""Values of fields: an override, a config file and config.json are held to the annotation of the field."""

import inspect
import json
from typing import Literal

import pytest

from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import complete, load_config, read_config
from lsgm_jax.config.models import sections
from lsgm_jax.config.registry import fields
from lsgm_jax.config.values import checked, parsed
from lsgm_jax.errors import ConfigError
from tests.tiny import CONFIG

NUMBERS = ("nan", "inf", "1e999", "-1e39", "ten", "'1'", "x", "", "²", "٣", "(1,)", "True", "a\nb")
WHOLE = (*NUMBERS, "64.5", "12345678901234567890", str(2**31))


def field(kind, default=inspect.Parameter.empty):
    return inspect.Parameter("field", inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "7", 7),
        (int, "-7", -7),
        (int | None, "None", None),
        (float, "1e-3", 1e-3),
        (float, "2", 2.0),
        (bool, "false", False),
        (bool, "1", True),
        (str, "None", "None"),
        (str, "(1, 2)", "(1, 2)"),
        (str | None, "None", None),
        (tuple[int, ...], "(32, 64)", (32, 64)),
        (tuple[int, ...], "[32]", (32,)),
        (tuple[int, ...], "()", ()),
        (tuple[float, ...], "(1, 2)", (1.0, 2.0)),
        (tuple[int, int], "(1, 2)", (1, 2)),
        (Literal["a", "b"], "b", "b"),
    ],
)
def test_an_override_gets_the_type_of_its_field(kind, text, value):
    given = parsed("a.b", text, field(kind))
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("kind", "texts", "wanted"),
    [
        (int, WHOLE, "give int"),
        (int | None, WHOLE, "give int.* or None"),
        (float, NUMBERS, "give float"),
        (bool, ("2", "yes", "", "nan"), "give bool"),
        (
            tuple[int, ...],
            ("32", "(64.5,)", "(32", "('a',)", "(True,)", "²"),
            r"give a tuple of int, such as \(32,\)",
        ),
        (tuple[float, ...], ("1.0", "('x',)", "(1e999,)"), r"give a tuple of float, such as \(0.5,\)"),
        (tuple[int, int], ("(1,)", "(1, 2, 3)"), "give a tuple of int"),
        (Literal["a", "b"], ("c", ""), "give one of a, b"),
    ],
)
def test_a_value_of_another_type_is_one_line_that_says_which(kind, texts, wanted):
    for text in texts:
        with pytest.raises(ConfigError, match=rf"^config\.a\.b=.*: {wanted}") as error:
            parsed("a.b", text, field(kind))
        assert str(error.value).isprintable()


def test_a_long_value_is_shortened():
    with pytest.raises(ConfigError) as error:
        parsed("a.b", "9" * 5000, field(int))
    assert len(str(error.value)) < 150


def test_a_default_may_be_infinite():
    infinite = field(float, float("inf"))
    assert checked("a.b", float("inf"), infinite) == float("inf")
    with pytest.raises(ConfigError):
        checked("a.b", float("-inf"), infinite)


NUMERIC = [
    (section, name)
    for section, described in sections("lsgm").items()
    for name, parameter in fields(
        described, described.target(section, getattr(load_config(CONFIG, [])[section], "name", None))
    ).items()
    if parameter.annotation in (int, float)
]


@pytest.mark.parametrize(("section", "name"), NUMERIC)
def test_no_numeric_field_takes_what_is_no_finite_number(section, name):
    tree = load_config(CONFIG, []).to_dict()
    for value in ("x", float("nan"), float("inf"), 1e39, None, (1,)):
        with pytest.raises(ConfigError, match=rf"config\.{section}\.{name}="):
            complete(tree | {section: tree[section] | {name: value}})


@pytest.mark.parametrize("seed", [-1, 2**32, 12345678901234567890, 1.5, "x", True])
def test_a_seed_has_32_bits(seed):
    with pytest.raises(ConfigError, match=r"config\.seed=.*: give int from 0 to 4294967295"):
        load_config(CONFIG, [f"--config.seed={seed}"])


@pytest.mark.parametrize(("name", "value"), [("beta_min", "x"), ("beta_max", None), ("beta_min", [1.0])])
def test_config_json_is_held_to_the_same_rule(tmp_path, name, value):
    tree = load_config(CONFIG, []).to_dict()
    tree["process"][name] = value
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=rf"config\.process\.{name}="):
        read_config(path)


def test_a_number_is_no_tuple_of_one():
    tree = load_config(CONFIG, []).to_dict()
    tree["score"] |= {"channels": 32}
    with pytest.raises(
        ConfigError, match=r"config\.score\.channels=32: give a tuple of int, such as \(32,\)"
    ):
        complete(tree)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("autoencoder.blocks", "0"),
        ("autoencoder.dropout", "-0.5"),
        ("autoencoder.resolution", "-1"),
        ("autoencoder.channel_mult", "()"),
        ("autoencoder.kl_weight", "-1"),
        ("discriminator.channels", "0"),
        ("discriminator.layers", "-1"),
        ("optimiser.eps", "0"),
        ("first_stage.eps", "-1"),
        ("optimiser.weight_decay", "-0.1"),
    ],
)
def test_numbers_of_latent_diffusion_have_their_bounds(field, value):
    section, _, name = field.partition(".")
    ldm = CONFIG.replace("digits.py:quick", "ldm_digits.py")
    with pytest.raises(ConfigError, match=rf"config\.{section}: .*{name}="):
        experiment(load_config(ldm, [f"--config.{field}={value}"]))
