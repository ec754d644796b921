"""How frames and control messages move between ranks: inline or by MPI."""
