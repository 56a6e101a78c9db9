// Sorted vectors of numbers, each kept once: equal ones have equal numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <unordered_map>
#include <vector>

class Sets {
  public:
    int32_t intern(const std::vector<int32_t> &sorted) {
        auto [at, fresh] = numbers.emplace(sorted, int32_t(members.size()));
        if (fresh) members.push_back(&at->first), allocated += int64_t(sorted.size()) * 4 + 96;
        return at->second;
    }
    int32_t unite(int32_t a, int32_t b) {
        if (a == b) return a;
        if (a > b) std::swap(a, b);
        uint64_t key = uint64_t(a) << 32 | uint32_t(b);
        if (auto found = unions.find(key); found != unions.end()) return found->second;
        std::vector<int32_t> both;
        std::set_union((*this)[a].begin(), (*this)[a].end(), (*this)[b].begin(), (*this)[b].end(), std::back_inserter(both));
        return unions[key] = intern(both);
    }
    const std::vector<int32_t> &operator[](int32_t number) const { return *members[number]; }
    bool has(int32_t number, int32_t member) const {
        return std::binary_search(members[number]->begin(), members[number]->end(), member);
    }
    int64_t bytes() const { return allocated + int64_t(unions.size()) * 40; }

  private:
    std::map<std::vector<int32_t>, int32_t> numbers;
    std::vector<const std::vector<int32_t> *> members;
    std::unordered_map<uint64_t, int32_t> unions;
    int64_t allocated = 0;
};
