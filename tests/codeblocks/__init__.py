"""The blocks of code in README and docs: found, and run where all that they need is here."""
