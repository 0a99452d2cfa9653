"""Wheel and sdist: built, looked into, and tried in fresh environments as whoever installs them has them."""
