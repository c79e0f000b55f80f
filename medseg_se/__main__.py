"""`python -m medseg_se` is `medseg-se`."""

from medseg_se.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
