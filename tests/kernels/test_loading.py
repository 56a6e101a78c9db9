"""Choosing an implementation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hasten.kernels as hk
from hasten.kernels.cpu import native


def test_best_native_library_is_the_default(monkeypatch):
    monkeypatch.delenv("HASTEN_KERNELS", raising=False)
    assert hk.load().name == (native.available() or ["reference"])[0]


def test_the_environment_chooses(monkeypatch):
    for name in ["reference", *native.available()]:
        monkeypatch.setenv("HASTEN_KERNELS", name)
        assert hk.load().name == name
        assert hk.load("cuda").name == "reference"
    monkeypatch.setenv("HASTEN_KERNELS", "avx3")
    with pytest.raises(ValueError, match="avx512bf16"):
        hk.load()
    assert hk.load(name="reference").name == "reference"


def test_without_libraries_the_reference_serves(monkeypatch, tmp_path):
    monkeypatch.delenv("HASTEN_KERNELS", raising=False)
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    native.library.cache_clear()
    try:
        assert native.available() == []
        assert hk.load().name == "reference"
        with pytest.raises(RuntimeError, match="not built"):
            hk.load(name="generic")
    finally:
        native.library.cache_clear()


def test_a_lacking_processor_is_named(monkeypatch):
    monkeypatch.setattr(native, "_processor_flags", lambda: frozenset({"avx2"}))
    native.library.cache_clear()
    try:
        for name in native.available():
            assert name == "generic"
        if (native.FOLDER / "libhasten_avx2.so").exists():
            with pytest.raises(RuntimeError, match="f16c, fma"):
                hk.load(name="avx2")
    finally:
        native.library.cache_clear()


def test_one_pool_of_threads(native_kernels):
    mapped = set(re.findall(r"/\S*/lib(?:gomp|iomp5|omp)[-.]\S*", Path("/proc/self/maps").read_text()))
    assert len(mapped) == 1, mapped


def test_a_library_of_other_sources_is_refused(monkeypatch):
    if not native.available():
        pytest.skip("no native library is built (make native)")
    monkeypatch.setattr(native, "INTERFACE", native.INTERFACE + 1)
    native.library.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="make native"):
            hk.load(name="generic")
    finally:
        native.library.cache_clear()
