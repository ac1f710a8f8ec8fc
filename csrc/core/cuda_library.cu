// The CUDA library's own part: how it was built. Its kernels register themselves, room by room.
#include "build_facts.h"
