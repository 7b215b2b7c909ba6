"""Training: one visible loop over Lightning Fabric, and the pure functions it calls."""
