"""The parity suite: does a kernel compute what its contract says, on every size it claims, and refuse what it does not?"""
