"""Training: recipes, the loop, load balance, checkpoints that survive anything."""

import os

# Where more runs than there are cores, a product's threads wait for one that has no core; spinning as long as GNU's
# OpenMP does by default, they keep it from getting one: two threads were 20 to 40 times slower than one. So they spin
# for microseconds only, about what lies between two products. It is read when torch is loaded, which is later.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
