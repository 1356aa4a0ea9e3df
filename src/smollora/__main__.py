"""`python -m smollora`: what `accelerate launch -m smollora` and torchrun start."""

from smollora.cli import main

if __name__ == "__main__":
    main()
