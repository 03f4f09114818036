"""Sees which files and addresses a process and all below it touch, and lets every call go on.

`seccomp` speaks to the Linux kernel, `supervisor` answers it from the checking process, `launch`
is what the watched process starts as, `audit` is Python's own view where seccomp is not to be had,
and `policy` tells what was declared from what was not. It observes; it is no security boundary.
"""
