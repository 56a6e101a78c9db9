#define VARIANT plain
#define BYTES 16
#include "decode.h"
