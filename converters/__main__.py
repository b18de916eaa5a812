"""`python -m converters IN -o OUT`: the same as `convnets-torch convert`."""

from convnets_torch.cli.app import run
from convnets_torch.cli.weights_commands import convert_app

if __name__ == "__main__":
    run(convert_app)
