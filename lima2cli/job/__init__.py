"""A run from outside its ranks: launched by MPI or inline, checked against the machine, recovered."""
