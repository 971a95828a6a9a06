"""The parity suite: does a kernel compute what its contract says on all it claims, and refuse the rest?"""
