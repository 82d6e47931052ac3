"""`python -m steerlab.cli`."""

from steerlab.cli import main

if __name__ == "__main__":
    main()
