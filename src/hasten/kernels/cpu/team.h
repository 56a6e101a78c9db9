// Threads that go through the same code together, one kernel after another, without a fork and a join in between.
//
// A kernel is written for a team: every thread of it calls the kernel, `share` deals its jobs out to whoever is free, and all meet
// at its end. A kernel that is called alone gathers a team of its own; `plan.cpp` takes one team through a whole step.
#pragma once

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace {

struct Meeting {  // what the threads of a team share; counters on cache lines of their own
    alignas(64) std::atomic<int64_t> claimed{0};
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<uint32_t> round{0};
    void *agreed = nullptr;
};

class Team {
  public:
    const int id, count;
    Team(Meeting &meeting, int id, int count) : id(id), count(count), meeting(meeting) {}

    // The number of the next job that nobody has claimed; counting starts anew at every meeting.
    int64_t claim() { return meeting.claimed.fetch_add(1, std::memory_order_relaxed); }

    // Waits for all threads: what they wrote before can be read after. Spins a while (the others are microseconds away), then gives
    // the core to whoever wants it.
    void meet() {
        if (count == 1) return meeting.claimed.store(0, std::memory_order_relaxed);
        uint32_t now = meeting.round.load(std::memory_order_relaxed);
        if (meeting.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            meeting.arrived.store(0, std::memory_order_relaxed);
            meeting.claimed.store(0, std::memory_order_relaxed);
            meeting.round.store(now + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; meeting.round.load(std::memory_order_acquire) == now; spins++)
            spins < SPINS ? pause() : void(sched_yield());
    }

    // job(0) .. job(n - 1), each once, in any order. Where it is not worth it to share, the first thread does all.
    template <class Job> void share(int64_t n, bool worth, Job job) {
        if (!worth || n == 1) {
            if (id == 0)
                for (int64_t i = 0; i < n; i++) job(i);
        } else {
            for (int64_t i; (i = claim()) < n;) job(i);
        }
        meet();
    }

    // The same for ranges of rows: job(from, to).
    template <class Job> void share_rows(int64_t rows, bool worth, Job job) {
        int64_t grain = std::max<int64_t>(1, rows / (4 * count)), pieces = (rows + grain - 1) / grain;
        share(pieces, worth, [&](int64_t i) { job(i * grain, std::min(rows, (i + 1) * grain)); });
    }

    // What the first thread names, for all. Another meeting must lie between two agreements.
    template <class X> X *agree(X *mine) {
        if (id == 0) meeting.agreed = mine;
        meet();
        return (X *)meeting.agreed;
    }

  private:
    static constexpr int SPINS = 4096;
    Meeting &meeting;
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
};

// work(team) by all threads, or by this one alone.
template <class Work> void gather(bool worth, Work work) {
    Meeting meeting;
    if (!worth || omp_get_max_threads() == 1) {
        Team alone(meeting, 0, 1);
        return work(alone);
    }
#pragma omp parallel
    {
        Team team(meeting, omp_get_thread_num(), omp_get_num_threads());
        work(team);
    }
}

}  // namespace
