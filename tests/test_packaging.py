"""The package as a whole: one version, a fast import, and metadata that agrees with the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import hasten

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Distributions whose module has another name.
MODULES = {"prometheus-client": "prometheus_client"}


def requirement_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return match.group()


def test_version_has_a_single_source() -> None:
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hasten.__version__"}
    assert metadata.version("hasten") == hasten.__version__


def test_import_is_light() -> None:
    code = "import sys, hasten; print([m for m in ('torch', 'numpy', 'fastapi', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", hasten.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(hasten, name) is not None
    assert name in dir(hasten)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        _ = hasten.nothing_of_the_kind


def test_console_script_is_declared_and_importable() -> None:
    declared = PROJECT["project"]["scripts"]["hasten"]
    (script,) = metadata.entry_points(group="console_scripts", name="hasten")
    assert script.value == declared
    assert callable(script.load())


@pytest.mark.parametrize("requirement", PROJECT["project"]["dependencies"])
def test_needed_dependency_is_there(requirement: str) -> None:
    name = requirement_name(requirement)
    assert importlib.util.find_spec(MODULES.get(name, name)), f"{name} is needed but cannot be imported"


def test_every_folder_of_code_is_a_package() -> None:
    """A folder without ``__init__.py`` works from a checkout and then surprises tools that look for packages."""
    code = {path.parent for path in (ROOT / "src" / "hasten").rglob("*.py")}
    assert not [str(folder.relative_to(ROOT)) for folder in code if not (folder / "__init__.py").exists()]


def test_type_marker_is_shipped() -> None:
    assert (Path(hasten.__file__).parent / "py.typed").exists()
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["hasten"]


def test_the_core_imports_no_torch() -> None:
    """The loop, the schedulers and the KV books must run where no tensors exist (simulation)."""
    code = (
        "import sys, pkgutil, importlib\n"
        "import hasten.engine.loop, hasten.engine.scheduling, hasten.engine.kv\n"
        "for package in (hasten.engine.scheduling, hasten.engine.kv):\n"
        "    for module in pkgutil.iter_modules(package.__path__):\n"
        "        importlib.import_module(f'{package.__name__}.{module.name}')\n"
        "import hasten.engine.async_engine, hasten.engine.text\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
