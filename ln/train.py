"""`python -m ln.train experiment=... norm=... seed=...`: one recipe carried out (ln/suite/runs/train.py)."""

from ln.suite.runs.train import main

if __name__ == "__main__":
    main()
