// Threads that go through the same kernels together, without a fork and a join in between.
//
// A kernel is a few phases, each a number of jobs that threads claim one by one; a phase is over when its jobs are done, not when
// every thread has come. So a thread that the system keeps from running holds nobody up: it finds its phases over and passes
// through them. Phases too small to share are the first thread's; the others go ahead to the next shared one and wait there until
// the first arrives. A kernel that is called alone gathers a team of its own; `plan.cpp` takes one team through a whole step. With
// few rows a team does not even wait for who never came.
#pragma once

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "pool.h"

namespace {

constexpr int PHASES = 3;  // of a kernel, at most

struct Phase {  // a cache line, zero at first
    alignas(64) std::atomic<int64_t> claimed{0};
    std::atomic<int64_t> done{0};
    std::atomic<bool> open{false};  // the first thread has come, so all before is done
    int64_t notes[4] = {};
};

class Team {
  public:
    const int id, count;
    Team(Phase *phases, int id, int count) : id(id), count(count), next(phases) {}

    // job(0) .. job(n - 1), each once, in any order; where it is not worth it to share, one thread does all.
    template <class Job> void share(int64_t n, bool worth, Job job) {
        Phase &phase = *next++;
        if (worth) return work(phase, n, job);
        if (id == 0)
            for (int64_t i = 0; i < n; i++) job(i);
    }

    // The same for ranges of rows: job(from, to).
    template <class Job> void share_rows(int64_t rows, bool worth, Job job) {
        int64_t grain = std::max<int64_t>(1, rows / (4 * count)), pieces = (rows + grain - 1) / grain;
        share(pieces, worth, [&](int64_t i) { job(i * grain, std::min(rows, (i + 1) * grain)); });
    }

    // What the first thread notes for all. Notes last as long as the team; what they point to, until the kernel's jobs are done.
    template <class Note> const int64_t *once(Note note) {
        Phase &phase = *next++;
        if (id == 0) note(phase.notes);
        arrive(phase);
        return phase.notes;
    }

    // For threads that work out of order: worker(claim) takes jobs with claim(), at or above n when there is none left, and returns
    // how many it has done.
    template <class Worker> void share_claims(int64_t n, Worker worker) {
        Phase &phase = *next++;
        arrive(phase);
        if (phase.done.load(std::memory_order_acquire) < n) {
            int64_t mine = worker([&] { return phase.claimed.fetch_add(1, std::memory_order_relaxed); });
            phase.done.fetch_add(mine, std::memory_order_acq_rel);
            wait(phase, n);
        }
    }

  private:
    static constexpr int SPINS = 4096;
    Phase *next;

    template <class Job> void work(Phase &phase, int64_t n, Job job) {
        arrive(phase);
        for (int64_t i; (i = phase.claimed.fetch_add(1, std::memory_order_relaxed)) < n;) {
            job(i);
            phase.done.fetch_add(1, std::memory_order_acq_rel);
        }
        wait(phase, n);
    }

    void arrive(Phase &phase) {
        if (id == 0)
            phase.open.store(true, std::memory_order_release);
        else
            wait([&] { return phase.open.load(std::memory_order_acquire); });
    }

    // For jobs that others still do: they are microseconds from their end, unless the system has put them off.
    static void wait(const Phase &phase, int64_t n) {
        wait([&] { return phase.done.load(std::memory_order_acquire) >= n; });
    }

    template <class Condition> static void wait(Condition holds) {
        for (int spins = 0; !holds(); spins++) {
            if (spins > SPINS)
                sched_yield();
#if defined(__x86_64__)
            else
                __builtin_ia32_pause();
#endif
        }
    }
};

constexpr int64_t FEW_ROWS = 64;  // of a step that torch's threads have no part in, as in planned.py

// work(id, count) by all threads, or by this one alone. With few rows some may not come (`pool.h`).
template <class Work> void in_parallel(bool worth, bool few, Work work) {
    int threads = omp_get_max_threads();
    if (!worth || threads == 1) return work(0, 1);
    if (few) return together([](void *context, int id, int count) { (*(Work *)context)(id, count); }, &work, threads);
#pragma omp parallel
    work(omp_get_thread_num(), omp_get_num_threads());
}

// kernel(team), by all threads or by this one alone.
template <class Kernel> void gather(bool worth, int64_t rows, Kernel kernel) {
    Phase phases[PHASES];
    in_parallel(worth, rows <= FEW_ROWS, [&](int id, int count) {
        Team team(phases, id, count);
        kernel(team);
    });
}

}  // namespace
