"""What ``torch.compile(backend="max", options=..., mode=...)`` accepts and refuses."""

import dataclasses

import pytest
import torch

from torch_max_backend import MaxBackendError, MaxOptions, OptionError

SKIP = torch.compiler.skip_guard_on_all_nn_modules_unsafe


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def chain(error: BaseException | None) -> list[BaseException]:
    """An error and what it was raised from."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def compile_and_call(**kw):
    torch.compile(lambda x: x + 1, backend="max", **kw)(torch.randn(3))


def test_nothing_given_means_the_defaults():
    assert MaxOptions.from_mapping(None) == MaxOptions()
    assert MaxOptions.from_mapping({}, "default") == MaxOptions()


def test_a_mapping_sets_what_it_names():
    options = MaxOptions.from_mapping({"compile": "background", "cache": False})
    assert (options.compile, options.cache) == ("background", False)
    assert options.attention == MaxOptions().attention


def test_options_are_taken_as_they_are():
    options = MaxOptions(attention="composed")
    assert MaxOptions.from_mapping(options) is options


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("compiler", "compile"),
        ("atention", "attention"),
        ("Cache", "cache"),
        ("cached", "cache"),
        ("attention_kernel", "attention"),
    ],
)
def test_an_unknown_option_names_the_nearest(name, nearest):
    with pytest.raises(OptionError) as caught:
        MaxOptions.from_mapping({name: True})
    message = str(caught.value)
    assert f"unknown option {name!r}" in message
    assert f"nearest is {nearest!r}" in message
    for option in dataclasses.fields(MaxOptions):
        assert option.name in message, "the message lists what there is"


def test_a_name_that_is_no_string():
    with pytest.raises(OptionError, match="unknown option 3"):
        MaxOptions.from_mapping({3: True})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    "option, value, choices",
    [
        ("compile", "eager", "'lazy', 'background'"),
        ("compile", None, "'lazy', 'background'"),
        ("cache", "yes", "True, False"),
        ("cache", 2, "True, False"),
        ("attention", "Flash", "'flash', 'composed'"),
        ("attention", ["flash"], "'flash', 'composed'"),
    ],
)
def test_a_wrong_value_names_the_choices(option, value, choices):
    with pytest.raises(OptionError) as caught:
        MaxOptions.from_mapping({option: value})
    for part in (repr(option), repr(value), choices):
        assert part in str(caught.value)


@pytest.mark.parametrize("mode", ["max-autotune", "reduce-overhead", ""])
def test_modes_are_refused(mode):
    with pytest.raises(OptionError, match="no modes") as caught:
        MaxOptions.from_mapping(None, mode)
    assert repr(mode) in str(caught.value)


def test_option_errors_are_value_errors_and_errors_of_the_package():
    assert issubclass(OptionError, ValueError)
    assert issubclass(OptionError, MaxBackendError)


def test_options_cannot_be_changed_later():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MaxOptions().cache = False  # type: ignore[misc]


def test_the_key_holds_what_changes_the_executable_alone():
    default = MaxOptions().cache_key()
    assert MaxOptions(compile="background", cache=False).cache_key() == default
    assert MaxOptions(attention="composed").cache_key() != default


@pytest.mark.parametrize(
    "kw, message",
    [
        ({"options": {"compil": "lazy"}}, "the nearest is 'compile'"),
        ({"options": {"attention": "fused"}}, "'flash', 'composed'"),
        ({"mode": "max-autotune"}, "no modes"),
        ({"options": {"guard_filter_fn": SKIP, "compil": "lazy"}}, "unknown option 'compil'"),
    ],
    ids=["name", "value", "mode", "beside PyTorch's own"],
)
def test_errors_reach_the_caller_of_torch_compile(kw, message):
    with pytest.raises(Exception) as caught:
        compile_and_call(**kw)
    errors = [e for e in chain(caught.value) if isinstance(e, OptionError)]
    assert errors and message in str(errors[0])
    assert message in str(caught.value), "the outermost error shows it too"
