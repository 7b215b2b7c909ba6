"""Operators of the model families: a definition in torch, a fast path, and some in C++.

All raise :class:`~megabase.errors.OperatorError` with everything that does not fit when shapes,
dtypes or devices do not.
"""
