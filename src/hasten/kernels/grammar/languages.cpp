#include "languages.h"

#include <map>
#include <mutex>

namespace {

constexpr size_t MOST = 16384;  // automata kept
std::mutex lock;
std::map<std::pair<int32_t, std::string>, std::shared_ptr<const Dfa>> kept;

}  // namespace

std::shared_ptr<const Dfa> shared_automaton(const Language &language, const Budget &budget) {
    std::pair<int32_t, std::string> key{language.form, language.program};
    {
        std::lock_guard<std::mutex> guard(lock);
        if (auto found = kept.find(key); found != kept.end()) return found->second;
    }
    auto made = std::make_shared<const Dfa>(
        compile_language((const uint8_t *)language.program.data(), language.program.size(), language.form, budget));
    std::lock_guard<std::mutex> guard(lock);
    if (kept.size() >= MOST)
        for (auto at = kept.begin(); at != kept.end();) at = at->second.use_count() == 1 ? kept.erase(at) : std::next(at);
    kept.emplace(std::move(key), made);
    return made;
}
