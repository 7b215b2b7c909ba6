"""The published way of computing HyenaDNA, written plainly, to measure against."""
