"""Contract batteries that outside methods can run, too."""
