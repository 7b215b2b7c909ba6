"""The verbs of the command line, in groups: each module has a table ``VERBS``."""
