"""Layers that the model families are built from; plain torch modules over the operators."""
