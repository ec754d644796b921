"""The ranks of a run at work: control, detector and receivers, their messages, and the loop that gives them turns."""
