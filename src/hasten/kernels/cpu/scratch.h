// Memory that a thread keeps between calls, so that no kernel allocates once it has run at its largest size.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

class Scratch {
  public:
    ~Scratch() { std::free(memory); }
    // Room for `bytes`, aligned to cache lines; what it held is lost when it grows.
    void *take(size_t bytes) {
        if (bytes > size) {
            std::free(memory);
            size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
            memory = std::aligned_alloc(4096, size);
            if (!memory) throw std::bad_alloc();
        }
        return memory;
    }

  private:
    void *memory = nullptr;
    size_t size = 0;
};

// Hands out consecutive aligned pieces of one Scratch: first with memory = nullptr to measure, then to place.
struct Pieces {
    char *memory;
    size_t used = 0;
    template <class X> X *next(size_t count) {
        X *piece = (X *)(memory + used);
        used += (count * sizeof(X) + 63) / 64 * 64;
        return piece;
    }
};

}  // namespace
