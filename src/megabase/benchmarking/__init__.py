"""Published benchmarks: suites, protocols, leakage and tables."""
