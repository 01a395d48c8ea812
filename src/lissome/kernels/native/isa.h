// The instruction set that runs here, found once. LISSOME_ISA forces a lower one.
#pragma once
#include <cstdlib>
#include <cstring>

enum Isa { PORTABLE, AVX2, AVX512, VNNI };  // each has all that stands before it
Isa isa();
