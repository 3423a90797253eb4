"""Many runs: which are wanted, whether they can begin, how they are launched and shown."""
