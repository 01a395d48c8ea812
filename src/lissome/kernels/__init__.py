"""Native C++ kernels and their torch twins: the same signature, the plain one beside the fast one."""
