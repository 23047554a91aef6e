"""What a network knows, as figures."""
