"""What `import longtide` offers, and what it must not bring along."""

import inspect
import subprocess
import sys
import types

import pytest

import longtide


def test_the_public_names_are_exported_in_order():
    public = [
        name
        for name, value in vars(longtide).items()
        if (not name.startswith("_") or name == "__version__") and not isinstance(value, types.ModuleType)
    ]
    assert longtide.__all__ == sorted(public)


@pytest.mark.parametrize("name", [name for name in longtide.__all__ if name != "__version__"])
def test_every_public_class_is_documented_and_at_home(name):
    value = getattr(longtide, name)
    assert value.__module__ == "longtide"
    # A dataclass without a docstring gets its signature as one.
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")


def test_both_clients_have_the_same_methods_and_parameters():
    def methods(client):
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert methods(longtide.Client) == methods(longtide.AsyncClient)


CALLS = [
    name
    for name, _ in inspect.getmembers(longtide.Client, inspect.isfunction)
    if not name.startswith("_") and name not in ("close", "wait_ready")
]


@pytest.mark.parametrize("name", CALLS)
def test_every_method_is_documented_and_takes_a_timeout(name):
    for client in (longtide.Client, longtide.AsyncClient):
        assert getattr(client, name).__doc__
        assert inspect.signature(getattr(client, name)).parameters["timeout"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("client", [longtide.Client, longtide.AsyncClient])
def test_a_client_says_which_calls_do_not_have_its_timeout(client):
    own = {
        name: parameters["timeout"].default
        for name, method in inspect.getmembers(client, inspect.isfunction)
        if "timeout" in (parameters := inspect.signature(method).parameters) and not name.startswith("_")
        if parameters["timeout"].default is not None
    }
    assert own == {"recommend_many": 60.0, "wait_ready": 30.0, "activate_snapshot": 300.0}
    said = " ".join(client.__doc__.split())
    for name, seconds in own.items():
        assert f"`{name}` ({seconds:g} s" in said


def test_importing_the_sdk_brings_nothing_heavy():
    script = (
        "import sys, longtide; "
        "heavy = ('torch', 'numpy', 'annoy', 'longtide_server', 'longtide_handlers', 'google.rpc'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert answer.stdout.strip() == "[]"
