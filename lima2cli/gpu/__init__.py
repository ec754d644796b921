"""Computing on devices of OpenCL: GPUs, and for tests the CPU, by pocl. Extra ``gpu``; only what is here imports it."""
