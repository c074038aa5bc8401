"""Small exact solvers on matrices of a few dozen tasks: float64, CPU, no absolute tolerances."""
