// Libraries may lie beside newer Python (a source tree updated but not rebuilt): this number is checked before anything is called.
#include "api.h"

int32_t hasten_grammar_interface() { return 2; }  // raise it here and in native.py whenever api.h or the form of grammars changes
