// The automata of languages, shared by all grammars of the process: the least recently asked for are forgotten (grammars that have them
// keep them). Thread-safe.
#pragma once

#include <memory>

#include "blob.h"
#include "dfa.h"

std::shared_ptr<const Dfa> shared_automaton(const Language &language, const Budget &budget);
int64_t shared_automata_bytes();
