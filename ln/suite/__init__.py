"""The suite around the layers: recipes, runs, claims, figures and sweeps. Not shipped with the library."""
