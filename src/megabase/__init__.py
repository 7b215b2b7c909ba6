"""megabase: long-range DNA language models at single-nucleotide resolution.

Importing the package is cheap: nothing heavy is loaded until it is used. ``import megabase.models``
registers the model families with the ``Auto`` classes of transformers.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
