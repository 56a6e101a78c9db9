"""The controller's arithmetic, and chunks on their way in: overlap, giving up, links that break."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from hasten.engine.kv.bitstream.controller import Controller, Option
from hasten.engine.kv.bitstream.streaming import GivenUp, Streamed, stream

CHUNKS = 4
RAW = Option("raw", 0, (1000,) * CHUNKS, (0.0,) * CHUNKS)
FINE = Option("fine", 1, (300,) * CHUNKS, (0.1,) * CHUNKS)
COARSE = Option("coarse", 2, (100,) * CHUNKS, (0.1,) * CHUNKS)
TEXT = Option("text", 0, (0,) * CHUNKS, (2.0,) * CHUNKS)
ALL = (RAW, FINE, COARSE, TEXT)


def names(deadline_s: float, bandwidth: float, chunk: int = 0, now: float = 0.0, busy: float = 0.0, tail_s: float = 0.0) -> str:
    return Controller(ALL, deadline_s, bandwidth, tail_s).choose(chunk, now, busy).name


def test_finish_counts_transfers_and_what_follows_them() -> None:
    controller = Controller(ALL, 0, 100)
    assert controller.finish_s(RAW, 0, 5, 0) == pytest.approx(45)
    assert controller.finish_s(FINE, 1, 0, 0) == pytest.approx(9.1)  # decoding hides behind transfers, but for the last
    assert controller.finish_s(TEXT, 2, 1, 0) == pytest.approx(5)
    assert controller.finish_s(TEXT, 2, 1, 3) == pytest.approx(7)  # what is computed waits for what is being computed
    assert controller.finish_s(FINE, 3, 0, 10) == pytest.approx(10.1)


def test_the_least_lossy_option_in_time_is_taken() -> None:
    assert names(100, 100) == "text"  # 8 s, exact, sooner than raw
    assert names(7, 1000) == "raw"
    assert names(7, 190) == "fine"  # 6.4 s; raw takes 21
    assert names(7, 100) == "coarse"
    assert names(7, 190, tail_s=1.0) == "coarse"  # the question is computed within the deadline too


def test_without_one_in_time_the_fastest_is_taken() -> None:
    assert names(0, 1e6) == "raw"
    assert names(0, 100) == "coarse"
    assert names(0, 10) == "text"
    assert names(0, 51, busy=50) == "fine"  # all has arrived long before it can be decoded, and no sooner if coarse


def test_what_is_left_decides() -> None:
    assert names(9, 200, chunk=0) == "text"
    assert names(9, 200, chunk=0, now=2) == "fine"
    assert names(9, 600, chunk=3, now=2) == "raw"
    controller = Controller(ALL, 7, 190)
    controller.measured(500, 5)
    assert controller.bandwidth == 100 and controller.choose(0, 0).name == "coarse"
    controller.measured(0, 1)
    assert controller.bandwidth == 100


def test_a_transfer_is_given_up_when_it_is_late_and_another_form_is_much_sooner() -> None:
    controller = Controller(ALL, 0, 1000)
    assert not controller.gives_up(RAW, 0, 100, 0.5, 0.5)  # not late yet
    assert controller.gives_up(RAW, 0, 100, 1.1, 1.1)  # 9 s to go, text takes 2
    assert not controller.gives_up(RAW, 0, 900, 1.5, 1.5)  # nearly there
    assert not Controller((RAW,), 0, 1000).gives_up(RAW, 0, 1, 9, 9)
    assert not Controller(ALL, 30, 1000).gives_up(RAW, 0, 100, 1.1, 1.1)  # it will be in time
    assert controller.bandwidth == 1000


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="same chunks"):
        Controller((), 1, 1)
    with pytest.raises(ValueError, match="same chunks"):
        Controller((RAW, Option("odd", 1, (1,), (1.0,))), 1, 1)
    with pytest.raises(ValueError, match="above 0"):
        Controller(ALL, 1, 0)


class FakeLink:
    """Chunks take `seconds` each; from chunk `breaks` on nothing comes."""

    def __init__(self, seconds: float = 0.0, breaks: int = CHUNKS) -> None:
        self.seconds = seconds
        self.breaks = breaks
        self.asked: list[tuple[int, str]] = []

    def get(self, chunk: int, option: str, more: Callable[[int], bool]) -> bytes:
        self.asked.append((chunk, option))
        if chunk >= self.breaks:
            raise ConnectionError("gone")
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            time.sleep(0.002)
            if not more(0):
                raise GivenUp
        return f"{option} {chunk}".encode()


def bring(link: FakeLink, options: tuple[Option, ...], work_s: float = 0.0) -> tuple[Streamed, list[str]]:
    done: list[str] = []

    def decode(chunk: int, option: str, payload: bytes) -> None:
        assert payload == f"{option} {chunk}".encode() and threading.current_thread() is threading.main_thread()
        time.sleep(work_s)
        done.append(f"{option} {chunk}")

    return stream(Controller(options, 0, 1e9), link, decode, lambda chunk: done.append(f"text {chunk}")), done


def test_chunks_come_in_order_and_transfers_overlap_decoding() -> None:
    began = time.perf_counter()
    streamed, done = bring(FakeLink(seconds=0.05), (FINE,), work_s=0.05)
    took = time.perf_counter() - began
    assert done == [f"fine {i}" for i in range(CHUNKS)] and streamed.options == ["fine"] * CHUNKS
    assert took < 0.05 * (2 * CHUNKS - 1)  # one after the other: 0.40 s; overlapped: 0.25 s


def test_a_broken_link_leaves_the_rest_to_be_computed() -> None:
    link = FakeLink(breaks=2)
    streamed, done = bring(link, (FINE, TEXT))
    assert done == ["fine 0", "fine 1", "text 2", "text 3"]
    assert streamed.failed == "gone" and link.asked[-1] == (2, "fine")


def test_a_broken_link_without_the_text_is_told() -> None:
    with pytest.raises(ConnectionError, match="gone"):
        bring(FakeLink(breaks=1), (FINE, COARSE))


def test_a_transfer_that_stalls_is_given_up() -> None:
    options = (FINE, Option("text", 0, (0,) * CHUNKS, (0.5,) * CHUNKS))
    link = FakeLink(seconds=5)
    began = time.perf_counter()
    controller = Controller(options, 0, 1e6)
    done: list[int] = []
    streamed = stream(controller, link, lambda *_: None, done.append)
    assert time.perf_counter() - began < 2
    assert streamed.options == ["text"] * CHUNKS and streamed.given_up >= 1 and done == list(range(CHUNKS))


def test_failing_work_ends_the_transfers() -> None:
    link = FakeLink(seconds=0.02)

    def decode(chunk: int, option: str, payload: bytes) -> None:
        raise RuntimeError("bad chunk")

    with pytest.raises(RuntimeError, match="bad chunk"):
        stream(Controller((FINE,), 0, 1e9), link, decode, lambda chunk: None)
    assert not [thread for thread in threading.enumerate() if thread.name == "hasten-stream"]
