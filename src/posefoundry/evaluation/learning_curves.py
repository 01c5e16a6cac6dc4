"""Learning curves as one picture."""

from collections.abc import Sequence
from pathlib import Path

METRICS = {"val_oks_ap": "OKS AP", "val_oks_ap50": "OKS AP50", "val_oks_ap75": "OKS AP75", "val_box_ap": "box AP"}


def plot_learning_curves(epochs: Sequence[dict[str, float | None]], path: Path) -> None:
    """Draws losses, validation and learning rate over the epochs.

    Args:
        epochs: One dict an epoch with `epoch`, the loss terms, `lr` and, where there was a validation,
            the `val_` metrics.
        path: A PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (loss_axes, metric_axes, rate_axes) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    numbers = [row["epoch"] for row in epochs]
    terms = [name for name in epochs[0] if name.startswith("loss_") and name != "loss_total"]
    for name in terms:
        loss_axes.plot(numbers, [row[name] for row in epochs], marker=".", label=name.removeprefix("loss_"))
    loss_axes.set(title="Training loss, gains included", xlabel="epoch", yscale="log")
    for name, label in METRICS.items():
        judged = [row for row in epochs if row.get(name) is not None]
        metric_axes.plot([row["epoch"] for row in judged], [row[name] for row in judged], marker="o", label=label)
    metric_axes.set(title="Validation", xlabel="epoch", ylim=(0, 1))
    rate_axes.plot(numbers, [row["lr"] for row in epochs], color="black")
    rate_axes.set(title="Learning rate at the epoch's end", xlabel="epoch")
    for axes in (loss_axes, metric_axes):
        axes.legend(fontsize=8)
    for axes in (loss_axes, metric_axes, rate_axes):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
