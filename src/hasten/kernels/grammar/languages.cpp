#include "languages.h"

#include <list>
#include <map>
#include <mutex>

namespace {

constexpr int64_t MOST_BYTES = 128 << 20;

using Key = std::pair<int32_t, std::string>;
struct Entry {
    const Key *key;
    std::shared_ptr<const Dfa> dfa;
    int64_t bytes() const { return dfa->bytes() + int64_t(key->second.size()) + 256; }
};

std::mutex lock;
std::list<Entry> entries;  // the latest first
std::map<Key, std::list<Entry>::iterator> found;
int64_t total = 0;
uint64_t made_so_far = 0;

std::shared_ptr<const Dfa> find(const Key &key) {
    auto at = found.find(key);
    if (at == found.end()) return nullptr;
    entries.splice(entries.begin(), entries, at->second);
    return entries.front().dfa;
}

}  // namespace

std::shared_ptr<const Dfa> shared_automaton(const Language &language, const Budget &budget) {
    Key key{language.form, language.program};
    {
        std::lock_guard<std::mutex> guard(lock);
        if (auto known = find(key)) return known;
    }
    auto made = std::make_shared<Dfa>(
        compile_language((const uint8_t *)language.program.data(), language.program.size(), language.form, budget));
    made->likeness = Likeness(*made);
    std::lock_guard<std::mutex> guard(lock);
    if (auto known = find(key)) return known;  // two threads have made it
    made->number = ++made_so_far;
    auto at = found.emplace(std::move(key), entries.end()).first;
    entries.push_front({&at->first, made});
    at->second = entries.begin();
    total += entries.front().bytes();
    while (total > MOST_BYTES && entries.size() > 1) {
        total -= entries.back().bytes();
        const Key *oldest = entries.back().key;
        entries.pop_back();
        found.erase(found.find(*oldest));
    }
    return made;
}

int64_t shared_automata_bytes() {
    std::lock_guard<std::mutex> guard(lock);
    return total;
}
