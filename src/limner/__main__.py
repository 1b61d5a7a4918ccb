"""`python -m limner`, which launchers such as `accelerate launch -m limner` need."""

from limner.cli import main

main()
