// How a team goes through the work of an attention call, whatever it was cut into.
#pragma once

#include "attention_view.h"

namespace {

// A small call is done sooner by one thread.
inline bool worth_a_team(const Call &call, double work, size_t items) { return work * call.dim > 48 * 128 && items > 1; }

// work_of(0) .. work_of(items - 1), each once. What they come from may be another call's already when a late thread comes here: only
// who has claimed an item looks at it, and at max_rows.
template <class WorkOf> void work_as_team(const Call &call, const int &max_rows, int64_t items, bool worth, Team &team, WorkOf work_of) {
    auto work = [&](auto claim) {
        int64_t done = 0;
        auto next = [&]() -> Work {
            int64_t i = claim();
            if (i >= items) return {};
            done++;
            return work_of(i);
        };
        Work first = next();
        if (first.job) {
            Claims claims(next);
            (call.bits ? work_on_codes : work_on_numbers)(&call, max_rows, &first, &claims);
        }
        return done;
    };
    if (worth) {
        team.share_claims(items, work);
    } else {
        team.share(items > 0, false, [&](int64_t) {
            int64_t i = 0;
            work([&] { return i++; });
        });
    }
}

}  // namespace
