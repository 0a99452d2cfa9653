"""Fuzzing of every kind of file that btcompress reads: a right answer or a ``BTCompressError``, and nothing else."""
