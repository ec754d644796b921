"""Move frames and control messages between ranks: inline or by MPI."""
