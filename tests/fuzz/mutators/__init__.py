"""Mutations that know the structure of what they damage; all draw from the generator given, so a seed repeats them."""
