"""Simulations: REMU in the place of the detector, one run or several, and the verdict."""
