// Threads that take part in a job if they come in time.
#pragma once

#define HASTEN_PART extern "C" __attribute__((visibility("hidden")))

using Together = void (*)(void *context, int id, int count);

// work(context, 0, count) by this thread, and work(context, id, count) by up to count - 1 others, each with an id of its own: some may
// come late, again, or not at all. Back when all who came have left.
HASTEN_PART void together(Together work, void *context, int count);
