"""Packed weights kept between starts: what is found again is what was added, and nothing that is wrong is ever used."""

import json
import os
import threading

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hasten import kernels
from hasten.engine.llm import LLM
from hasten.engine.request import SamplingParams
from hasten.engine.weights import kept
from hasten.engine.weights.kept import KeptWeights, folder, make_room
from hasten.kernels.quantized import round_to_nearest

pytestmark = pytest.mark.skipif(kernels.load().name == "reference", reason="only the native kernels' weights are packed")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    monkeypatch.setattr(kept, "LEAST_BYTES", 0)


def packed(bits=8, group=64, symmetric=True, rows=70, columns=130):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(bits))
    return kernels.load().pack(round_to_nearest(weight, bits, group, symmetric=symmetric))


def written(fingerprint="one", form="int8", **weights):
    store = KeptWeights(form, 1 << 30)
    store.open(fingerprint)
    for name, weight in weights.items():
        store.add(name, weight)
    store.write()
    store.wait()
    return store


def opened(fingerprint="one", form="int8"):
    store = KeptWeights(form, 1 << 30)
    store.open(fingerprint)
    return store


def test_found_again():
    weights = {"a": packed(), "b": packed(4, 32, False)}
    written(**weights)
    store = opened()
    for name, weight in weights.items():
        found = store.find(name)
        assert torch.equal(found.panels, weight.panels)
        again, first = found.unpacked(), weight.unpacked()
        assert torch.equal(again.dense(), first.dense()) and again.unit == first.unit
    assert store.find("c") is None


def test_other_models_and_forms_find_nothing():
    written(a=packed())
    assert opened(fingerprint="two").find("a") is None
    assert opened(form="int4").find("a") is None


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100])
def test_a_broken_file_is_as_good_as_none(content):
    written(a=packed())
    (file,) = folder().glob("*.safetensors")
    file.write_bytes(content)
    assert opened().find("a") is None
    written(a=packed())
    assert opened().find("a") is not None


def test_a_file_that_says_something_else_than_it_holds_is_not_used():
    weight = packed()
    written(a=weight)
    (file,) = folder().glob("*.safetensors")
    said = {"a": {"shape": [700, 130], "bits": 8, "group": 64, "has_zeros": False, "unit": weight.unit}}
    save_file({"a": weight.panels}, file, metadata={"weights": json.dumps(said)})
    assert opened().find("a") is None


def test_a_disk_that_fails_leaves_nothing_behind(monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(kept, "save_file", full)
    written(a=packed())
    assert list(folder().iterdir()) == []


def test_what_killed_writers_left_goes(tmp_path):
    written(a=packed())
    left = folder() / ".half.1.2"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    written(fingerprint="two", a=packed())
    assert not left.exists() and len(list(folder().iterdir())) == 2


def test_the_longest_unused_make_room():
    for i, name in enumerate(("one", "two", "three")):
        written(fingerprint=name, a=packed())
        opened(name)
        os.utime(max(folder().glob("*.safetensors"), key=lambda f: f.stat().st_ctime), (i, i))
    size = next(folder().glob("*.safetensors")).stat().st_size
    make_room(folder(), 2 * size)
    assert [opened(name).find("a") is None for name in ("one", "two", "three")] == [True, False, False]


def test_nothing_is_kept_where_there_is_no_room():
    store = KeptWeights("int8", most_bytes=10)
    store.open("one")
    store.add("a", packed())
    store.write()
    store.wait()
    assert not folder().exists() or not list(folder().iterdir())


def test_a_second_start_multiplies_the_same_weights(monkeypatch):
    def answer():
        text = LLM(with_=["int8"]).generate("The river", SamplingParams(max_tokens=12, temperature=0))[0].text
        for thread in threading.enumerate():
            if thread.name == "hasten-kept-weights":
                thread.join()
        return text

    first = answer()
    (file,) = folder().glob("*.safetensors")
    before = file.stat().st_ino

    def never(*args, **options):
        raise AssertionError("rounded again")

    monkeypatch.setattr("hasten.engine.weights.quantized.round_to_nearest", never)
    assert answer() == first
    assert file.stat().st_ino == before
