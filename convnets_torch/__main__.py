"""`python -m convnets_torch`: the command line."""

from convnets_torch.cli.app import main

if __name__ == "__main__":
    main()
