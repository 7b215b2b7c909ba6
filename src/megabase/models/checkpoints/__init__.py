"""Files of weights: read safely, converted, and saved."""
