"""Jobs from data to a measured model; one file per family. Nothing is imported here."""
