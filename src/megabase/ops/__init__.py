"""Operators: each a plain reference beside a fast path with the same signature.

Import them from their own packages, for instance ``from megabase.ops.long_conv import long_conv``.
"""
