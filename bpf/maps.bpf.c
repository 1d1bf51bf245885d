// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* No program: the maps alone, for the agent to create, and their types for Go. */
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
