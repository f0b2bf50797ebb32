"""Convert weight files between layouts, or identify one: inspect=FILE."""

from omegaconf import DictConfig

from open_supir.base.cli import command, plain


@command("convert")
def main(cfg: DictConfig) -> None:
    """Run the requested conversion or inspection."""
    from open_supir.checkpoints import inspect_checkpoint  # imports torch: too slow for --help
    from open_supir.checkpoints.convert import convert
    from open_supir.networks.conditioner import vocabulary

    settings = plain(cfg)
    if settings["inspect"]:
        print(inspect_checkpoint(settings["inspect"], key="inspect"))
    else:
        print(inspect_checkpoint(convert(settings, vocabulary=vocabulary)))


if __name__ == "__main__":
    main()
