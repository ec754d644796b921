"""A run from outside its ranks: launched by MPI or inline, held against the machine, recovered."""
