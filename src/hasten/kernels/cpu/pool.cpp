// The threads that help with few rows.
//
// A decoded token is a few milliseconds of work in some hundred calls where a technique stays in Python, and a join that waits for
// a thread which the system is not running costs such a call a time slice. So nobody waits for helpers that have not come:
// the caller opens a job, who comes while it is open takes part, and the caller closes it when the work is done. Helpers look for
// the next job for a while, then sleep.
//
// Large batches leave this to OpenMP: they alternate with torch's products, whose threads would be fought for the cores.
#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

namespace {

constexpr int SPINS = 8192;  // 0.1 to 0.3 ms: longer than Python takes from one kernel to the next

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

class Pool {
  public:
    void run(Together work, void *context, int count) {
        std::unique_lock<std::mutex> mine(caller, std::try_to_lock);
        if (!mine) return work(context, 0, 1);  // another engine of this process has the helpers
        for (; helpers < count - 1; helpers++) std::thread(&Pool::help, this, helpers + 1).detach();
        this->work = work, this->context = context, this->count = count;
        epoch.fetch_add(1);
        open.store(true);
        if (asleep.load() > 0) {
            { std::lock_guard<std::mutex> guard(bed); }
            wake.notify_all();
        }
        work(context, 0, count);
        open.store(false);
        while (inside.load() > 0) sched_yield();  // they have nothing left to do but to leave
    }

  private:
    std::mutex caller, bed;
    std::condition_variable wake;
    int helpers = 0;
    Together work = nullptr;
    void *context = nullptr;
    int count = 0;
    alignas(64) std::atomic<int64_t> epoch{0};  // of the last job opened
    std::atomic<bool> open{false};
    std::atomic<int> asleep{0};
    alignas(64) std::atomic<int> inside{0};

    void help(int id) {
        for (int64_t seen = 0;;) {
            seen = wait_past(seen);
            // Who is inside when the job closes is waited for; who comes later finds it closed.
            inside.fetch_add(1);
            if (open.load() && id < count) work(context, id, count);
            inside.fetch_sub(1);
        }
    }

    int64_t wait_past(int64_t seen) {
        for (int spins = 0; spins < SPINS; spins++) {
            if (int64_t now = epoch.load(); now != seen) return now;
            pause();
        }
        std::unique_lock<std::mutex> guard(bed);
        asleep.fetch_add(1);
        wake.wait(guard, [&] { return epoch.load() != seen; });
        asleep.fetch_sub(1);
        return epoch.load();
    }
};

alignas(Pool) char memory[sizeof(Pool)];
Pool *pool = new (memory) Pool;  // never destroyed: helpers may outlive all else

// A child process has none of the threads, and locks as they were at that moment.
[[maybe_unused]] int registered = pthread_atfork(nullptr, nullptr, [] { pool = new (memory) Pool; });

}  // namespace

HASTEN_PART void together(Together work, void *context, int count) { pool->run(work, context, count); }
