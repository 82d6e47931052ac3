"""`python -m steerlab`."""

from steerlab.cli import main

if __name__ == "__main__":
    main()
