"""Convert weight files between layouts, or identify one: inspect=FILE."""

from omegaconf import DictConfig

from open_supir.base.cli import command, plain
from open_supir.base.hub import push


@command("convert")
def main(cfg: DictConfig) -> None:
    """Run the requested conversion or inspection."""
    from open_supir.checkpoints import inspect_checkpoint  # imports torch: too slow for --help
    from open_supir.checkpoints.convert import convert
    from open_supir.networks.conditioner import vocabulary

    settings = plain(cfg)
    if settings["push_to_hub"] and settings["format"] != "hub":
        raise ValueError("push_to_hub needs format=hub")
    if settings["inspect"]:
        print(inspect_checkpoint(settings["inspect"], key="inspect"))
    else:
        made = convert(settings, vocabulary=vocabulary)
        print(inspect_checkpoint(made))
        if settings["push_to_hub"]:
            print(f"uploaded to {push(made, settings['push_to_hub'])}")


if __name__ == "__main__":
    main()
