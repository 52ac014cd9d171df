"""Finding out what is wrong: the doctor, and the archive for a bug report."""
