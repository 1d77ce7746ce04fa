"""The grader of MATH answers and the sandbox for programs. Nothing is imported here, since the
sandbox's worker imports this package first."""
