"""`doctor`: checks everything that can be wrong, and names the hint of each problem."""
