#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define VARIANT avx2
#define BYTES 32
#include "decode.h"
#endif
