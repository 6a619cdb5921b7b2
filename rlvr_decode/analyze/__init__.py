"""Where and why the two models of a pair differ: token by token, and in what follows from it."""
