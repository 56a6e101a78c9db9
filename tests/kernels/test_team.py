"""Threads that help with few rows: whoever comes, late or never, the numbers are the same."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from hasten.kernels.cpu import native


def product(kernels, rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 512, generator=generator)
    w = torch.randn(2048, 512, generator=generator)
    out = torch.full((rows, 2048), float("nan"))
    kernels.linear(x, w, None, out)
    return out


@pytest.mark.parametrize("rows", [1, 8, 64, 65, 200])
def test_numbers_do_not_depend_on_threads(rows, native_kernels, threads):
    threads(1)
    alone = product(native_kernels, rows)
    for count in (2, 3, 8):  # more than there are processors, too
        threads(count)
        for _ in range(3):
            assert torch.equal(product(native_kernels, rows), alone)


def test_callers_at_the_same_time_do_not_wait_for_one_another_s_helpers(native_kernels, threads):
    threads(2)
    expected = [product(native_kernels, 8, seed) for seed in range(4)]
    wrong = []

    def work(seed):
        torch.set_num_threads(2)
        wrong.extend(seed for _ in range(50) if not torch.equal(product(native_kernels, 8, seed), expected[seed]))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    assert not wrong and not any(worker.is_alive() for worker in workers)


def test_sleeping_helpers_wake(native_kernels, threads):
    threads(2)
    first = product(native_kernels, 8)
    pause = threading.Event()
    for _ in range(20):
        pause.wait(0.005)  # longer than they look for work
        assert torch.equal(product(native_kernels, 8), first)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_helpers_of_its_own(threads):
    from hasten.kernels.cpu import CpuKernels

    kernels = CpuKernels(native.available()[0]) if native.available() else pytest.skip("no native library is built")
    threads(2)
    expected = product(kernels, 8)
    child = os.fork()
    if child == 0:
        right = all(torch.equal(product(kernels, 8), expected) for _ in range(5))
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(product(kernels, 8), expected)
