"""Plan to one program per rank."""
