// The automata of languages, shared by all grammars of the process.
#pragma once

#include <memory>

#include "blob.h"
#include "dfa.h"

std::shared_ptr<const Dfa> shared_automaton(const Language &language, const Budget &budget);
