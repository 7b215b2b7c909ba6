"""Training: one visible loop over Lightning Fabric, and the pure functions it calls.

Nothing is imported here, so the configuration (:mod:`megabase.settings`) can be read without
torch. The loop is :func:`megabase.training.engine.fit`.
"""
