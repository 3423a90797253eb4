"""Backend `native`: C++ for the CPU, compiled on first use."""
